from __future__ import annotations

import doctest

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from stdist.kernels import negative_binomial
from stdist.kernels.keyed_random import stream_key
from stdist.kernels.negative_binomial import (
    log_probability,
    match_tile,
    matched_count,
    moment_dispersion,
)
from stdist.kernels.poisson_quantile import matched_count as poisson_count
from stdist.kernels.portable_math import exp


def oracle(mean, dispersion):
    size = 1.0 / dispersion
    return stats.nbinom(size, size / (size + mean))


@pytest.mark.parametrize("mean", [1e-3, 0.4, 7.0, 150.0, 1e4])
@pytest.mark.parametrize("dispersion", [1e-4, 0.05, 1.0, 8.0])
def test_probabilities_are_those_of_scipy(mean, dispersion):
    x = np.unique(np.geomspace(1, 1 + 20 * mean * (1 + dispersion), 60).astype(int))
    wanted = oracle(mean, dispersion).logpmf(x)
    found = [log_probability(float(k), mean, dispersion) for k in x]
    # scipy's differences of log-gammas lose digits where 1 / dispersion is large
    assert np.allclose(found, wanted, rtol=1e-9, atol=1e-8)


@settings(max_examples=400)
@given(
    source=st.floats(1e-4, 2e3),
    ratio=st.floats(0.05, 20),
    dispersion=st.floats(1e-3, 5),
    quantile=st.floats(1e-6, 1 - 1e-6),
    u=st.floats(1e-6, 1 - 1e-6),
)
def test_the_quantile_is_that_of_scipy(source, ratio, dispersion, quantile, u):
    target = source * ratio
    assume(target != source)
    before, after = oracle(source, dispersion), oracle(target, dispersion)
    count = float(before.ppf(quantile))
    found = matched_count(count, source, target, dispersion, u, False)
    low, mass = before.cdf(count - 1), before.pmf(count)
    above = before.sf(count) + (1 - u) * mass
    q = low + u * mass
    slack = 1e-9
    # P(X <= found - 1) < q <= P(X <= found), judged on the side that has digits
    if q < 0.5:
        assert after.cdf(found) >= q * (1 - slack)
        assert found == 0 or after.cdf(found - 1) < q * (1 + slack)
    else:
        assert after.sf(found) <= above * (1 + slack)
        assert found == 0 or after.sf(found - 1) > above * (1 - slack)


@settings(max_examples=200)
@given(
    count=st.integers(0, 60),
    source=st.floats(0.01, 40),
    target=st.floats(0.01, 40),
    u=st.floats(0.01, 0.99),
)
def test_little_dispersion_is_poisson(count, source, target, u):
    below = stats.poisson(source).cdf(count - 1) + u * stats.poisson(source).pmf(count)
    assume(1e-3 < below < 1 - 1e-3)
    edge = stats.poisson(target).cdf(np.arange(200))
    assume(np.abs(edge - below).min() > 1e-6)
    wanted = poisson_count(float(count), source, target, exp(-source), exp(-target), u, False)
    assert matched_count(float(count), source, target, 1e-9, u, False) == wanted


def test_matched_counts_have_the_target_distribution():
    rng = np.random.default_rng(0)
    n, dispersion = 200_000, 0.8
    source = np.repeat([[0.3, 4.0, 300.0]], n, axis=0)
    target = np.repeat([[0.7, 2.5, 200.0]], n, axis=0)
    size = 1 / dispersion
    counts = rng.negative_binomial(size, size / (size + source))
    keys = np.array([stream_key(1, "test", g) for g in range(3)])
    out = match_tile(counts, source, target, np.full(3, dispersion), keys, 5, False)
    for g in range(3):
        after = oracle(target[0, g], dispersion)
        edges = np.unique(after.ppf(np.linspace(0, 1, 40)[1:-1]))
        observed = np.histogram(out[:, g], [-1, *(edges + 0.5), np.inf])[0]
        expected = n * np.diff(np.concatenate([[0], after.cdf(edges), [1]]))
        assert stats.chisquare(observed, expected).pvalue > 1e-3
        mean, error = out[:, g].mean(), after.std() / np.sqrt(n)
        assert abs(mean - target[0, g]) < 4 * error


def test_a_tile_may_be_cut_anywhere_and_the_cap_holds():
    rng = np.random.default_rng(1)
    counts = rng.negative_binomial(1, 0.1, (50, 2))
    counts[0] = 100_000
    source, target = np.full((50, 2), 3.0), np.full((50, 2), [[9.0, 0.0]])
    keys = np.array([stream_key(0, "test", g) for g in range(2)])
    whole = match_tile(counts, source, target, np.full(2, 0.5), keys, 0, True)
    parts = [
        match_tile(counts[a:b], source[a:b], target[a:b], np.full(2, 0.5), keys, a, True)
        for a, b in ((0, 7), (7, 50))
    ]
    assert (np.concatenate(parts) == whole).all()
    assert whole[0, 0] <= 100_000
    assert (whole[1:, 0] <= oracle(9.0, 0.5).ppf(0.99999) + 1).all()
    assert not whole[:, 1].any()


def test_dispersion_by_moments_is_recovered():
    rng = np.random.default_rng(2)
    mean = rng.gamma(2, 2, (40_000, 1)) * np.ones((1, 2))
    y = np.column_stack([rng.negative_binomial(2, 2 / (2 + mean[:, 0])), rng.poisson(mean[:, 1])])
    found = moment_dispersion(((y - mean) ** 2).sum(0), mean.sum(0), (mean**2).sum(0))
    assert found == pytest.approx([0.5, 0.0], abs=0.02)


def test_examples():
    assert doctest.testmod(negative_binomial).failed == 0
