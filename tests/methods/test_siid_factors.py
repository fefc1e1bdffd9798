"""Factors of a fit by name: what the model says of counts, spots and imputation."""

from __future__ import annotations

import warnings

import anndata
import numpy as np
import pytest
import xarray as xr

import stdist
from stdist.kernels.pair_simulation import pair_model
from stdist.store import InputError, StdistWarning, Store

FAST = {"n_factors": 4, "n_restarts": 2, "n_solutions": 2, "passes": 4, "sample_cells": 1024}
FAST |= {"convergence_passes": 5, "entropy_passes": 3, "controls": False}


@pytest.fixture(scope="module")
def slides():
    """Some cells have no spot."""
    model = pair_model(n_cells=2600, n_genes=40, n_types=4, seed=1)
    order = np.random.default_rng(0).permutation(model.n_cells)
    cells, spots = model.cells(0, model.n_cells), model.spots(0, model.n_spots)
    found = []
    for slide, rows in ((cells, order), (spots, np.arange(4, model.n_spots))):
        adata = anndata.AnnData(slide.counts[rows])
        adata.var_names = [f"g{number:02d}" for number in range(adata.n_vars)]
        adata.obsm["spatial"] = np.asarray(slide.spatial[rows], np.float64)
        found.append(adata)
    return found


def fit(mine, above, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StdistWarning)
        stdist.tl.siid(mine, spots=above, progress=False, **FAST, **options)


@pytest.mark.parametrize("options", [{}, {"spots_model": "negative_binomial"},
                                     {"n_spots_per_cell": 3}])  # fmt: skip
def test_they_are_those_of_the_model(slides, options):
    mine, above = slides[0].copy(), slides[1]
    fit(mine, above, held_out=["g05", "g22"], **options)
    found, kept = stdist.tl.siid_factors(mine), mine.uns["siid"]["factors"]
    assert dict(found.sizes) == {"cell": 2600, "solution": 2, "factor": 4, "gene": 40, "type": 4}
    for name, dim in (("P", "factor"), ("Q", "gene"), ("type_P", "type"), ("type_Q", "gene")):
        np.testing.assert_allclose(found[name].sum(dim), 1.0, rtol=1e-5)
    imputed = (found["n"] * found["P"]).dot(found["Q"], dim="factor").mean("solution")
    product = mine.obsm["siid"] @ kept["profile"].values.reshape(8, 40)
    np.testing.assert_allclose(imputed.transpose("cell", "gene"), product, rtol=1e-4)
    spot = mine.obs["siid_spot"].to_numpy()
    assert (spot < 0).any()
    for name in ("m", "type_m"):
        assert not found[name].values[spot < 0].any()
    # EM makes the totals of both slides those of Poisson counts
    inside = found["in_panel"]
    panel = list(found["gene"].values[inside])
    counted = (found["n"] * found["P"]).sum("cell").dot(found["Q"].where(inside, 0), dim="factor")
    np.testing.assert_allclose(counted.sum("gene"), mine[:, panel].X.sum(), rtol=0.02)
    if "spots_model" not in options:
        mapped = above.X[np.unique(mine.obsm.get("siid_edge_spot", spot))[1:]].sum()
        seen = (found["m"] * found["P"]).sum("cell").dot(found["Q"] * found["phi"], dim="factor")
        np.testing.assert_allclose(seen.sum("gene"), mapped, rtol=0.02)
    if "n_spots_per_cell" in options:
        return
    loadings = np.zeros((above.n_obs, 4))
    mine_of = (found["type_m"] * found["type_P"]).transpose("cell", "type").values
    np.add.at(loadings, spot[spot >= 0], mine_of[spot >= 0])
    np.testing.assert_allclose(loadings, kept["spot_loading"].values, rtol=1e-4, atol=1e-4)


def test_of_a_store_they_are_lazy_and_the_same(slides, tmp_path):
    mine, above = slides[0].copy(), slides[1]
    fit(mine, above)
    paths = tmp_path / "cells.zarr", tmp_path / "spots.zarr"
    for adata, path in zip(slides, paths, strict=True):
        stdist.io.write(adata, path)
    fit(*map(str, paths))
    expected = stdist.tl.siid_factors(mine)
    for data in (paths[0], stdist.io.open(paths[0])):
        found = stdist.tl.siid_factors(data)
        assert found["P"].chunks is not None
        for name in expected.variables:
            np.testing.assert_array_equal(found[name].values, expected[name].values)
    with pytest.raises(InputError, match="no factors"):
        stdist.tl.siid_factors(paths[0], key="other")
    assert "siid_types_size" in Store(paths[0]).keys("obsm")
    on_disk = xr.open_zarr(paths[0], group="uns/siid/factors", consolidated=False)
    assert on_disk["profile"].dims == ("solution", "factor", "gene")
    np.testing.assert_array_equal(on_disk["profile"], expected["Q"])
    np.testing.assert_array_equal(on_disk["platform"], expected["phi"])
