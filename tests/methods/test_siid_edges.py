"""SIID with several spots per cell: one spot as before, any blocks, what it refuses."""

from __future__ import annotations

import warnings

import anndata
import numpy as np
import pytest

import stdist
from stdist.graph import InProcess, run_in_memory
from stdist.kernels.pair_simulation import pair_model
from stdist.kernels.spot_map import spots_within
from stdist.methods.data import AnnDataData
from stdist.methods.siid import SiidSpec, edges, spec
from stdist.methods.siid.edges import EdgeBound
from stdist.methods.siid.pair import Pair
from stdist.methods.siid.program import Bound
from stdist.store import InputError, StdistWarning, Store

FAST = {"n_factors": 4, "n_solutions": 1, "n_restarts": 2, "passes": 6, "sample_cells": 1024}
FAST["controls"] = False


def slide(counts, places):
    adata = anndata.AnnData(counts.astype(np.float32))
    adata.var_names = [f"g{g:02d}" for g in range(adata.n_vars)]
    adata.obsm["spatial"] = np.asarray(places, np.float64)
    return adata


@pytest.fixture(scope="module")
def slides():
    model = pair_model(n_cells=2200, n_genes=40, n_panel=34, n_types=4, mean_total=80.0, seed=2)
    order = np.random.default_rng(0).permutation(model.n_cells)
    cells, spots = model.cells(0, model.n_cells), model.spots(0, model.n_spots)
    truth = spots.type_total / spots.type_total.sum(axis=1, keepdims=True)
    mine = slide(cells.counts[order], cells.spatial[order])
    return mine, slide(spots.counts, spots.spatial), truth


def quietly(*arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StdistWarning)
        return stdist.tl.siid(*arguments, **options)


def test_with_one_spot_the_passes_are_those_of_whole_tiles(slides, monkeypatch):
    mine, above, _ = slides
    for module in (spec, edges):
        monkeypatch.setattr(module, "ROUNDS", 1)
    pair = Pair(AnnDataData(mine), AnnDataData(above), SiidSpec(**FAST, deconvolve=False))
    found = {}
    for bound in (Bound, EdgeBound):
        results = run_in_memory(bound(pair).program(), InProcess())
        found[bound] = results["uns/siid"]["factors"], results["obsm/siid"]
    (whole, loadings), (parts, apart) = found[Bound], found[EdgeBound]
    np.testing.assert_allclose(parts["loss"][:, :6], whole["loss"][:, :6], rtol=2e-6)
    # the one of whole tiles has made a pass more
    losses = parts["loss"].sum("slide").values[0]
    assert (np.diff(losses) < 0).all()
    assert np.corrcoef(loadings.ravel(), apart.ravel())[0, 1] > 0.999


def test_proportions_are_those_of_the_tissue(slides):
    mine, above, truth = slides
    fitted = mine.copy()
    quietly(
        fitted, spots=above, n_spots_per_cell=3, convergence_passes=60, entropy_passes=2, **FAST
    )
    factors = fitted.uns["siid"]["factors"]
    losses = factors["loss"].sum("slide").values[0]
    assert len(losses) == 18
    # a window of 102 passes, then three for each of the hardening
    assert 102 < len(factors["type_loss"]) - 3 * 2 <= 180
    assert losses[-1] < losses[0]
    soft = factors["spot_proportion"].values
    np.testing.assert_allclose(soft.sum(axis=1), 1.0)
    between = np.corrcoef(soft.T, truth.T)[:4, 4:]
    assert (between.max(axis=1) > 0.8).all()


def test_a_store_gives_the_same_for_any_blocks(slides, tmp_path, client):
    mine, above, _ = slides
    options = {**FAST, "passes": 1, "n_spots_per_cell": 3}
    options |= {"convergence_passes": 1, "entropy_passes": 1}
    expected = mine.copy()
    quietly(expected, spots=above, **options)
    paths = tmp_path / "cells.zarr", tmp_path / "spots.zarr"
    stdist.io.write(mine, paths[0])
    stdist.io.write(above, paths[1])
    quietly(paths[0], spots=paths[1], progress=False, client=client, block_length=1024, **options)
    stored, factors = anndata.read_zarr(paths[0]), expected.uns["siid"]["factors"]
    assert len(expected.obsm) == 8
    for key in set(expected.obsm) - {"spatial"}:
        np.testing.assert_array_equal(stored.obsm[key], expected.obsm[key])
    again = Store(paths[0]).uns("siid")["factors"]
    for name in ("profile", "loss", "spot_loading"):
        np.testing.assert_array_equal(np.asarray(again[name]), factors[name].values)


