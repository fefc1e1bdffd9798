"""Clusters of cells: planted types are found, degenerate counts survived."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from stdist.kernels.poisson_factors_start import clustered_factors
from stdist.kernels.poisson_profiles import cluster_profiles


@pytest.fixture(scope="module")
def planted():
    """3000 cells of about 60 counts in 6 types, of which the rarest has 60 cells."""
    rng = np.random.default_rng(0)
    profiles = rng.dirichlet(np.full(80, 0.4), 6)
    types = np.repeat(np.arange(6), [60, 140, 400, 600, 800, 1000])
    totals = rng.poisson(rng.gamma(4.0, 15.0, len(types)))
    counts = np.array([rng.multinomial(n, profiles[k]) for n, k in zip(totals, types, strict=True)])
    return sparse.csr_array(counts), types, profiles


def test_planted_types_are_found(planted):
    counts, types, profiles = planted
    found = [cluster_profiles(counts, 6, seed) for seed in range(8)]
    for each in found:
        np.testing.assert_allclose(each.sum(axis=1), 1.0, rtol=1e-12)
        assert {2, 3, 4, 5} <= set(distances(each, profiles).argmin(axis=1))
    likelihood = [counts @ np.log(each).T for each in found]
    best = int(np.argmax([each.max(axis=1).sum() for each in likelihood]))
    match = distances(found[best], profiles).argmin(axis=1)
    assert sorted(match) == list(range(6))
    assert (match[likelihood[best].argmax(axis=1)] == types).mean() > 0.98
    for k, of_type in enumerate(match):  # those of its cells, and 20 counts of all cells
        mine = np.asarray(counts[types == of_type].sum(axis=0))
        np.testing.assert_allclose(found[best][k], mine / mine.sum(), atol=0.015)


def distances(found, profiles):
    """Total variation of each pair."""
    return np.abs(found[:, None] - profiles).sum(axis=2) / 2.0


def test_a_seed_makes_its_own_clusters(planted):
    counts = planted[0]
    first, same, other = (cluster_profiles(counts, 9, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert np.abs(first - other).max() > 0.01


def test_swaps_find_every_type_from_every_seed(planted):
    counts, _, profiles = planted
    for seed in range(8):
        short, *longer = (cluster_profiles(counts, 6, seed, n_swaps) for n_swaps in (0, 1, 3, 6))
        reached = [(counts @ np.log(found).T).max(axis=1).sum() for found in longer]
        assert sorted(reached) == reached
        assert sorted(distances(longer[-1], profiles).argmin(axis=1)) == list(range(6))
        assert (counts @ np.log(short).T).max(axis=1).sum() <= reached[-1] + 1.0


@pytest.mark.parametrize(
    "counts",
    [np.zeros((3, 4)), np.eye(4), np.ones((1, 4)), [[0.0, 5.0, 0.0, 0.0]] * 30],
    ids=["empty", "one each", "one cell", "alike"],
)
@pytest.mark.parametrize("n_clusters", [1, 5])
@pytest.mark.parametrize("n_swaps", [0, 3])
def test_cells_that_have_no_clusters(counts, n_clusters, n_swaps):
    matrix = sparse.csr_array(np.asarray(counts))
    found = cluster_profiles(matrix, n_clusters, 0, n_swaps)
    assert found.shape == (n_clusters, 4)
    assert (found > 0.0).all()
    np.testing.assert_allclose(found.sum(axis=1), 1.0, rtol=1e-12)


def test_zeros_that_are_stored_change_nothing(planted):
    counts = planted[0][::3]
    data, genes = np.append(counts.data, 0.0), np.append(counts.indices, 7)
    ends = np.append(counts.indptr[:-1], len(data))
    stored = sparse.csr_array((data, genes, ends), shape=counts.shape)
    expected = cluster_profiles(counts, 4, seed=3)
    np.testing.assert_array_equal(cluster_profiles(stored, 4, seed=3), expected)


def test_genes_beyond_the_panel_start_alike(planted):
    counts = planted[0]
    panel = np.asarray(counts.sum(axis=0), np.float64)
    profile = np.append(3.0 * panel, [50.0, 0.0])
    Q = clustered_factors(counts, profile, 6, seed=0)
    assert (Q[:, 80:] > 0.0).all()
    np.testing.assert_allclose(Q.sum(axis=1), 1.0, rtol=1e-12)
    np.testing.assert_allclose(Q[:, 80], 50.5 / (profile + 0.5).sum(), rtol=1e-12)
    shares = Q[:, :80] / Q[:, :80].sum(axis=1, keepdims=True)
    np.testing.assert_allclose(shares, cluster_profiles(counts, 6, seed=0), rtol=1e-12)
