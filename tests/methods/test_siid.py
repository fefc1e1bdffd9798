"""SIID on simulations and stores: quality, the same for any blocks, resumable, clear refusals."""

from __future__ import annotations

import json
import shutil
import warnings
from functools import partial

import anndata
import numpy as np
import pytest
from scipy import sparse

import stdist
from stdist.graph import InProcess, RunRecord, resume, start, unfinished
from stdist.kernels.imputation_scores import gene_scores, matched_js, score_sums
from stdist.kernels.pair_simulation import pair_model
from stdist.methods.registry import build
from stdist.methods.siid import align_program, build_siid
from stdist.methods.siid import fit as fitting
from stdist.methods.siid import program as siid_program
from stdist.store import InputError, RunStopped, StdistWarning, Store, verify

FAST = {
    "n_factors": 4,
    "n_restarts": 2,
    "n_solutions": 2,
    "passes": 4,
    "convergence_passes": 6,
    "entropy_passes": 3,
    "sample_cells": 1024,
    "controls": False,
}


def slides(counts, places, genes):
    adata = anndata.AnnData(counts)
    adata.var_names = genes
    adata.obsm["spatial"] = np.asarray(places, np.float64)
    return adata


@pytest.fixture(scope="module")
def simulated():
    """About 3000 cells in shuffled rows, 60 genes of which 40 in the panel, spots of 100 um."""
    model = pair_model(n_cells=3000, n_genes=60, n_panel=40, n_types=4, seed=1)
    cells, spots = model.cells(0, model.n_cells), model.spots(0, model.n_spots)
    genes = [f"g{i:02d}" for i in range(60)]
    order = np.random.default_rng(0).permutation(model.n_cells)
    mine = slides(cells.counts[order], cells.spatial[order], genes[:40])
    return mine, slides(spots.counts, spots.spatial, genes)


@pytest.fixture
def stores(simulated, tmp_path):
    paths = tmp_path / "cells.zarr", tmp_path / "spots.zarr"
    for adata, path in zip(simulated, paths, strict=True):
        stdist.io.write(adata, path)
    return paths


def elements(path):
    store = Store(path)
    names = "obsm/siid", "obsm/siid_types", "obs/siid_spot"
    return {name: store.element(name).read(0, store.n_obs) for name in names}


def test_blocks_change_nothing(stores, simulated):
    cells, spots = stores
    options = FAST | {"held_out": ["g03", "g17", "g55"], "controls": True}  # the cells have no g55
    found, scores = [], []
    for length in (1024, 4096):
        start(build_siid(str(cells), str(spots), **options), InProcess(), block_length=length,
              overwrite=True)  # fmt: skip
        found.append(elements(cells))
        scores.append(Store(cells).uns("siid")["held_out"])
    for name in found[0]:
        np.testing.assert_array_equal(found[0][name], found[1][name])
    assert list(scores[0].index) == ["g03", "g17"]
    assert scores[0].equals(scores[1])
    mine, above = (adata.copy() for adata in simulated)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StdistWarning)  # a fit this short may beat nothing
        stdist.tl.siid(mine, spots=above, **options)
    np.testing.assert_array_equal(mine.obsm["siid"], found[0]["obsm/siid"])
    np.testing.assert_array_equal(mine.uns["siid"]["held_out"], scores[0])
    assert not list(verify.verify(cells)[0])
    factors = Store(cells).uns("siid")
    assert "factors" in factors


def test_on_a_cluster_the_same(stores, client, tmp_path):
    cells, spots = stores
    other = tmp_path / "other.zarr"
    shutil.copytree(cells, other)
    start(build_siid(str(other), str(spots), **FAST), InProcess(), block_length=1024)
    stdist.tl.siid(cells, spots=spots, client=client, progress=False, **FAST)
    for name, values in elements(other).items():
        np.testing.assert_array_equal(elements(cells)[name], values)


def dying(program, calls):
    """A program that is killed in a pass, on its so many-th tile."""
    kernel, done = fitting.improve_tile, []

    def dies(rows, **arguments):
        done.append(rows)
        if len(done) == calls:
            raise KeyboardInterrupt
        return kernel(rows, **arguments)

    for stage in program.block_stages():
        if stage.kernel is kernel:
            object.__setattr__(stage, "kernel", dies)
    return program


def test_a_run_stopped_in_its_passes_is_resumed(stores, tmp_path, monkeypatch):
    cells, spots = stores
    other = tmp_path / "other.zarr"
    shutil.copytree(cells, other)
    start(build_siid(str(other), str(spots), **FAST), InProcess(), block_length=1024)
    broken = dying(build_siid(str(cells), str(spots), **FAST), 20)
    with pytest.raises(RunStopped):
        start(broken, InProcess(), block_length=1024)
    assert len(unfinished(cells)) == 1
    resume(cells, build, InProcess())
    for name, values in elements(other).items():
        np.testing.assert_array_equal(elements(cells)[name], values)


