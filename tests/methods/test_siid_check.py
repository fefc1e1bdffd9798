"""The second fit beside a fit of all genes, which tells how well it imputes."""

from __future__ import annotations

import html
import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import stdist
from stdist.kernels.pair_simulation import pair_model
from stdist.methods.siid.verdicts import held_out_notes
from stdist.report import write_report
from stdist.store import StdistWarning, Store

FAST = {"n_factors": 4, "n_restarts": 3, "n_solutions": 3, "passes": 8, "sample_cells": 1024}
FAST |= {"convergence_passes": 4, "entropy_passes": 2, "progress": False, "rng": 5}


@pytest.fixture(scope="module")
def slides():
    model = pair_model(n_cells=2400, n_genes=30, n_types=4, seed=1)
    found = []
    for slide in (model.cells(0, model.n_cells), model.spots(0, model.n_spots)):
        adata = anndata.AnnData(slide.counts)
        adata.var_names = [f"g{number:02d}" for number in range(adata.n_vars)]
        adata.obsm["spatial"] = np.asarray(slide.spatial, np.float64)
        found.append(adata)
    return found


def fit(mine, above, **options):
    """The entry that a fit leaves in memory, what it warned of, and its loadings."""
    mine = mine.copy()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", StdistWarning)
        stdist.tl.siid(mine, spots=above, **{**FAST, **options})
    texts = [str(one.message) for one in caught if one.category is StdistWarning]
    return mine.uns["siid"], texts, mine.obsm


ADAM = {"solver": "adam", "epochs": 30, "passes": 20, "convergence_passes": 500}
ADAM |= {"entropy_passes": 100, "deconvolve": False}


@pytest.mark.parametrize("options", [{}, {"n_spots_per_cell": 2, "deconvolve": False}, ADAM])
def test_its_scores_are_those_of_a_fit_without_these_genes(slides, options):
    entry, told, rows = fit(*slides, **options)
    assert len(entry["check"]) == 3
    held = {"held_out": list(entry["check"].index), "deconvolve": False}
    alone, warned, _ = fit(*slides, **{**options, **held})
    pd.testing.assert_frame_equal(entry["check"], alone["held_out"], check_exact=True)
    assert "permuted" in entry["check"]
    assert told == warned
    assert [note for note in entry["notes"] if note.startswith("[control-")] == told
    without, told, same = fit(*slides, controls=False, **options)
    assert "check" not in without
    assert not told
    for name in rows:
        np.testing.assert_array_equal(rows[name], same[name])
    assert entry["factors"].identical(without["factors"])


