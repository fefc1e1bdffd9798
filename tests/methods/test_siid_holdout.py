"""Scores of held-out genes: the recorded baselines, the same for any blocks, honest controls."""

from __future__ import annotations

import json
import warnings
from functools import partial

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.special import rel_entr

import stdist
from stdist.graph import InProcess, make_plan, resume, unfinished
from stdist.graph.executors import Resources
from stdist.graph.status import describe_runs
from stdist.kernels.imputation_scores import matched_js
from stdist.kernels.pair_simulation import pair_model
from stdist.methods.registry import build
from stdist.methods.siid import holdout_program
from stdist.methods.siid import program as siid_program
from stdist.methods.siid.holdout_results import kept_tables
from stdist.store import InputError, PlanRefused, RunStopped, Staging, StdistWarning, Store, verify

FAST = {"n_factors": 4, "n_restarts": 2, "n_solutions": 2, "passes": 3, "sample_cells": 1024}


def slides(counts, places, genes):
    adata = anndata.AnnData(counts)
    adata.var_names = genes
    adata.obsm["spatial"] = np.asarray(places, np.float64)
    return adata


@pytest.fixture(scope="module")
def simulated():
    """About 3000 cells in shuffled rows, 40 genes, spots of 100 um."""
    model = pair_model(n_cells=3000, n_genes=40, n_panel=40, n_types=4, mean_total=60.0, seed=1)
    cells, spots = model.cells(0, model.n_cells), model.spots(0, model.n_spots)
    genes = [f"g{i:02d}" for i in range(40)]
    order = np.random.default_rng(0).permutation(model.n_cells)
    mine = slides(cells.counts[order], cells.spatial[order], genes)
    return mine, slides(spots.counts, spots.spatial, genes)


def quietly(*arguments, key_added=None, **options):
    options["key_added"] = key_added
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StdistWarning)
        return stdist.tl.siid_holdout(*arguments, **options)


def recorded_pair(shared, name):
    data = np.load(shared / f"fixtures/siid/dataset_{name}.npz")
    genes = [f"g{i:02d}" for i in range(data["A_X"].shape[1])]
    mine = slides(sparse.csr_matrix(data["A_X"]), data["cell_xy_um"], genes)
    above = slides(sparse.csr_matrix(data["A_V"]), data["spot_xy_um"], genes)
    return mine, above, dict(zip(genes, data["fold_of_gene"], strict=True))


def test_baselines_are_those_recorded(shared):
    file = shared / "fixtures/siid/dataset_tiny_reference_metrics.json"
    recorded = json.loads(file.read_text())["baselines"]
    mine, above, fold_of_gene = recorded_pair(shared, "tiny")
    found = quietly(mine, spots=above, fold_of_gene=fold_of_gene, folds=[0, 3], **FAST)
    means = found.scores.groupby(["fold", "method"])["r2"].mean()
    for fold in (0, 3):
        for name, r2 in recorded[str(fold)].items():
            method = name.replace("_ex", "_expression").replace("_sp", "_space")
            assert means[fold, method] == pytest.approx(r2, abs=1e-8), (fold, name)