def test_without_a_number_of_factors_the_default_is_taken_and_said(stores):
    cells, spots = map(str, stores)
    fast = {name: value for name, value in FAST.items() if name != "n_factors"}
    with pytest.warns(StdistWarning, match="factors-default.* 20"):
        found = stdist.plan("siid", cells, spots=spots, **fast)
    assert found.program == "siid"
    with pytest.warns(StdistWarning, match="factors-default"):
        folder = stdist.tl.siid(cells, spots=spots, progress=False, **fast)
    assert stdist.tl.siid_factors(cells).sizes["factor"] == 20
    assert Store(cells).uns("siid")["params"]["n_factors"] == 20
    assert RunRecord(folder).read_json("run.json")["parameters"]["n_factors"] == 20
    with pytest.warns(StdistWarning, match="factors-default"):
        stdist.plan("siid_holdout", cells, spots=spots, **fast)


def test_genes_outside_the_panel_are_imputed(simulated):
    mine, above = (adata.copy() for adata in simulated)
    stdist.tl.siid(mine, spots=above, **{**FAST, "passes": 15}, deconvolve=False,
                   held_out=list(mine.var_names[:8]))  # fmt: skip
    factors = mine.uns["siid"]["factors"]
    held = ~factors["in_panel"].values
    assert list(factors["gene"].values[held]) == list(mine.var_names[:8])
    profile = factors["profile"].values.reshape(-1, factors.sizes["gene"])[:, held]
    scores = gene_scores(score_sums(mine.X[:, :8], mine.obsm["siid"] @ profile))
    assert scores["r2"].mean() > 0.1


def test_profiles_are_drawn_together_where_genes_are_imputed_only(simulated):
    found = []
    for shrink in (True, False):
        mine, above = (adata.copy() for adata in simulated)
        stdist.tl.siid(mine, spots=above, **FAST, shrink=shrink, held_out=list(mine.var_names[:8]))
        factors = mine.uns["siid"]["factors"]
        outside = ~factors["in_panel"].values
        profiles = factors["profile"].values[:, :, outside]
        found.append((profiles.var(axis=1).mean(), mine.obsm["siid_types"]))
    assert found[0][0] < found[1][0]
    np.testing.assert_array_equal(found[0][1], found[1][1])


def simulation(shared, name="sim_h8"):
    data = np.load(shared / f"fixtures/siid/dataset_{name}.npz")
    genes = [f"g{number}" for number in range(data["A_X"].shape[1])]
    mine = slides(sparse.csr_matrix(data["A_X"]), data["cell_xy_um"], genes)
    return data, mine, slides(sparse.csr_matrix(data["A_V"]), data["spot_xy_um"], genes)


def test_deconvolution_of_the_simulation(shared):
    data, mine, above = simulation(shared)
    stdist.tl.siid(mine, spots=above, n_factors=8, controls=False)
    np.testing.assert_array_equal(mine.obs["siid_spot"], data["cell_spot"])
    truth = data["true_spot_umi_by_type"] / data["true_spot_umi_by_type"].sum(1, keepdims=True)
    factors = mine.uns["siid"]["factors"]
    soft, _ = matched_js(truth, factors["spot_proportion"].values)
    assert np.nanmean(soft) <= 0.006  # the reference's best of three: 0.036
    kind = mine.obsm["siid_types"].argmax(axis=1)
    shares = np.zeros((8, 8))
    np.add.at(shares, (kind, data["true_type"]), 1)
    assert shares.max(axis=1).sum() / len(kind) > 0.98


def test_deconvolution_is_that_of_the_reference_where_it_converges(shared):
    data, mine, above = simulation(shared, "tiny")
    stdist.tl.siid(mine, spots=above, n_factors=5, n_solutions=1, passes=1)
    truth = data["true_spot_umi_by_type"] / data["true_spot_umi_by_type"].sum(1, keepdims=True)
    soft, _ = matched_js(truth, mine.uns["siid"]["factors"]["spot_proportion"].values)
    path = shared / "fixtures/siid/dataset_tiny_reference_metrics.json"
    recorded = json.loads(path.read_text())
    runs = [run for run in recorded["reference"]["deconv"] if run["lr"] == 0.05]
    lowest = min(runs, key=lambda run: run["final_total"])
    assert np.nanmean(soft) <= 1.1 * lowest["js"]


