"""Test of batch effects: moments over all permutations, calibration, sums in place of cells."""

from __future__ import annotations

import doctest
from itertools import permutations

import numpy as np
import pytest
from scipy import sparse, stats

from stdist.kernels import batch_test, power_sums
from stdist.kernels.batch_test import compare_batches, compare_strata, permutation_variance


def drawn(weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One cluster per cell."""
    return (rng.random((len(weights), 1)) > weights.cumsum(axis=1)[:, :-1]).sum(axis=1)


def overdispersed(
    rng: np.random.Generator, n_cells: int, n_genes: int, n_clusters: int = 6
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Draw sparse negative binomial counts of soft clusters: counts, weights, depth, strata."""
    weights = rng.dirichlet(np.full(n_clusters, 0.3), n_cells)
    depth = rng.lognormal(6, 0.6, n_cells)
    rate = np.exp(rng.normal(-7, 1, n_genes) + weights @ rng.normal(0, 1, (n_clusters, n_genes)))
    counts = rng.poisson(depth[:, None] * rate * rng.gamma(0.7, 1 / 0.7, (n_cells, n_genes)))
    return counts, weights, depth, drawn(weights, rng)


def test_permutation_variance_is_that_over_all_permutations():
    x = np.array([4.0, 0.0, -1.0, -0.5, 0.25, -2.75])
    group = np.array([0, 0, 1, 1, 1, 2])
    member = np.eye(3)[group]
    projection = member @ np.diag(1 / member.sum(axis=0)) @ member.T - 1 / 6
    values = [np.array(p) @ projection @ np.array(p) for p in permutations(x)]
    found = permutation_variance(
        np.array(6.0),
        (x**2).sum(),
        (x**4).sum(),
        np.array(2.0),
        (projection.diagonal() ** 2).sum(),
    )
    np.testing.assert_allclose(found, np.var(values), rtol=1e-12)
    np.testing.assert_allclose(np.mean(values), 2 * (x**2).sum() / 5, rtol=1e-12)


def test_p_values_are_those_of_drawn_permutations():
    rng = np.random.default_rng(4)
    counts, weights, depth, strata = overdispersed(rng, 600, 12, 3)
    batch = rng.integers(0, 3, 600)
    counts[batch == 1, 0] += rng.poisson(1.0, (batch == 1).sum())
    residuals = batch_test.linear_residuals(counts.astype(float), weights, depth)

    def statistics(batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        total, within, covariance = 0.0, 0.0, 0.0
        for k in range(3):
            member = np.eye(3)[batch[strata == k]]
            x = residuals[strata == k] - residuals[strata == k].mean(axis=0)
            size, n = member.sum(axis=0), len(x)
            shift = member.T @ x
            total = total + shift
            within = within + (shift**2 / size[:, None]).sum(axis=0)
            spread = np.diag(size) - np.outer(size, size) / n
            covariance = covariance + x.var(axis=0, ddof=1)[:, None, None] * spread
        main = np.einsum("ag,gab,bg->g", total[:2], np.linalg.inv(covariance[:, :2, :2]), total[:2])
        return main, within

    observed = statistics(batch)
    draws = np.zeros((2, 12))
    n_draws = 3000
    for _ in range(n_draws):
        shuffled = batch.copy()
        for k in range(3):
            shuffled[strata == k] = rng.permutation(batch[strata == k])
        draws += np.greater_equal(statistics(shuffled), observed)
    found = compare_batches(sparse.csr_array(counts), weights, batch, depth, strata, 3)
    # the error of 3000 draws is below 0.01, that of the fitted distributions about the same
    np.testing.assert_allclose(found.main, draws[0] / n_draws, atol=0.03)
    np.testing.assert_allclose(found.association, draws[1] / n_draws, atol=0.03)
    assert found.main[0] < 0.01


@pytest.mark.parametrize("n_batches", [2, 5])
def test_p_values_are_uniform_without_batch_effect_however_overdispersed(n_batches):
    rng = np.random.default_rng(n_batches)
    counts, weights, depth, strata = overdispersed(rng, 2000, 800)
    # batches differ in their mix of clusters, which is no batch effect
    preference = rng.gamma(2, 1, (6, n_batches))[strata]
    batch = (rng.random((2000, 1)) * preference.sum(1, keepdims=True) > preference.cumsum(1)).sum(1)
    found = compare_batches(counts, weights, batch, depth, strata, n_batches)
    for p in (found.main, found.association, found.p_value):
        assert stats.kstest(p, "uniform").pvalue > 1e-3
        assert stats.binomtest(int((p < 0.01).sum()), 800, 0.01).pvalue > 1e-3
    assert np.median(found.dispersion) > 1.2  # a Poisson test would see effects everywhere


def test_effects_of_opposite_sign_are_found_by_association_only():
    rng = np.random.default_rng(1)
    label = np.arange(8000) % 4
    batch = rng.integers(0, 2, 8000)
    sign = np.where(label < 2, 1.0, -1.0) * (batch - 0.5)
    rate = np.exp(0.5 * np.column_stack([0 * sign, sign, batch])) * 0.5
    found = compare_batches(rng.poisson(rate), np.eye(4)[label], batch, np.ones(8000), label, 2)
    assert found.p_value[0] > 0.01
    assert found.association[1] < 1e-6 < 0.01 < found.main[1]
    assert found.main[2] < 1e-6
    assert (found.p_value[1:] < 1e-6).all()


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
def test_sums_give_the_result_of_the_cells(form):
    rng = np.random.default_rng(7)
    counts, _, depth, label = overdispersed(rng, 3000, 40)
    batch = rng.integers(0, 4, 3000)
    batch[label == 5] = 2  # a label of one batch says nothing
    cells = compare_batches(counts, np.eye(6)[label], batch, depth, label, 4)
    member = np.zeros((4, 6, 3000))
    member[batch, label, np.arange(3000)] = 1
    parts = [
        power_sums.power_sums(label[half], 6, form(counts[half]), depth[half])
        for half in (slice(0, 1000), slice(1000, None))
    ]
    powers, depth_powers = (first + second for first, second in zip(*parts, strict=True))
    sums = compare_strata(
        member @ counts, member @ depth, member.sum(axis=2).astype(int), powers, depth_powers
    )
    for name in ("main", "association", "p_value", "dispersion"):
        np.testing.assert_allclose(getattr(sums, name), getattr(cells, name), rtol=1e-6)


def test_what_cannot_be_tested_has_p_one():
    rng = np.random.default_rng(2)
    counts = rng.poisson(1.0, (60, 2))
    counts[:, 1] = 0
    one, label = np.ones(60), np.arange(60) // 20
    alone = compare_batches(counts, np.eye(3)[label], label, one, label, 3)
    assert (alone.p_value == 1).all()
    mixed = compare_batches(counts, np.eye(3)[label], np.arange(60) % 2, one, label, 2)
    assert mixed.p_value[0] < 1
    assert mixed.p_value[1] == 1
    assert (mixed.dispersion >= 1).all()


def test_dispersion_is_the_variance_over_the_mean():
    rng = np.random.default_rng(3)
    n = 50_000
    counts = np.column_stack([rng.poisson(2.0, n), rng.poisson(rng.gamma(1.0, 2.0, n))])
    batch = np.arange(n) % 2
    found = compare_batches(counts, np.ones((n, 1)), batch, np.ones(n), 0 * batch, 2)
    np.testing.assert_allclose(found.dispersion, [1.0, 3.0], rtol=0.03)


def test_doctests():
    for module in (batch_test, power_sums):
        assert doctest.testmod(module).failed == 0