def test_scores_are_those_of_the_imputed_matrix(simulated):
    mine, above = simulated
    found = quietly(mine, spots=above, n_folds=5, folds=[3], **FAST)
    scores = {name: table.set_index("gene") for name, table in found.scores.groupby("method")}
    genes = list(scores["siid"].index)
    assert len(genes) == 8

    fitted = mine.copy()
    stdist.tl.siid(fitted, spots=above, held_out=genes, deconvolve=False, **FAST)
    own = fitted.uns["siid"]["held_out"]  # what the fit itself says of these genes
    assert list(own.columns) == ["siid", "solution 0", "solution 1", "B", "total", "permuted"]
    for method in ("siid", "B", "total"):
        np.testing.assert_allclose(own[method], scores[method]["r2"], rtol=1e-9, err_msg=method)
    alone = quietly(mine, spots=above, n_folds=5, folds=[3], **FAST | {"n_solutions": 1})
    permuted = alone.scores.query("method == 'permuted'").set_index("gene")["r2"]
    np.testing.assert_allclose(own["permuted"], permuted, rtol=1e-9)
    single = own.filter(like="solution").mean()
    spread = found.summary.loc["siid", "seed_range"]
    assert single.max() - single.min() == pytest.approx(spread)
    note = fitted.uns["siid"]["notes"][0]
    assert f"imputed {own['siid'].mean():.4f}" in note
    assert f"{permuted.mean():.4f} with the spots permuted" in note
    without = mine.copy()
    options = {"held_out": genes, "deconvolve": False, "controls": False, **FAST}
    stdist.tl.siid(without, spots=above, **options)
    assert without.uns["siid"]["held_out"].equals(own.drop(columns="permuted"))
    factors = fitted.uns["siid"]["factors"]
    profile = factors["profile"].sel(gene=genes).values.reshape(-1, len(genes))
    counts = mine[:, genes].X.toarray().astype(float)
    means = fitted.obsm["siid"] @ profile
    n = len(means)
    pearson = np.array([np.corrcoef(x, y)[0, 1] for x, y in zip(counts.T, means.T, strict=True)])
    z = [(x - x.mean(axis=0)) / x.std(axis=0) for x in (counts, means)]
    p, q = (x / x.sum(axis=0) for x in (counts, means))
    middle = (p + q) / 2
    js = 0.5 * (rel_entr(p, middle) + rel_entr(q, middle)).sum(axis=0)
    p, q = ((x + 1e-10) / (x + 1e-10).sum(axis=0) for x in (counts, means))
    x, y = counts / counts.max(axis=0), means / means.max(axis=0)
    mx, my, covariance = x.mean(0), y.mean(0), ((x - x.mean(0)) * (y - y.mean(0))).sum(0) / (n - 1)
    direct = {
        "r2": pearson**2,
        "pearson": pearson,
        "rmse": np.sqrt(((z[0] - z[1]) ** 2).mean(axis=0)),
        "js": js,
        "symmetrised_kl": 0.5 * ((p - q) * np.log(p / q)).sum(axis=0),
        "ssim": (2 * mx * my + 1e-4) / (mx**2 + my**2 + 1e-4)
        * (2 * covariance + 9e-4) / (x.var(axis=0) + y.var(axis=0) + 9e-4),
    }  # fmt: skip
    for name, expected in direct.items():
        np.testing.assert_allclose(scores["siid"][name], expected, rtol=1e-5, err_msg=name)
    assert found.summary.loc["siid", "r2"] == pytest.approx(direct["r2"].mean(), rel=1e-5)


@pytest.mark.parametrize("n_spots_per_cell", [1, 2])
def test_types_are_compared_with_those_that_are_known(simulated, n_spots_per_cell):
    mine, above = simulated[0].copy(), simulated[1].copy()
    model = pair_model(n_cells=3000, n_genes=40, n_panel=40, n_types=4, mean_total=60.0, seed=1)
    above.obsm["known"] = model.spots(0, model.n_spots).type_total
    above.obsm["known"][5] = 0
    options = {**FAST, "entropy_passes": 5, "convergence_passes": 40}
    options["n_spots_per_cell"] = n_spots_per_cell
    folds = {"n_folds": 5, "folds": [3]}
    above.obsm["known"] = sparse.csr_matrix(above.obsm["known"])
    found = quietly(mine, spots=above, proportions="known", **options, **folds)
    above.obsm["known"] = above.obsm["known"].toarray()
    without = quietly(mine, spots=above, **options, **folds)
    pd.testing.assert_frame_equal(found.scores, without.scores)
    assert without.types is None
    genes = list(found.scores["gene"].unique())
    stdist.tl.siid(mine, spots=above, held_out=genes, controls=False, **options)
    factors = mine.uns["siid"]["factors"]
    assert list(found.types["assignment"]) == ["soft", "hard"]
    for row, kind in enumerate(("spot_proportion", "spot_proportion_hard")):
        js, _ = matched_js(above.obsm["known"], factors[kind].values)
        assert np.isnan(js[5])
        assert found.types["js"][row] == pytest.approx(np.nanmean(js), rel=1e-6)
        assert found.types["n_spots"][row] == np.isfinite(js).sum()
    assert found.types["js"].max() < 0.2


