"""The report of a choice of factors or passes, and of an alignment, says what they came to."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import stdist
from stdist.graph import run_folders
from stdist.methods.simulate_pair import simulate_pair
from stdist.report import html, write_report
from stdist.report.run import RunFacts
from stdist.report.siid_answers import siid_answers
from stdist.store import StdistWarning, Store

pytestmark = pytest.mark.filterwarnings("ignore::stdist.store.StdistWarning")


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("answers")
    paths = folder / "cells.zarr", folder / "spots.zarr"
    simulate_pair(*paths, n_cells=2500, n_genes=30, n_panel=30, n_types=3, progress=False)
    return paths


def test_the_number_of_factors_is_in_the_report(slides):
    cells, spots = slides
    run = stdist.tl.siid_choose_factors(
        cells, spots=spots, n_factors=[2, 3], n_restarts=1, progress=False
    )
    found, page = Store(cells).uns("siid_factors"), write_report(run).read_text()
    assert f"<b>{int(found['n_factors'])}</b><span>factors chosen</span>" in page
    for value in found["table"]["deviance"]:
        assert html.number(value) in page


def test_the_number_of_passes_is_in_the_report(slides):
    cells, spots = slides
    run = stdist.tl.siid_choose_passes(
        cells, spots=spots, n_factors=3, passes=[1, 2], folds=[0], n_restarts=1, n_solutions=1,
        progress=False,
    )  # fmt: skip
    found, page = Store(cells).uns("siid_passes"), write_report(run).read_text()
    assert f"<b>{int(found['passes'])}</b><span>passes chosen</span>" in page
    for value in (*found["table"]["r2"], *found["held_out"].filter(["B", "permuted"]).mean()):
        assert html.number(value) in page
    assert "held out of the fits with" in page


def test_an_alignment_gives_the_option_that_takes_it_or_says_no(slides):
    cells, spots = slides
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StdistWarning)
        found = stdist.tl.siid_align(cells, spots=spots, n_factors=3, n_starts=1, progress=False)
    facts = RunFacts(run_folders(cells)[-1])
    assert html.escape(found.message) in write_report(facts.folder).read_text()
    for recovered in (True, False):
        facts.written["recovered"] = recovered
        ((_, section),) = siid_answers(facts)
        assert ("--transform=" in section) == recovered
        assert ("<b>NO</b>" in section) != recovered
        if recovered:
            text = section.partition("--transform=")[2].partition("<")[0]
            given = np.array(text.split(","), float).reshape(3, 3)
            np.testing.assert_allclose(given, found.transform, rtol=1e-9)