def test_a_control_that_is_as_good_is_told_in_the_result_and_in_the_report(slides, tmp_path):
    """One factor imputes the total of the cell, wherever the spots are."""
    paths = [str(tmp_path / name) for name in ("cells.zarr", "spots.zarr")]
    for adata, path in zip(slides, paths, strict=True):
        stdist.io.write(adata, path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", StdistWarning)
        run = stdist.tl.siid(paths[0], spots=paths[1], **{**FAST, "n_factors": 1})
    told = [str(one.message) for one in caught if one.category is StdistWarning]
    assert [text.partition("]")[0] for text in told] == [
        "[control-wins",
        "[control-ties",
        "[control-permuted",
    ]
    assert set(told) <= set(Store(paths[0]).uns("siid")["notes"])
    page = html.unescape(write_report(run).read_text())
    assert "held out of a second fit beside this one" in page
    assert all(text in page for text in told)
    names = [
        stage.name for stage in stdist.plan("siid", paths[0], spots=paths[1], n_factors=4).stages
    ]
    assert "check.held_out" in names
    assert names[-1] == "write"


def test_genes_held_out_that_cells_do_not_have_are_no_answers(slides):
    mine, above = slides
    absent = list(mine.var_names[:12])
    entry, _, _ = fit(mine[:, 12:], above, held_out=absent, deconvolve=False)
    assert "held_out" not in entry
    assert len(entry["check"]) == 2
    assert not set(absent) & set(entry["check"].index)


@pytest.mark.parametrize(
    ("n_genes", "n_factors", "held", "fewer"),
    [(30, 28, 3, 27), (21, 19, 3, 18), (19, 4, 3, 4), (9, 4, 3, 4), (4, 2, 2, 2), (2, 1, 1, 1)],
)
def test_a_small_panel_has_one_too(slides, n_genes, n_factors, held, fewer):
    mine, above = slides
    options = {"n_factors": n_factors, "deconvolve": False}
    entry, _, _ = fit(mine[:, :n_genes], above, **options)
    table = entry["check"]
    assert len(table) == held
    assert {"siid", "B", "total", "permuted"} <= set(table)
    assert np.isfinite(table).all(axis=None)
    (note,) = (note for note in entry["notes"] if note.startswith("[checked]"))
    assert f"with {fewer} factors" in note


@pytest.mark.parametrize("n_genes", [2, 4, 12, 30])
def test_the_hold_out_that_is_named_can_be_run(slides, n_genes):
    mine, above = slides[0][:, :n_genes].copy(), slides[1]
    options = {**FAST, "deconvolve": False, "controls": False, "n_factors": min(12, n_genes)}
    stdist.tl.siid(mine, spots=above, **options)
    (note,) = (note for note in mine.uns["siid"]["notes"] if "[imputation-unscored]" in note)
    words = note.partition("--spots SPOTS ")[2].partition("`")[0].split()
    given = {name[2:].replace("-", "_"): int(value) for name, value in batched(words)}
    assert ("n_folds" in given) == (n_genes < 10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StdistWarning)
        found = stdist.tl.siid_holdout(
            mine, spots=above, n_restarts=1, n_solutions=1, passes=2, sample_cells=1024, **given
        )
    assert set(found.scores["gene"]) == set(mine.var_names)


def batched(words):
    return zip(words[::2], words[1::2], strict=True)


@pytest.mark.parametrize("slide", [0, 1])
def test_genes_without_which_nothing_is_counted_stay_in_the_panel(slides, slide):
    """The genes that would be drawn are the only ones with counts."""
    drawn = list(fit(*slides, deconvolve=False)[0]["check"].index)
    pair = [adata.copy() for adata in slides]
    counts = pair[slide].X.toarray()
    counts[:, ~pair[slide].var_names.isin(drawn)] = 0
    pair[slide].X = sparse.csr_matrix(counts)
    entry, _, _ = fit(*pair, deconvolve=False, n_factors=2)
    assert len(entry["check"]) == 3
    assert not set(drawn) & set(entry["check"].index)


def test_ties_are_seen_through_rounding():
    own = pd.Series([0.2, 0.4, 0.3])
    for shift, verdict in ((1e-9, "ties"), (-1e-9, "ties"), (0.01, "wins")):
        table = pd.DataFrame({"siid": own, "solution 0": own, "B": own + shift, "total": own - 0.1})
        assert held_out_notes(table)[1].startswith(f"[control-{verdict}]")
    table["B"] = own - 0.1
    assert len(held_out_notes(table)) == 1
    # one gene tells nothing, and others no more than they agree
    assert "[control-ties]" in held_out_notes(table[:1])[1]
    table["total"] = own - [0.2, -0.1, 0.0]
    assert "ties" in held_out_notes(table)[1]


@pytest.mark.parametrize("change", [{"controls": False}, {"n_factors": 1, "genes": 1}])
def test_without_controls_and_with_one_gene_a_note_names_the_hold_out(slides, change):
    mine, above = slides
    options = {name: value for name, value in change.items() if name != "genes"}
    entry, told, _ = fit(mine[:, : change.get("genes", 30)], above, deconvolve=False, **options)
    assert "check" not in entry
    assert not told
    assert any("[imputation-unscored]" in note for note in entry["notes"])