@pytest.mark.parametrize(
    "wrong", [np.full((1, 4), -1.0), np.full((1, 2), "a"), np.zeros((1, 4)), np.ones((1, 1))]
)
def test_known_proportions_that_are_none_are_refused(simulated, wrong):
    mine, above = simulated[0], simulated[1].copy()
    above.obsm["known"] = np.repeat(wrong, above.n_obs, axis=0)
    with pytest.raises(InputError, match="known") as caught:
        quietly(mine, spots=above, proportions="known", **FAST)
    assert caught.value.code.startswith("proportions-")


def test_a_store_gives_the_same_for_any_blocks_and_is_left_alone(simulated, tmp_path, client):
    mine, above = simulated
    chosen = {**FAST, "n_folds": 4, "folds": [2], "passes": 1}
    expected = quietly(mine, spots=above, **chosen)
    paths = tmp_path / "cells.zarr", tmp_path / "spots.zarr"
    for adata, path in zip(simulated, paths, strict=True):
        stdist.io.write(adata, path)
    before = sorted(tmp_path.rglob("*"))
    for options in ({"block_length": 4096}, {"block_length": 1024, "client": client}):
        found = quietly(paths[0], spots=paths[1], progress=False, **chosen, **options)
        pd.testing.assert_frame_equal(found.scores, expected.scores, check_exact=True)
        pd.testing.assert_frame_equal(found.summary, expected.summary, check_exact=True)
        assert found.notes == expected.notes
    wrong = above.copy()
    wrong.X = wrong.X.astype(np.float32)
    wrong.X.data[5] = 0.5
    with pytest.raises(InputError, match="counts-fractional"):
        quietly(paths[0], spots=wrong, progress=False, **chosen)
    assert sorted(tmp_path.rglob("*")) == before


def test_positions_contribute_to_the_simulation(simulated):
    """Little, because every cell has a size of its own among the counts of its spot."""
    mine, above = simulated
    found = quietly(
        mine,
        spots=above,
        n_folds=4,
        folds=[0, 1],
        n_factors=4,
        n_restarts=4,
        n_solutions=3,
        passes=15,
    )
    permuted = found.summary.loc["permuted"]
    assert permuted["advantage"] > 0.005
    assert permuted["beaten"]
    assert permuted["r2"] > 2 * found.summary.loc["A", "r2"]


def test_folds_are_drawn_once_and_for_all(simulated):
    mine, above = (adata[:, :8].copy() for adata in simulated)
    options = {**FAST, "n_folds": 3, "controls": False, "passes": 1}
    found, again, other = (
        quietly(mine, spots=above, rng=rng, **options).scores.set_index("gene")["fold"]
        for rng in (0, 0, 1)
    )
    assert found.equals(again)
    assert not found.sort_index().equals(other.sort_index())
    assert sorted(found.index) == list(mine.var_names)
    assert sorted(found.value_counts()) == [2, 3, 3]
    given = {"g01": 7, "g05": 4, "g02": 7}
    scores = quietly(mine, spots=above, fold_of_gene=given, **options).scores
    assert list(zip(scores["fold"], scores["gene"], strict=True)) == [
        (4, "g05"), (7, "g01"), (7, "g02"),
    ]  # fmt: skip