def test_sizes_of_cells_in_their_spots_are_those_of_the_fit(slides):
    mine, above, _ = slides
    fitted = mine.copy()
    options = {**FAST, "passes": 2, "n_spots_per_cell": 3, "n_solutions": 2}
    quietly(fitted, spots=above, convergence_passes=2, entropy_passes=1, **options)
    spot, size = fitted.obsm["siid_edge_spot"], fitted.obsm["siid_edge_size"]
    types = fitted.obsm["siid_types_edge_size"]
    edges = spots_within(mine.obsm["spatial"], above.obsm["spatial"], 3)
    lengths = (spot >= 0).sum(axis=1)
    np.testing.assert_array_equal(lengths, np.diff(edges.indptr))
    np.testing.assert_array_equal(spot[spot >= 0], edges.spot)
    np.testing.assert_array_equal(spot[:, 0], fitted.obs["siid_spot"])
    assert (lengths == 3).any()
    assert (lengths < 3).any()
    np.testing.assert_allclose(fitted.obsm["siid_spot_size"].mean(1), size.sum(1), rtol=1e-5)
    for sizes in (size, types):
        assert (sizes[spot < 0] == 0).all()
        assert (sizes[spot >= 0] > 0).mean() > 0.9
    loadings = np.zeros((above.n_obs, 4))
    for edge in range(3):
        known = spot[:, edge] >= 0
        load = types[known, edge, None] * fitted.obsm["siid_types"][known]
        np.add.at(loadings, spot[known, edge], load)
    factors = fitted.uns["siid"]["factors"]
    np.testing.assert_allclose(loadings, factors["spot_loading"].values, rtol=1e-4, atol=1e-4)
    p = fitted.obsm["siid"].reshape(-1, 2, 4)
    seen = (factors["profile"] * factors["platform"]).sum("gene").values  # of a unit of size
    explained = (p / p.sum(axis=2, keepdims=True) * seen).sum(axis=2).mean(axis=1)
    reached = np.unique(spot[spot >= 0])
    counts = above[reached, mine.var_names].X.sum()
    assert size.sum(axis=1) @ explained == pytest.approx(counts, rel=0.002)


def test_what_does_not_go_with_several_spots_is_refused(slides):
    mine, above, _ = slides
    with pytest.raises(InputError, match="n_spots_per_cell is 5"):
        stdist.tl.siid(mine.copy(), spots=above, n_spots_per_cell=5, **FAST)


def test_a_hold_out_scores_the_fit_with_several_spots(slides):
    """As the fit itself does; what the baselines know is the nearest spot."""
    mine, above, _ = slides
    fast = FAST | {"controls": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StdistWarning)
        found = {
            n_spots: stdist.tl.siid_holdout(
                mine.copy(), spots=above, n_spots_per_cell=n_spots, n_folds=8, folds=[2], **fast
            ).scores.pivot(index="gene", columns="method", values="r2")
            for n_spots in (1, 3)
        }
    several, fitted = found[3], mine.copy()
    options = {"held_out": list(several.index), "deconvolve": False, "n_spots_per_cell": 3}
    quietly(fitted, spots=above, **options, **fast)
    own = fitted.uns["siid"]["held_out"]
    for name in ("siid", "permuted", "B", "total"):
        np.testing.assert_allclose(several[name], own[name], rtol=1e-9, err_msg=name)
    fits = ["permuted", "siid"]
    assert several.drop(columns=fits).equals(found[1].drop(columns=fits))
    assert (several[fits] != found[1][fits]).all(axis=None)
    assert (several["siid"] != several["permuted"]).all()
