"""SIID's published optimiser as an option: its recorded run, any blocks, stores, refusals."""

from __future__ import annotations

import warnings

import anndata
import numpy as np
import pytest
from scipy import sparse
from scipy.special import softmax

import stdist
from stdist.graph import InProcess, start
from stdist.kernels.pair_simulation import pair_model
from stdist.methods.siid import adam, build_siid, pair_spec
from stdist.store import InputError, StdistWarning, Store

ADAM = {"solver": "adam", "n_factors": 4, "n_restarts": 3, "n_solutions": 2, "epochs": 8}
ADAM["controls"] = False


def slides(counts, places, genes):
    adata = anndata.AnnData(sparse.csr_matrix(counts))
    adata.var_names = genes
    adata.obsm["spatial"] = np.asarray(places, np.float64)
    return adata


@pytest.fixture(scope="module")
def simulated():
    """About 3000 cells in shuffled rows: several tiles."""
    model = pair_model(n_cells=3000, n_genes=40, n_panel=40, n_types=4, seed=1)
    cells, spots = model.cells(0, model.n_cells), model.spots(0, model.n_spots)
    genes = [f"g{i:02d}" for i in range(40)]
    order = np.random.default_rng(0).permutation(model.n_cells)
    mine = slides(cells.counts[order], cells.spatial[order], genes)
    return mine, slides(spots.counts, spots.spatial, genes)


def test_the_recorded_run_is_reproduced(shared, monkeypatch):
    golden = np.load(shared / "fixtures/siid/grad_refinit_adam200.npz")
    begun = np.column_stack([golden[f"theta_{key}"] for key in ("tP", "sx", "sv")])
    monkeypatch.setattr(adam, "start_cells", lambda numbers, *_: begun[numbers])
    factors = golden["theta_tQ"], golden["theta_psi"]
    monkeypatch.setattr(adam, "start_factors", lambda *_: factors)
    genes = np.array([f"g{i:02d}" for i in range(50)])
    mine = slides(golden["A_X"], golden["cell_xy_um"], genes[:40])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StdistWarning)
        stdist.tl.siid(
            mine,
            spots=slides(golden["A_V"], golden["spot_xy_um"], genes),
            solver="adam",
            n_factors=5,
            n_restarts=1,
            n_solutions=1,
            controls=False,
            learning_rate=float(golden["adam_lr"]),
            epochs=len(golden["adam_losses"]),
            held_out=list(genes[40:]),
        )
    np.testing.assert_array_equal(mine.obs["siid_spot"], golden["cell_spot"])
    found = mine.uns["siid"]["factors"]
    losses = found["loss"].isel(solution=0)
    np.testing.assert_allclose(losses.sum("slide"), golden["adam_losses"][:, 0], rtol=1e-6)
    np.testing.assert_allclose(losses.sel(slide="cells"), golden["adam_losses"][:, 1], rtol=1e-6)

    profile, platform = softmax(golden["after_tQ"], axis=1), np.exp(golden["after_psi"])
    np.testing.assert_allclose(found["profile"].values[0], profile, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found["platform"].values[0, :40], platform, rtol=1e-6)
    p = softmax(golden["after_tP"], axis=1)  # rows of cells are given in float32
    loadings = np.exp(golden["after_sx"])[:, None] * p
    np.testing.assert_allclose(mine.obsm["siid"], loadings, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mine.obsm["siid_types"], p, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["spot_proportion"].sum("type"), 1)


def test_blocks_change_nothing_and_the_best_runs_are_taken(simulated, tmp_path, monkeypatch):
    paths = [str(tmp_path / name) for name in ("cells.zarr", "spots.zarr")]
    for adata, path in zip(simulated, paths, strict=True):
        stdist.io.write(adata, path)
    names, found = ("obsm/siid", "obsm/siid_types"), []
    for length in (1024, 4096):
        start(build_siid(*paths, **ADAM), InProcess(), block_length=length, overwrite=True)
        store = Store(paths[0])
        found.append([store.element(name).read(0, store.n_obs) for name in names])
    mine, above = (adata.copy() for adata in simulated)
    stdist.tl.siid(mine, spots=above, **ADAM)
    found.append([mine.obsm["siid"], mine.obsm["siid_types"]])
    for other in found[1:]:
        for one, values in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(one, values)

    totals = mine.uns["siid"]["factors"]["loss"].sum("slide").values
    assert totals.shape == (2, 8)
    assert (np.diff(totals) < 0).all()
    monkeypatch.setattr(pair_spec, "MOST_STARTS", 1)  # run r of seed 0 begins as run 0 of seed r
    every = [fitted_loss(simulated, rng=rng) for rng in range(3)]
    np.testing.assert_array_equal(totals[:, -1], sorted(every)[:2])


def fitted_loss(pair, rng):
    mine, above = (adata.copy() for adata in pair)
    options = {**ADAM, "n_restarts": 1, "n_solutions": 1, "rng": rng, "deconvolve": False}
    stdist.tl.siid(mine, spots=above, **options)
    return float(mine.uns["siid"]["factors"]["loss"].sum("slide").values[0, -1])


def test_held_out_genes_are_scored_by_this_solver_too(simulated):
    mine, above = simulated
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StdistWarning)
        found = stdist.tl.siid_holdout(
            mine,
            spots=above,
            n_folds=5,
            folds=[3],
            **{**ADAM, "n_restarts": 1, "n_solutions": 1, "epochs": 200, "controls": True},
        )
    assert found.summary.loc["siid", "r2"] > found.summary.loc["total", "r2"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("solver", {"solver": "sgd"}),
        ("spots_model", {**ADAM, "spots_model": "negative_binomial"}),
        ("spot_scale", {**ADAM, "spot_scale": "tied"}),
        ("passes", {**ADAM, "passes": 10}),
        ("learning_rate", {"learning_rate": 0.01}),
        ("epochs", {**ADAM, "epochs": 1}),
        ("entropy_schedule", {**ADAM, "epochs": 5001, "entropy_schedule": 5.0}),
    ],
)
def test_options_of_the_other_solver_are_refused(simulated, name, options):
    mine, above = simulated
    with pytest.raises(InputError, match=name) as caught:
        stdist.tl.siid(mine, spots=above, **{"n_factors": 4, **options})
    assert caught.value.code == "parameter-range"


def test_a_run_that_diverges_is_refused(simulated):
    mine, above = (adata.copy() for adata in simulated)
    with np.errstate(all="ignore"), pytest.raises(InputError, match="learning_rate"):
        stdist.tl.siid(mine, spots=above, **{**ADAM, "learning_rate": 900.0})
    assert "siid" not in mine.uns
