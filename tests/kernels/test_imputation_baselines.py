"""Baselines of imputation, against the scores recorded with the reference's."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from stdist.kernels.imputation_baselines import (
    baseline_means,
    depth_ratios,
    nearest_in_expression,
    nearest_in_space,
    neighbor_means,
)
from stdist.kernels.imputation_scores import gene_scores, score_sums
from stdist.kernels.spot_map import nearest_spots


def scores(cells, spots, spot, points, held_out, n_neighbors=(10,)):
    """Scores of all baselines for the held-out genes, by name."""
    most, training = max(n_neighbors, default=0), cells[:, ~held_out]
    nearest = {}
    if most:
        nearest["sp"] = nearest_in_space(points, points, most)
        nearest["ex"] = nearest_in_expression(training, training, most)
    kinds = {f"{name}_k{k}": near[:, :k] for name, near in nearest.items() for k in n_neighbors}
    totals = [np.asarray(counts[:, ~held_out].sum(axis=1)).ravel() for counts in (cells, spots)]
    means = baseline_means((0, len(points)), spots[:, held_out], spot, *totals, kinds)
    return {name: gene_scores(score_sums(cells[:, held_out], m)) for name, m in means.items()}


def simulated(shared, name):
    case = np.load(shared / "fixtures" / "siid" / f"dataset_{name}.npz")
    names = ("A_X", "A_V", "cell_spot", "cell_xy_um")
    return [case[name] for name in names], case["fold_of_gene"]


@pytest.fixture(scope="module")
def recorded(shared):
    folder = shared / "fixtures" / "siid"
    files = ("dataset_tiny_reference_metrics", "holdout_sim_h8_and_osm", "breast_pair_open")
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in files}


def test_tiny_simulation(shared, recorded):
    data, fold_of_gene = simulated(shared, "tiny")
    for fold, expected in recorded["dataset_tiny_reference_metrics"]["baselines"].items():
        found = scores(*data, fold_of_gene == int(fold))
        for name, r2 in expected.items():
            key = name if len(name) == 1 else f"{name}_k10"
            assert found[key]["r2"].mean() == pytest.approx(r2, abs=1e-8), (fold, name)


@pytest.mark.parametrize("fold", [0, 1, 7])
def test_simulation_of_eight_types(shared, recorded, fold):
    data, fold_of_gene = simulated(shared, "sim_h8")
    found = scores(*data, fold_of_gene == fold)
    expected = recorded["holdout_sim_h8_and_osm"]["sim_base"][fold]
    for name in ("A", "B", "C_sp", "D_sp", "C_ex", "D_ex"):
        key = name if len(name) == 1 else f"{name}_k10"
        np.testing.assert_allclose(found[key]["r2"], expected[name], rtol=0, atol=2e-8)


def test_osmfish(shared, recorded):
    """Its positions repeat: which of the cells at equal distance are neighbours is left open."""
    data, fold_of_gene = simulated(shared, "osmfish_pseudovisium")
    expected = recorded["holdout_sim_h8_and_osm"]["osm_base"]
    for fold in range(10):
        found = scores(*data, fold_of_gene == fold, n_neighbors=())
        for name in ("A", "B"):
            close = {"rtol": 0, "atol": 1e-8}
            np.testing.assert_allclose(found[name]["r2"], expected[fold][name], **close)


@pytest.fixture(scope="module")
def pair(shared, recorded):
    """Counts of cells and spots, the spot of each cell, positions of the cells."""
    anndata = pytest.importorskip("anndata")
    cells, spots = (
        anndata.read_h5ad(shared / "data" / f"breast_pair_{side}.h5ad")
        for side in ("xenium", "visium")
    )
    points, genes = cells.obsm["spatial"], recorded["breast_pair_open"]["genes"]
    spot = nearest_spots(points, spots.obsm["spatial"]).spot
    return cells[:, genes].X, spots[:, genes].X, spot, points


@pytest.mark.parametrize("fold", [0, 1, 2, 3])
def test_breast_pair(pair, recorded, fold):
    expected = recorded["breast_pair_open"]
    found = scores(*pair, np.array(expected["fold_of_gene"]) == fold, (10, 30))
    assert len(found) == 11
    for name, score in found.items():
        printed = expected["per_fold"][str(fold)][name]
        assert round(float(score["r2"].mean()), 5) == printed["r2_mean"], name
        assert round(float(np.median(score["pearson"])), 5) == printed["pcc_median"], name
        assert (score["pearson"] < 0).sum() == printed["n_neg"], name
        if "r" in printed:
            assert score["pearson"].round(5).tolist() == printed["r"], name


def log_rates(counts):
    total = counts.sum(axis=1, keepdims=True)
    return np.log1p(100 * counts / np.maximum(total, 1))


@settings(max_examples=50)
@given(
    seed=st.integers(0, 10**6),
    n_cells=st.integers(1, 60),
    n_genes=st.integers(1, 12),
    n_neighbors=st.integers(1, 12),
    first=st.integers(0, 59),
)
def test_neighbours_are_those_of_all_distances(seed, n_cells, n_genes, n_neighbors, first):
    """Few genes and small counts: many cells have the same rates or none at all."""
    counts = np.random.default_rng(seed).poisson(0.4, (n_cells, n_genes))
    rates = log_rates(counts)
    distance = ((rates[:, None] - rates) ** 2).sum(axis=2)
    found = nearest_in_expression(counts, counts, n_neighbors)
    k = min(n_neighbors, n_cells)
    assert found.shape == (n_cells, k)
    assert all(len(set(row)) == k for row in found.tolist())
    ordered = np.take_along_axis(distance, found, axis=1)
    np.testing.assert_allclose(ordered, np.sort(distance, axis=1)[:, :k], atol=1e-12)
    for i, row in enumerate(found):
        same = np.flatnonzero((rates == rates[i]).all(axis=1))[:k]
        assert row[: len(same)].tolist() == same.tolist()

    part = nearest_in_expression(sparse.csr_matrix(counts[first:]), counts, n_neighbors)
    np.testing.assert_array_equal(part, found[first:])


def test_baselines_follow_their_definitions():
    rng = np.random.default_rng(0)
    spots, spot = rng.poisson(5.0, (6, 3)), rng.integers(-1, 6, 40)
    cell_total, spot_total = rng.poisson(30.0, 40), rng.poisson(200.0, 6)
    spot_total[2] = 0
    near = rng.integers(0, 40, (40, 4))
    a, b = np.zeros((40, 3)), np.zeros((40, 3))
    for i in np.flatnonzero(spot >= 0):
        a[i] = spots[spot[i]]
        b[i] = a[i] * cell_total[i] / spot_total[spot[i]] if spot[i] != 2 else 0.0
    arguments = (spot, cell_total, spot_total)
    found = baseline_means((10, 25), sparse.csr_matrix(spots), *arguments, {"n": near[10:25]})
    expected = {"A": a, "B": b, "C_n": a[near].mean(axis=1), "D_n": b[near].mean(axis=1)}
    expected["total"] = np.repeat(cell_total[:, None], 3, axis=1)
    assert set(found) == set(expected)
    for name, mean in found.items():
        np.testing.assert_allclose(mean, expected[name][10:25], rtol=1e-12, err_msg=name)
    np.testing.assert_array_equal(
        neighbor_means(spots, spot, depth_ratios(cell_total, spot_total, spot), near),
        neighbor_means(sparse.csr_matrix(spots), spot, depth_ratios(*arguments[1:], spot), near),
    )