def test_a_control_that_is_as_good_is_told(shared):
    """Of 33 marker genes in osmFISH the counts of the spot tell more than the type of the cell."""
    mine, above, fold_of_gene = recorded_pair(shared, "osmfish_pseudovisium")
    with pytest.warns(StdistWarning) as caught:
        found = stdist.tl.siid_holdout(
            mine, spots=above, fold_of_gene=fold_of_gene, folds=[0], **FAST
        )
    assert list(mine.uns["siid_holdout"]["notes"]) == found.notes
    held_out = [gene for gene, fold in fold_of_gene.items() if fold == 0]
    with pytest.warns(StdistWarning) as told:
        stdist.tl.siid(mine, spots=above, held_out=held_out, deconvolve=False, rng=2, **FAST)
    notes = [str(one.message) for one in told]
    assert any(note.startswith("[control-wins]") and "B 0.346" in note for note in notes)
    text = [str(warning.message) for warning in caught]
    assert set(found.notes) <= set(text)
    assert any(note.startswith("[control-wins]") and "B 0.346" in note for note in text)
    assert any(note.startswith("[baselines-sampled]") for note in text)
    summary = found.summary
    assert summary.loc["B", "r2"] == pytest.approx(0.346, abs=5e-4)  # recorded
    assert not summary.loc["B", "beaten"]
    r2 = found.scores.pivot(index="gene", columns="method", values="r2")
    error = (r2["siid"] - r2["B"]).std() / np.sqrt(len(r2))
    assert summary.loc["B", "standard_error"] == pytest.approx(error)
    margin = np.maximum(summary.loc["siid", "seed_range"], 2 * summary["standard_error"])
    beaten = summary["advantage"] > margin
    assert (summary["beaten"] == beaten).drop("siid").all()


@pytest.mark.parametrize(
    ("code", "options"),
    [
        ("parameter-range", {"n_folds": 1}),
        ("parameter-range", {"n_folds": 41}),
        ("parameter-range", {"folds": [10]}),
        ("parameter-range", {"folds": []}),
        ("parameter-range", {"folds": ["first"]}),
        ("parameter-range", {"folds": 3}),
        ("parameter-range", {"folds": [1.7]}),
        ("parameter-range", {"n_folds": 2.5}),
        ("parameter-range", {"n_neighbors": 0}),
        ("parameter-range", {"held_out": ["g00"]}),
        ("parameter-range", {"deconvolve": True}),
        ("gene-absent", {"fold_of_gene": {"g00": 0, "nothing": 1}}),
    ],
)
def test_folds_that_are_none_are_refused(simulated, code, options):
    mine, above = simulated
    with pytest.raises(InputError) as caught:
        stdist.tl.siid_holdout(mine, spots=above, **FAST, **options)
    assert caught.value.code == code


@pytest.fixture
def stores(simulated, tmp_path):
    paths = tmp_path / "cells.zarr", tmp_path / "spots.zarr"
    for adata, path in zip(simulated, paths, strict=True):
        stdist.io.write(adata, path)
    return paths


KEPT = {**FAST, "n_folds": 10, "folds": [3], "passes": 1}


def test_scores_are_kept_where_the_cells_are(simulated, stores, monkeypatch):
    mine, above = simulated[0].copy(), simulated[1]
    cells, spots = stores
    found = quietly(mine, spots=above, key_added="scored", **KEPT)
    again = quietly(cells, spots=spots, key_added="scored", progress=False, **KEPT)
    pd.testing.assert_frame_equal(found.scores, again.scores)
    for kept in (mine.uns["scored"], Store(cells).uns("scored")):
        pd.testing.assert_frame_equal(
            kept["scores"].reset_index(drop=True), found.scores, check_dtype=False
        )
        pd.testing.assert_frame_equal(
            kept["summary"], found.summary, check_dtype=False, check_names=False,
            check_index_type=False,
        )  # fmt: skip
        assert list(np.atleast_1d(kept["notes"])) == found.notes
        assert kept["params"]["n_factors"] == 4
        assert list(np.atleast_1d(kept["params"]["folds"])) == [3]
    assert verify.verify(cells)[0] == []
    assert describe_runs(cells)[-1]["state"] == "done"
    monkeypatch.setattr(siid_program, "restart", None)  # refused before a fold
    for data, other in ((mine, above), (cells, spots)):
        with pytest.raises(InputError) as caught:
            stdist.tl.siid_holdout(data, spots=other, key_added="scored", **KEPT)
        assert caught.value.code == "output-exists"


class Counted:
    """A function that counts its calls, and dies in one of them."""

    def __init__(self, function):
        self.function, self.calls, self.last = function, 0, None

    def __call__(self, *arguments, **named):
        self.calls += 1
        if self.calls == self.last:
            raise KeyboardInterrupt
        return self.function(*arguments, **named)


