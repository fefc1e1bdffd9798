from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from stdist.kernels.poisson_newton import Ridges
from stdist.kernels.poisson_passes import Passes, Sample, advance, pass_moments
from stdist.kernels.poisson_ridge import Penalty, fit

N_CLUSTERS, N_BATCHES = 6, 3


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    with threadpool_limits(1):
        yield


def simulate(seed, n_cells, n_genes, spread=1.0):
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.full(N_CLUSTERS, 0.2), n_cells)
    batch = rng.integers(0, N_BATCHES, n_cells)
    depth = rng.gamma(4, 50, n_cells)
    effects = rng.normal(0, 1, (N_CLUSTERS, n_genes))
    shifts = rng.normal(0, spread, (N_BATCHES, N_CLUSTERS, n_genes))
    eta = rng.normal(-5, 1, n_genes) + np.einsum("nk,nkg->ng", weights, effects + shifts[batch])
    return rng.poisson(depth[:, None] * np.exp(eta)), weights, batch, depth


def count_sums(counts, weights, batch):
    columns = np.column_stack([np.ones(len(batch)), weights])
    return np.stack([columns[batch == b].T @ counts[batch == b] for b in range(N_BATCHES)])


def run(
    counts, weights, batch, depth, sampled, penalty, limit=40, start=None, n_clusters=N_CLUSTERS
):
    """Passes over tiles of 1024 cells until every gene has converged; their number."""
    picked = weights[sampled], batch[sampled], depth[sampled]
    begin = start or fit(counts[sampled], *picked, penalty)
    sample = Sample(*picked, N_BATCHES, n_clusters)
    sums = count_sums(counts, weights, batch)
    passes = Passes.begin(begin, counts.sum(axis=0) / depth.sum())
    ridges = Ridges.of(penalty, np.ones(counts.shape[1]))
    for number in range(limit):
        tiles = [slice(first, first + 1024) for first in range(0, len(batch), 1024)]
        moments = sum(
            pass_moments(weights[t], batch[t], depth[t], passes.coefficients) for t in tiles
        )
        passes = advance(passes, moments, sums, sample, ridges)
        if passes.converged.all():
            return passes, number + 1
    return passes, limit


def test_a_sample_and_passes_reach_the_fit_to_all_cells():
    data = simulate(0, 20_000, 8)
    penalty = Penalty.random_effects(N_CLUSTERS, N_BATCHES)
    exact = fit(*data, penalty)
    sampled = np.sort(np.random.default_rng(1).choice(20_000, 2000, replace=False))
    passes, n_passes = run(*data, sampled, penalty)
    assert n_passes <= 12
    found = passes.coefficients
    assert np.abs(found[0] - np.concatenate([exact.intercept[None], exact.cluster])).max() < 1e-5
    assert np.abs(found[1:, 0] - exact.batch).max() < 1e-5
    assert np.abs(found[1:, 1:] - exact.interaction).max() < 1e-5


@pytest.mark.parametrize("interactions", [False, True])
def test_kept_columns_do_not_slow_the_passes(interactions):
    rng = np.random.default_rng(7)
    _, weights, batch, depth = simulate(1, 12_000, 1)
    kept = np.concatenate([np.eye(2)[rng.integers(0, 2, 12_000)] for _ in range(3)], axis=1)
    parts = [weights, kept]
    if interactions:
        parts.append((kept[:, :, None] * weights[:, None]).reshape(12_000, -1))
    design = np.concatenate(parts, axis=1)
    penalty = Penalty.random_effects(design.shape[1], N_BATCHES).without_interactions(N_CLUSTERS)
    effects = rng.normal(0, 0.5, (design.shape[1], 4))
    shifts = rng.normal(0, 1, (N_BATCHES, N_CLUSTERS, 4))
    eta = design @ effects - 5 + np.einsum("nk,nkg->ng", weights, shifts[batch])
    data = rng.poisson(depth[:, None] * np.exp(eta)), design, batch, depth
    sampled = np.sort(rng.choice(12_000, 1500, replace=False))
    passes, n_passes = run(*data, sampled, penalty, n_clusters=N_CLUSTERS)
    assert passes.converged.all()
    assert n_passes <= (13 if interactions else 9)
    exact = fit(*data, penalty)
    assert np.abs(passes.coefficients[1:, 1:] - exact.interaction).max() < 1e-5


@pytest.mark.parametrize("n_clusters", [5, 30, 100])
def test_sums_of_a_gene_do_not_depend_on_the_others(n_clusters):
    """BLAS sums the columns of narrow and of wide matrices in other orders."""
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.full(n_clusters, 0.2), 1024)
    batch, depth = rng.integers(0, 3, 1024), rng.gamma(4, 50, 1024)
    coefficients = rng.normal(-2, 1, (4, n_clusters + 1, 75))
    whole = pass_moments(weights, batch, depth, coefficients)
    for genes in ([3], [70, 3], np.arange(9), np.arange(40, 73), np.arange(75)[::-1]):
        some = pass_moments(weights, batch, depth, coefficients[:, :, genes])
        np.testing.assert_array_equal(some, whole[:, :, genes])


@settings(max_examples=15)
@given(
    seed=st.integers(0, 10**6),
    tau=st.sampled_from([0.1, 1.0, 5.0]),
    share=st.sampled_from([0.1, 0.3, 1.0]),
)
def test_the_gradient_of_all_cells_vanishes_where_it_stops(seed, tau, share):
    counts, weights, batch, depth = simulate(seed, 3000, 4, spread=0.5)
    counts[:, 3] = 0
    counts[5, 3] = 1  # hardly ever in the sample
    penalty = Penalty.random_effects(N_CLUSTERS, N_BATCHES, tau)
    sampled = np.flatnonzero(np.random.default_rng(seed).random(3000) < share)
    passes, n_passes = run(counts, weights, batch, depth, sampled, penalty, limit=100)
    assert passes.converged.all(), n_passes
    point = passes.coefficients
    moments = pass_moments(weights, batch, depth, point)
    residual = moments - count_sums(counts, weights, batch)
    common = residual.sum(axis=0) + np.append(0.0, penalty.cluster)[:, None] * point[0]
    local = residual + tau**-2.0 * point[1:]
    size = np.maximum(1.0, counts.sum(axis=0))
    assert (np.abs(common) / size).max() < 1e-4
    assert (np.abs(local) / size).max() < 1e-4


def test_a_point_that_raised_the_objective_is_taken_back():
    counts, weights, batch, depth = simulate(3, 4000, 2)
    penalty = Penalty.random_effects(N_CLUSTERS, N_BATCHES)
    start = fit(counts, weights, batch, depth, penalty)
    start.intercept[0] += 6.0  # far away: the first steps overshoot
    start.intercept[1] -= 6.0
    sampled = np.arange(0, 4000, 10)
    passes, _ = run(counts, weights, batch, depth, sampled, penalty, 80, start)
    exact = fit(counts, weights, batch, depth, penalty)
    assert passes.converged.all()
    assert np.abs(passes.coefficients[1:, 0] - exact.batch).max() < 1e-5


def test_a_gene_without_counts_is_done_and_zero():
    counts, weights, batch, depth = simulate(4, 500, 2)
    counts[:, 1] = 0
    penalty = Penalty.random_effects(N_CLUSTERS, N_BATCHES)
    passes, _ = run(counts, weights, batch, depth, np.arange(0, 500, 3), penalty)
    moments = pass_moments(weights, batch, depth, passes.coefficients)
    assert passes.converged.all()
    assert not moments[:, :, 1].any()
