"""SCI, ligand-receptor tests and Moran's I against their definitions, on dense small data."""

from __future__ import annotations

import sys

import anndata
import numpy as np
import pandas as pd
import pytest
import xarray
from scipy.stats import kstest

import stdist
from stdist.graph import InProcess, run_in_memory
from stdist.metrics import strips
from stdist.store import InputError

TYPES, SLICES = ("a", "b", "c"), ("s1", "s2")


def slides(n=700, n_genes=6, seed=0, **attributes):
    """Two slices of mixed types at 2800 cells/mm2, rows in any order."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.gamma(1.0, 1.0, (n, n_genes))).astype(np.float32)
    adata = anndata.AnnData(counts)
    adata.var_names = [f"g{gene}" for gene in range(n_genes)]
    adata.obs_names = [f"cell{cell}" for cell in range(n)]
    adata.obs["type"] = pd.Categorical(rng.choice(TYPES, n), categories=[*TYPES, "unused"])
    adata.obs["slice"] = pd.Categorical(rng.choice(SLICES, n))
    side = np.sqrt(n / 2 / 2800) * 1000
    adata.obsm["spatial"] = rng.random((n, 2)) * [side * 1.2, side / 1.2]
    return adata


KEYS = {"label_key": "type", "slice_key": "slice"}


def log_normalised(counts):
    depth = counts.sum(axis=1, keepdims=True)
    return np.log1p(counts / np.maximum(depth, 1e-9) * np.median(depth[depth > 0]))


def literal_sci(adata, k, radius, both=False, pooled=False):
    """The text of the paper, with dense matrices: {(slice, source, target): genes x genes}."""
    counts = np.asarray(adata.X, float)
    x, depth = log_normalised(counts), counts.sum(axis=1)
    found = {}
    for name in SLICES:
        for a in TYPES:
            for b in TYPES:
                chosen = (adata.obs["slice"] == name) & adata.obs["type"].isin([a, b])
                rows = np.flatnonzero(chosen)
                kind = adata.obs["type"].to_numpy()[rows]
                place = adata.obsm["spatial"][rows]
                distance = np.linalg.norm(place[:, None] - place[None], axis=2)
                np.fill_diagonal(distance, np.inf)
                near = np.zeros_like(distance)
                for cell, nearest in enumerate(np.argsort(distance, axis=1)[:, :k]):
                    near[cell, nearest] = 1
                near[(kind[:, None] == kind[None]) | (distance > radius)] = 0
                z = near @ x[rows]
                if pooled:
                    around = (near @ depth[rows])[:, None]
                    share = np.divide(near @ counts[rows], around, out=0 * z, where=around > 0)
                    z = np.log1p(share * np.median(depth))
                over = np.ones(len(rows), bool) if both else kind == a
                if a != b:
                    both_ways = np.corrcoef(x[rows][over].T, z[over].T)
                    found[name, a, b] = both_ways[: x.shape[1], x.shape[1] :]
    return found


@pytest.fixture(scope="module")
def adata():
    return slides()


@pytest.fixture
def small_strips(monkeypatch):
    monkeypatch.setattr(strips, "MOST_CELLS", 90)
    monkeypatch.setattr(strips, "BAND", 64)


@pytest.mark.parametrize(
    ("k", "radius", "options"),
    [
        (30, 30.0, {}),
        (4, 45.0, {}),
        (4, 45.0, {"cells": "both"}),
        (30, 30.0, {"sums_of": "counts"}),
    ],
)
def test_sci_is_that_of_the_text(adata, k, radius, options, small_strips):
    found = stdist.metrics.sci(adata, n_neighbors=k, radius=radius, **KEYS, **options)
    expected = literal_sci(adata, k, radius, "cells" in options, "sums_of" in options)
    assert found.sizes == {"slice": 2, "types": 6, "genes": 36}
    for pair, types in enumerate(zip(found["source"].values, found["target"].values, strict=True)):
        for slide, name in enumerate(found["slice"].values):
            index = found["sci"].values[slide, pair].reshape(6, 6)
            np.testing.assert_allclose(index, expected[name, *types], atol=1e-12)
    assert list(found["gene"].values[:7]) == ["g0"] * 6 + ["g1"]
    assert list(found["neighbor_gene"].values[:7]) == [*adata.var_names, "g0"]


def test_pairs_types_and_panels_do_not_change_a_number(adata, monkeypatch):
    whole = stdist.metrics.sci(adata, **KEYS).set_index(genes=("gene", "neighbor_gene"))
    pairs = [("g3", "g1"), ("g0", "g0"), ("g3", "g5"), ("g1", "g3")]
    module = sys.modules["stdist.metrics.cross_correlation"]
    monkeypatch.setattr(module, "PANEL_NUMBERS", 3)
    monkeypatch.setattr(module, "CHUNK_ENTRIES", 500)
    part = stdist.metrics.sci(adata, pairs=pairs, type_pairs=[("c", "a"), ("a", "b")], **KEYS)
    assert list(part["source"].values) == ["c", "a"]
    places = [
        np.flatnonzero((whole["source"] == a) & (whole["target"] == b))[0]
        for a, b in (("c", "a"), ("a", "b"))
    ]
    expected = whole["sci"].sel(genes=pairs).values[:, places]
    np.testing.assert_allclose(part["sci"].values, expected, atol=1e-13)


def test_one_slice_raw_values_and_order_of_rows(adata):
    one = adata[adata.obs["slice"] == "s1"].copy()
    raw = stdist.metrics.sci(one, label_key="type", normalize=False)
    assert raw["slice"].values.tolist() == ["all"]
    one.layers["values"] = one.X
    rng = np.random.default_rng(1)
    shuffled = one[rng.permutation(one.n_obs)].copy()
    again = stdist.metrics.sci(shuffled, label_key="type", layer="values", normalize=False)
    np.testing.assert_allclose(again["sci"], raw["sci"], atol=1e-12)


def test_store_and_memory_agree(adata, tmp_path):
    path = tmp_path / "slides.zarr"
    stdist.io.write(adata, path)
    pairs = pd.DataFrame({"ligand": ["g0", "g1"], "receptor": ["g2", "g1"]})
    options = {"pairs": pairs, "n_permutations": 9, **KEYS}
    for measure in (
        lambda data: stdist.metrics.sci(data, **KEYS).to_dataframe(),
        lambda data: stdist.metrics.morans_i(data, slice_key="slice"),
        lambda data: stdist.metrics.ligand_receptor(data, **options),
    ):
        in_memory = measure(adata)
        pd.testing.assert_frame_equal(measure(path), in_memory)
        pd.testing.assert_frame_equal(measure(stdist.io.open(path)), in_memory)


def test_morans_i_is_that_of_dense_weights(adata, small_strips):
    found = stdist.metrics.morans_i(adata, slice_key="slice", n_neighbors=4, radius=15.0)
    x = log_normalised(np.asarray(adata.X, float))
    for name in SLICES:
        own = (adata.obs["slice"] == name).to_numpy()
        place, values = adata.obsm["spatial"][own], x[own] - x[own].mean(axis=0)
        distance = np.linalg.norm(place[:, None] - place[None], axis=2)
        np.fill_diagonal(distance, np.inf)
        weights = np.zeros_like(distance)
        for cell, nearest in enumerate(np.argsort(distance, axis=1)[:, :4]):
            weights[cell, nearest] = 1
        weights[distance > 15.0] = 0
        weights /= np.maximum(1, weights.sum(axis=1, keepdims=True))
        assert (weights.sum(axis=1) == 0).any()
        index = own.sum() / weights.sum() * np.diag(values.T @ weights @ values)
        index /= (values**2).sum(axis=0)
        np.testing.assert_allclose(found.loc[name, "morans_i"], index, rtol=1e-10)


def test_permutations_are_calibrated_where_there_is_no_association():
    adata = slides(n=1600, n_genes=30, seed=3)
    genes = np.random.default_rng(0).permutation(30)
    pairs = pd.DataFrame({"ligand": adata.var_names[genes], "receptor": adata.var_names})
    for alternative in ("greater", "two-sided"):
        found = stdist.metrics.ligand_receptor(
            adata, pairs=pairs, n_permutations=199, alternative=alternative, **KEYS
        )
        assert len(found) == 2 * 6 * 30
        assert kstest(found["p_value"], "uniform").pvalue > 0.01
        assert 0.02 < (found["p_value"] <= 0.05).mean() < 0.09
        assert found["fdr"].min() > 0.05
    assert found["z"].std() == pytest.approx(1.0, abs=0.15)


@pytest.fixture(scope="module")
def planted():
    """Cells of type a express L where their neighbours of type b express R; layer without it."""
    adata = slides(n=1200, n_genes=5, seed=5)
    adata.var_names = ["L", "R", "x", "y", "w"]
    adata.layers["after"] = np.asarray(adata.X).copy()
    kind = adata.obs["type"].to_numpy()
    place = adata.obsm["spatial"] + 1e4 * (adata.obs["slice"] == "s2").to_numpy()[:, None]
    distance = np.linalg.norm(place[:, None] - place[None], axis=2)
    near = (distance <= 30) & (kind[:, None] == "a") & (kind[None] == "b")
    signal = near @ np.asarray(adata.X)[:, 1]
    adata.X[:, 0] += np.where(signal > np.median(signal[kind == "a"]), 3, 0) * (kind == "a")
    return adata


def test_a_planted_pair_is_found_before_and_not_after(planted, tmp_path):
    file = tmp_path / "pairs.csv"
    file.write_text("ligand,receptor,source\nL,R,planted\nx,y,\ny,w,\nx,absent,\n")
    found = stdist.metrics.ligand_receptor(
        planted, pairs=file, layers=(None, "after"), n_permutations=499, **KEYS
    )
    assert found.attrs["absent"] == [("x", "absent")]
    is_planted = (found["ligand"] == "L") & (found["source"] == "a") & (found["target"] == "b")
    assert is_planted.sum() == 2
    assert (found["fdr_before"][is_planted] < 0.05).all()
    assert (found["fdr_before"][~is_planted] > 0.05).all()
    assert (found["fdr_after"] > 0.05).all()
    index = stdist.metrics.sci(planted, pairs=[("L", "R"), ("x", "y"), ("y", "w")], **KEYS)
    np.testing.assert_array_equal(found["score_before"], index["sci"].values.ravel())


def test_p_values_depend_on_the_seed_and_on_nothing_else(planted, monkeypatch):
    pairs = pd.DataFrame({"ligand": ["L", "x", "y"], "receptor": ["R", "y", "w"]})
    options = {"n_permutations": 49, **KEYS}
    whole = stdist.metrics.ligand_receptor(planted, pairs=pairs, **options)
    module = sys.modules["stdist.metrics.pair_tests"]
    for name, value in (("PANEL", 1), ("BATCH", 5), ("CHUNK_ENTRIES", 100)):
        monkeypatch.setattr(module, name, value)
    again = stdist.metrics.ligand_receptor(planted, pairs=pairs, **options)
    np.testing.assert_array_equal(again["p_value"], whole["p_value"])
    one = stdist.metrics.ligand_receptor(
        planted, pairs=pairs[1:2], type_pairs=[("b", "c")], **options
    )
    same = (whole["ligand"] == "x") & (whole["source"] == "b") & (whole["target"] == "c")
    np.testing.assert_array_equal(one["p_value"], whole["p_value"][same])
    other = stdist.metrics.ligand_receptor(planted, pairs=pairs, rng=1, **options)
    assert (other["p_value"] != whole["p_value"]).any()


def lost(adata):
    adata.obsm["spatial"] = adata.obsm["spatial"].copy()
    adata.obsm["spatial"][5, 1] = np.nan


def fractional(adata):
    adata.X = np.asarray(adata.X) + 0.5


def unlabelled(adata):
    adata.obs["type"] = [None, *adata.obs["type"].astype(str)[1:]]


def far_apart(adata):
    adata.obsm["spatial"] = adata.obsm["spatial"] * 1e4


def in_line(adata):
    adata.obsm["spatial"] = adata.obsm["spatial"][:, :1]


@pytest.mark.parametrize(
    ("code", "change", "options"),
    [
        ("coordinates-nonfinite", lost, {}),
        ("counts-fractional", fractional, {}),
        ("labels-missing", unlabelled, {}),
        ("neighbours-none", far_apart, {}),
        ("spatial-shape", in_line, {}),
        ("gene-absent", None, {"genes": ["g0", "nowhere"]}),
        ("types-unknown", None, {"type_pairs": [("a", "d")]}),
        ("types-unknown", None, {"type_pairs": [("a", "a")]}),
        ("parameter-range", None, {"radius": 0.0}),
        ("parameter-range", None, {"cells": "target"}),
        ("parameter-conflict", None, {"genes": ["g0"], "pairs": [("g0", "g1")]}),
        ("element-unknown", None, {"slice_key": "slide"}),
    ],
)
def test_wrong_questions_are_refused(adata, code, change, options):
    adata = adata.copy()
    if change:
        change(adata)
    with pytest.raises(InputError) as caught:
        stdist.metrics.sci(adata, **KEYS | options)
    assert caught.value.code == code


def test_a_radius_in_the_wrong_unit_is_refused(adata, monkeypatch):
    monkeypatch.setattr(strips, "CROWD", 100)
    crowd = adata.copy()
    crowd.obsm["spatial"] = crowd.obsm["spatial"] * 1e-3
    with pytest.raises(InputError, match="unit of the coordinates"):
        stdist.metrics.morans_i(crowd, slice_key="slice")


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("pairs-columns", "from,to\ng0,g1\n"),
        ("pairs-absent", "ligand,receptor\nCCL5,CCR5\n"),
        ("pairs-unreadable", ""),
    ],
)
def test_unusable_tables_of_pairs_are_named(adata, tmp_path, code, text):
    file = tmp_path / "pairs.csv"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        stdist.metrics.ligand_receptor(adata, pairs=file, **KEYS)
    assert caught.value.code == code


def test_what_does_not_fit_is_refused_before_it_runs(adata, monkeypatch):
    from stdist.graph.executors import Resources
    from stdist.store import PlanRefused

    def small(self, *, device=True):
        return Resources(1, 200 * 2**20, 1, 0)

    monkeypatch.setattr(InProcess, "resources", small)
    with pytest.raises(PlanRefused, match="needs"):
        stdist.metrics.sci(adata, **KEYS)


def test_results_do_not_depend_on_blocks(adata, monkeypatch):
    big = anndata.concat([slides(n=1500, seed=seed) for seed in range(2)], index_unique="-")
    whole = stdist.metrics.sci(big, **KEYS)

    def in_blocks(program, executor):
        return run_in_memory(program, executor, block_length=1024)

    for name in ("cross_correlation", "survey"):
        monkeypatch.setattr(sys.modules[f"stdist.metrics.{name}"], "run_in_memory", in_blocks)
    xarray.testing.assert_identical(stdist.metrics.sci(big, **KEYS), whole)