def test_a_hold_out_that_was_stopped_goes_on(stores, monkeypatch):
    """In a pass, in the second fold, or as tables are switched in: called again, or resumed."""
    cells, spots = stores
    options = {**KEPT, "n_folds": 20, "folds": [3, 8], "passes": 3, "n_solutions": 1}
    options |= {"progress": False, "key_added": "scored", "block_length": 1024}
    passes, scores = Counted(siid_program.improve_tile), Counted(holdout_program.score_tile)
    switch = Counted(Staging._link_columns)
    monkeypatch.setattr(siid_program, "improve_tile", passes)
    monkeypatch.setattr(holdout_program, "score_tile", scores)
    monkeypatch.setattr(Staging, "_link_columns", lambda *arguments: switch(*arguments))
    wanted = quietly(cells, spots=spots, **options)
    shown = Store(cells).uns("scored")
    whole, tiles = passes.calls, scores.calls // 4
    again = partial(quietly, cells, spots=spots, overwrite=True, **options)
    for broken, last, go_on in (
        (passes, tiles + 2, again),
        (scores, 2 * tiles + 2, partial(resume, cells, build, InProcess())),
        (switch, 1, again),
    ):
        for function in (passes, scores, switch):
            function.calls = 0
        broken.last = last
        with pytest.raises(RunStopped):
            again()
        assert len(unfinished(cells)) == 1
        with pytest.raises(InputError, match="unfinished"):
            quietly(cells, spots=spots, **options | {"passes": 4})
        go_on()
        assert whole <= passes.calls <= whole + tiles  # no pass is made twice but one cut short
        assert unfinished(cells) == []
        assert verify.verify(cells)[0] == []
        found = Store(cells).uns("scored")
        for name in ("scores", "summary"):
            pd.testing.assert_frame_equal(found[name], shown[name], check_exact=True)
        broken.last = None
    pd.testing.assert_frame_equal(kept_tables(found)[0], wanted.scores, check_exact=True)


def test_a_hold_out_is_planned_and_refused_before_it_runs(stores):
    cells, spots = stores
    parameters = {"spots": str(spots), "n_factors": 4, "folds": [1, 2]}
    found = stdist.plan("siid_holdout", cells, **parameters)
    names = [stage.name for stage in found.stages]
    assert {"fold1.score", "fold2.permuted.score"} <= set(names)
    small = Resources(n_workers=1, memory=2**20, threads=1, reserved=0)
    with pytest.raises(PlanRefused, match="siid_holdout"):
        make_plan(build("siid_holdout", {"data": str(cells), **parameters}), small)


@pytest.mark.slow
def test_scores_of_the_recorded_simulation(shared):
    mine, above, fold_of_gene = recorded_pair(shared, "sim_h8")
    found = quietly(mine, spots=above, fold_of_gene=fold_of_gene, folds=range(4), n_factors=8)
    assert found.summary.loc["siid", "r2"] >= 0.495  # the reference, one run each: 0.482
    assert found.summary["beaten"].drop(["siid", "permuted"]).all()
    recorded = json.loads((shared / "fixtures/siid/holdout_sim_h8_and_osm.json").read_text())
    for fold in range(4):
        mean = found.scores.query("fold == @fold and method == 'D_expression'")["r2"].mean()
        assert mean == pytest.approx(np.mean(recorded["sim_base"][fold]["D_ex"]), abs=2e-8)


@pytest.mark.slow
def test_scores_of_the_breast_pair(shared):
    facts = json.loads((shared / "fixtures/siid/breast_pair_open.json").read_text())
    mine, above = (
        anndata.read_h5ad(shared / f"data/breast_pair_{slide}.h5ad")
        for slide in ("xenium", "visium")
    )
    fold_of_gene = dict(zip(facts["genes"], facts["fold_of_gene"], strict=True))
    options = {"fold_of_gene": fold_of_gene, "folds": range(4), "n_factors": 15, "controls": False}
    found = quietly(mine, spots=above, **options)
    assert found.summary.loc["siid", "r2"] >= 0.235  # the reference, one run each: 0.225
