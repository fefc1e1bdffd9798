"""Choice of the number of passes: scores of a hold-out, for any blocks, after a kill, bad lists."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import stdist
from stdist.graph import InProcess, resume, start
from stdist.kernels.pair_simulation import pair_model
from stdist.methods.registry import build
from stdist.methods.siid import program as siid_program
from stdist.store import InputError, RunStopped, StdistWarning, Store
from tests.methods.test_siid_choose_factors import slides
from tests.methods.test_siid_holdout import Counted

pytestmark = pytest.mark.filterwarnings("ignore::stdist.store.StdistWarning")

FAST = {"n_factors": 4, "n_restarts": 2, "n_solutions": 2, "sample_cells": 1024}
PASSES = [1, 3, 4]


@pytest.fixture(scope="module")
def simulated():
    """About 2100 cells in shuffled rows, 40 genes of which the panel has 30."""
    model = pair_model(n_cells=2100, n_genes=40, n_panel=30, n_types=4, mean_total=60.0, seed=1)
    cells, spots = model.cells(0, model.n_cells), model.spots(0, model.n_spots)
    genes = [f"g{i:02d}" for i in range(40)]
    order = np.random.default_rng(0).permutation(model.n_cells)
    mine = slides(cells.counts[order], cells.spatial[order], genes[:30])
    return mine, slides(spots.counts, spots.spatial, genes)


@pytest.mark.parametrize(
    "options", [{}, {"updates_per_pass": 2}, {"n_spots_per_cell": 2}, {"spot_scale": "tied"}]
)
def test_scores_are_those_of_hold_outs_with_as_many_passes(simulated, options):
    mine, above = simulated
    mine, options = mine.copy(), {**FAST, **options, "n_folds": 5, "folds": [1, 3]}
    stdist.tl.siid_choose_passes(mine, spots=above, passes=PASSES, **options)
    found = mine.uns["siid_passes"]
    expected = []
    for passes in PASSES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", StdistWarning)
            scores = stdist.tl.siid_holdout(
                mine, spots=above, passes=passes, controls=False, key_added=None, **options
            ).scores
        expected.append(scores["r2"].to_numpy())
    mean, table = np.mean(expected, axis=1), found["table"]
    assert found["n_genes"] == len(expected[0]) == 12
    np.testing.assert_allclose(table["r2"], mean, rtol=1e-12)
    best = mean.argmax()
    assert found["passes"] == PASSES[best] == table["passes"][best]
    below = expected[best] - np.array(expected)
    np.testing.assert_allclose(table["below_best"], mean[best] - mean, atol=1e-12)
    np.testing.assert_allclose(
        table["standard_error"], below.std(axis=1) / np.sqrt(12), rtol=1e-9, atol=1e-15
    )


@pytest.mark.parametrize("options", [{}, {"n_spots_per_cell": 2}])
def test_controls_are_those_of_hold_outs_and_change_nothing(simulated, options):
    mine, above = simulated
    mine, options = mine.copy(), {**FAST, **options, "n_folds": 5, "folds": [1, 3]}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", StdistWarning)
        stdist.tl.siid_choose_passes(mine, spots=above, passes=PASSES, **options)
    found = mine.uns["siid_passes"]
    kept = {"spots": above, "passes": found["passes"], "key_added": None}
    several, one = (
        stdist.tl.siid_holdout(mine, **kept, **options | {"n_solutions": n}).scores for n in (2, 1)
    )
    of_gene = several.pivot(index="gene", columns="method", values="r2")
    of_gene["permuted"] = one[one["method"] == "permuted"].set_index("gene")["r2"]
    for name in ("siid", "B", "total", "permuted"):
        mean = found["held_out"][name]
        np.testing.assert_allclose(mean, of_gene[name][mean.index], rtol=1e-9)
    table = found["table"].set_index("passes").loc[found["passes"]]
    assert table["permuted_r2"] == pytest.approx(found["held_out"]["permuted"].mean())
    assert table["single_r2"] == pytest.approx(found["held_out"].filter(like="sol").mean(axis=None))
    assert "(B)" in next(note for note in found["notes"] if note.startswith("[held-out]"))
    assert not any("[held-out]" in str(one.message) for one in caught)
    stdist.tl.siid_choose_passes(
        mine, spots=above, passes=PASSES, controls=False, key_added="alone", **options
    )
    alone = mine.uns["alone"]["table"]
    assert alone.equals(found["table"].drop(columns="permuted_r2"))


def test_one_factor_is_told_to_be_no_better_than_the_total(simulated):
    mine, above = simulated
    mine, options = mine.copy(), {**FAST, "n_factors": 1, "folds": [0]}
    with pytest.warns(StdistWarning, match="control-wins"):
        stdist.tl.siid_choose_passes(mine, spots=above, passes=[2], **options)


def test_blocks_and_a_kill_change_nothing(simulated, tmp_path, monkeypatch):
    mine, above = simulated
    paths = [tmp_path / "cells.zarr", tmp_path / "spots.zarr"]
    for adata, path in zip((mine, above), paths, strict=True):
        stdist.io.write(adata, path)
    recorded = {
        **FAST,
        "passes": PASSES,
        "folds": [0, 2],
        "data": str(paths[0]),
        "spots": str(paths[1]),
    }
    by_default = build("siid_choose_passes", recorded | {"folds": None})
    assert by_default.parameters["folds"] == [6, 7, 8, 9]
    own = mine.copy()
    stdist.tl.siid_choose_passes(own, spots=above, passes=PASSES, folds=[0, 2], **FAST)
    expected = own.uns["siid_passes"]["table"].to_numpy()
    for length in (1024, 4096):
        start(
            build("siid_choose_passes", recorded), InProcess(), block_length=length, overwrite=True
        )
        found = Store(paths[0]).uns("siid_passes")["table"]
        np.testing.assert_array_equal(found.to_numpy(), expected)
    passes = Counted(siid_program.improve_tile)
    monkeypatch.setattr(siid_program, "improve_tile", passes)
    passes.last = 20  # past the first score
    recorded["key_added"] = "resumed"
    with pytest.raises(RunStopped):
        start(build("siid_choose_passes", recorded), InProcess(), block_length=1024, overwrite=True)
    resume(paths[0], build, InProcess())
    found = Store(paths[0]).uns("resumed")["table"]
    np.testing.assert_array_equal(found.to_numpy(), expected)


@pytest.mark.parametrize("wrong", [[], [0, 3], [5, 4], [2.5, 3], ["two"], 7, "25"])
def test_wrong_lists_are_refused(wrong):
    with pytest.raises(InputError, match="passes") as caught:
        stdist.tl.siid_choose_passes("absent.zarr", spots="absent.zarr", n_factors=3, passes=wrong)
    assert caught.value.code == "parameter-range"


def test_folds_that_are_none_are_refused(simulated):
    mine, above = simulated
    for wrong in ({"folds": [10]}, {"folds": 3}, {"folds": [1.7]}, {"n_folds": 1}):
        with pytest.raises(InputError, match="folds") as caught:
            stdist.tl.siid_choose_passes(mine, spots=above, **wrong, **FAST)
        assert caught.value.place == "siid_choose_passes"