@pytest.mark.slow
def test_imputation_of_the_simulation(shared):
    scores = []
    for fold in range(4):
        data, mine, above = simulation(shared)
        chosen = data["fold_of_gene"] == fold
        stdist.tl.siid(mine, spots=above, n_factors=8, deconvolve=False, controls=False,
                       held_out=list(mine.var_names[chosen]))  # fmt: skip
        factors = mine.uns["siid"]["factors"]
        held = ~factors["in_panel"].values
        profile = factors["profile"].values.reshape(-1, factors.sizes["gene"])[:, held]
        found = gene_scores(score_sums(data["A_X"][:, chosen], mine.obsm["siid"] @ profile))
        scores.append(found["r2"].mean())
    assert np.mean(scores) >= 0.495  # the reference, one run each: 0.482


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("genes-not-shared", lambda mine, above: setattr(above, "var_names", [
            f"x{i}" for i in range(above.n_vars)])),
        ("cells-unmapped", lambda mine, above: above.obsm.update(
            spatial=above.obsm["spatial"] + 1e6)),
        ("spatial-nonfinite", lambda mine, above: mine.obsm["spatial"].__setitem__((3, 0), np.nan)),
        ("spot-crowded", lambda mine, above: above.obsm.update(
            spatial=above.obsm["spatial"] * 1e-3)),
    ],
)  # fmt: skip
def test_what_cannot_be_a_pair_is_refused_before_it_runs(simulated, code, change):
    mine, above = (adata.copy() for adata in simulated)
    change(mine, above)
    with pytest.raises(InputError) as caught:
        stdist.tl.siid(
            mine, spots=above, **{**FAST, "max_distance": 1e4 if "crowd" in code else 100}
        )
    assert caught.value.code == code


@pytest.mark.parametrize("slide", ["cells", "spots"])
@pytest.mark.parametrize("kept", ["nothing", "others", "zeros"])
def test_a_slide_without_a_count_to_fit_is_refused_before_any_fit(
    simulated, monkeypatch, slide, kept
):
    """None at all, of genes that are not shared only, or zeros that are stored."""
    monkeypatch.setattr(siid_program, "restart", pytest.fail)
    monkeypatch.setattr(align_program, "align", pytest.fail)
    mine, above = (adata.copy() for adata in simulated)
    changed = {"cells": mine, "spots": above}[slide]
    if kept == "zeros":
        changed.X.data[:] = 0
    elif kept == "others" and slide == "spots":
        changed.X = sparse.csr_matrix(changed.X.multiply(np.arange(60) >= 40))
    elif kept == "others":
        changed.X = sparse.csr_matrix(changed.X.multiply(np.arange(40) < 4))
        above.var_names = [f"x{i}" if i < 4 else f"g{i:02d}" for i in range(60)]
    else:
        changed.X = sparse.csr_matrix(changed.shape, dtype=np.float32)
    calls = [
        partial(stdist.tl.siid, **FAST),
        partial(stdist.tl.siid, **{**FAST, "n_spots_per_cell": 2}),
        partial(stdist.tl.siid_holdout, n_factors=4, n_folds=4, sample_cells=1024),
        partial(stdist.tl.siid_choose_factors, n_factors=[2, 3]),
        partial(stdist.tl.siid_align, n_factors=2, n_starts=1),
    ]
    for call in calls:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", StdistWarning)
            with pytest.raises(InputError, match=f"the {slide} have no count of the") as caught:
                call(mine, spots=above)
        assert caught.value.code == "counts-none"


@pytest.mark.parametrize(("code", "value"), [("fractional", 0.5), ("negative", -1.0)])
def test_a_late_row_that_holds_no_count_is_refused_before_any_fit(
    simulated, monkeypatch, code, value
):
    monkeypatch.setattr(siid_program, "restart", pytest.fail)
    mine, above = (adata.copy() for adata in simulated)
    mine.X = mine.X.astype(np.float64)
    row = 2500
    mine.X.data[mine.X.indptr[row]] = value
    with pytest.raises(InputError, match=f"row {row}") as caught:
        stdist.tl.siid(mine, spots=above, **FAST)
    assert caught.value.code == f"counts-{code}"
    assert caught.value.place.endswith("of the cells")


@pytest.mark.parametrize(("code", "value"), [("fractional", 0.5), ("negative", -1.0)])
def test_what_are_no_counts_is_refused(simulated, code, value):
    mine, above = (adata.copy() for adata in simulated)
    above.X = above.X.astype(np.float64)
    above.X.data[5] = value
    with pytest.raises(InputError) as caught:
        stdist.tl.siid(mine, spots=above, **FAST)
    assert caught.value.code == f"counts-{code}"
    with pytest.raises(InputError, match="n_factors"):
        stdist.tl.siid(mine, spots=above, **{**FAST, "n_factors": 0})
