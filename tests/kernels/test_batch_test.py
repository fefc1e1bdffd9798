"""Test of batch effects: calibration, power, sums in place of cells."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from scipy import sparse, stats

from stdist.kernels import batch_test, power_sums
from stdist.kernels.batch_test import compare_batches, compare_strata
from stdist.kernels.false_discovery import affected_genes


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


def test_covariance_is_that_of_sums_less_their_share():
    rng = np.random.default_rng(0)
    share, variances = rng.dirichlet(np.ones(4)), rng.gamma(1, 1, (4, 3))
    deviation = np.eye(4) - np.outer(share, np.ones(4))
    for gene, found in enumerate(batch_test._covariance(share, variances)):
        expected = deviation @ np.diag(variances[:, gene]) @ deviation.T
        np.testing.assert_allclose(found, expected, atol=1e-14)


@pytest.mark.parametrize("dispersion", [0.0, 1.0])
@pytest.mark.parametrize("ratio", [0.25, 1.0, 4.0])
def test_a_small_batch_of_other_depth_is_no_effect(ratio, dispersion):
    rng = np.random.default_rng(int(8 * ratio))
    n_cells, n_genes = 3000, 600
    batch = (rng.random(n_cells) < 0.05).astype(int)
    label = rng.integers(0, 3, n_cells)
    depth = rng.lognormal(5, 0.4, n_cells) * np.where(batch == 1, ratio, 1.0)
    mean = depth[:, None] * rng.lognormal(-6, 0.7, (3, n_genes))[label]
    if dispersion:
        mean = mean * rng.gamma(1 / dispersion, dispersion, mean.shape)
    found = compare_batches(rng.poisson(mean), np.eye(3)[label], batch, depth, label, 2)
    for p in (found.main, found.association, found.p_value):
        for level in (0.01, 0.1):
            called = int((p < level).sum())
            assert stats.binomtest(called, n_genes, level, "greater").pvalue > 1e-3
    assert not affected_genes(found.p_value, np.ones(n_genes)).any()


def test_a_shift_of_a_small_deep_batch_is_found():
    rng = np.random.default_rng(5)
    batch = (rng.random(6000) < 0.1).astype(int)
    depth = rng.lognormal(5, 0.4, 6000) * np.where(batch == 1, 3.0, 1.0)
    effect = np.array([0.0, 0.4, -0.4])
    counts = rng.poisson(depth[:, None] * 0.004 * np.exp(batch[:, None] * effect))
    found = compare_batches(counts, np.ones((6000, 1)), batch, depth, 0 * batch, 2)
    assert found.p_value[0] > 0.01
    assert (found.p_value[1:] < 1e-8).all()


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
        member @ counts,
        member @ depth,
        member @ depth**2,
        member.sum(axis=2).astype(int),
        powers,
        depth_powers,
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
