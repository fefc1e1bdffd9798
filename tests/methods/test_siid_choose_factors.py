"""Choice of the number of factors: right on simulations, the same for any blocks, bad lists."""

from __future__ import annotations

import anndata
import numpy as np
import pytest
from scipy import sparse

import stdist
from stdist.graph import InProcess, start
from stdist.kernels.pair_simulation import pair_model
from stdist.methods.registry import build
from stdist.store import InputError, StdistWarning, Store

pytestmark = pytest.mark.filterwarnings("ignore::stdist.store.StdistWarning")


def slides(counts, places, genes):
    adata = anndata.AnnData(sparse.csr_matrix(counts))
    adata.var_names = genes
    adata.obsm["spatial"] = np.asarray(places, np.float64)
    return adata


@pytest.mark.parametrize("rng", [0, 1])
def test_the_number_of_types_is_found(shared, rng):
    data = np.load(shared / "fixtures/siid/dataset_tiny.npz")
    genes = [f"g{i:02d}" for i in range(data["A_X"].shape[1])]
    mine = slides(data["A_X"], data["cell_xy_um"], genes)
    above = slides(data["A_V"], data["spot_xy_um"], genes)
    stdist.tl.siid_choose_factors(mine, spots=above, n_factors=list(range(2, 9)), rng=rng)
    found = mine.uns["siid_factors"]
    assert abs(found["n_factors"] - data["true_profiles"].shape[0]) <= 1
    table = found["table"].set_index("n_factors")
    assert table["loss"].is_monotonic_decreasing  # of the fit's own molecules: no choice
    assert table["above_best"].loc[2] > 5 * table["standard_error"].loc[2]


def test_a_choice_at_the_edge_is_warned_of(shared):
    data = np.load(shared / "fixtures/siid/dataset_tiny.npz")
    genes = [f"g{i:02d}" for i in range(data["A_X"].shape[1])]
    mine = slides(data["A_X"], data["cell_xy_um"], genes)
    above = slides(data["A_V"], data["spot_xy_um"], genes)
    with pytest.warns(StdistWarning, match="choice-at-edge. 3 is the last number of factors"):
        stdist.tl.siid_choose_factors(mine, spots=above, n_factors=[2, 3], n_restarts=1)


def test_blocks_change_nothing(tmp_path):
    model = pair_model(n_cells=2100, n_genes=40, n_panel=30, n_types=4, mean_total=60.0, seed=1)
    cells, spots = model.cells(0, model.n_cells), model.spots(0, model.n_spots)
    genes = [f"g{i:02d}" for i in range(40)]
    order = np.random.default_rng(0).permutation(model.n_cells)
    mine = slides(cells.counts[order], cells.spatial[order], genes[:30])
    above = slides(spots.counts, spots.spatial, genes)
    paths = [tmp_path / "cells.zarr", tmp_path / "spots.zarr"]
    for adata, path in zip((mine, above), paths, strict=True):
        stdist.io.write(adata, path)
    fast = {"n_factors": [2, 4, 6], "n_restarts": 2, "sample_cells": 1024}
    stdist.tl.siid_choose_factors(mine, spots=above, **fast)
    expected = mine.uns["siid_factors"]["table"]
    recorded = {**fast, "data": str(paths[0]), "spots": str(paths[1]),
                "key_added": "siid_factors"}  # fmt: skip
    for length in (1024, 4096):
        program = build("siid_choose_factors", recorded)
        start(program, InProcess(), block_length=length, overwrite=True)
        found = Store(paths[0]).uns("siid_factors")
        np.testing.assert_array_equal(found["table"].to_numpy(), expected.to_numpy())
        assert found["n_factors"] == mine.uns["siid_factors"]["n_factors"] == 4


@pytest.mark.parametrize("wrong", [[], [0, 3], [5, 4], [3, 3], [2.5, 3], ["two"], 7, "25"])
def test_wrong_lists_are_refused(wrong):
    with pytest.raises(InputError, match="n_factors") as caught:
        stdist.tl.siid_choose_factors("absent.zarr", spots="absent.zarr", n_factors=wrong)
    assert caught.value.code == "parameter-range"
