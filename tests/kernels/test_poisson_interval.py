"""Intervals of matched counts: quantiles of the draws, and the means they are made of."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stdist.kernels.keyed_random import stream_key
from stdist.kernels.poisson_interval import match_interval
from stdist.kernels.poisson_match import match_labels, match_soft, rates
from stdist.kernels.poisson_means import soft_means

N = 40_000


def draws(count, source, target, cap=True):
    zeros = np.zeros(N, int)
    return match_labels(
        np.full((N, 1), count), zeros, zeros, np.ones(N), np.full((1, 1, 1), source),
        np.full((1, 1), target), [stream_key(3, "match", "gene")], 0, cap=cap,
    )[:, 0]  # fmt: skip


@pytest.mark.parametrize("level", [0.5, 0.9])
@pytest.mark.parametrize(
    ("count", "source", "target"),
    [(0, 0.2, 0.1), (0, 0.2, 3.0), (1, 0.1, 0.05), (1, 0.5, 2.0), (3, 3.0, 3.0), (4, 1.0, 30.0),
     (12, 15.0, 9.0), (150, 140.0, 260.0), (1, 300.0, 2.0)],
)  # fmt: skip
def test_interval_covers_as_stated(count, source, target, level):
    low, high = match_interval(np.array([[count]]), [[source]], [[target]], level)
    found = draws(count, source, target)
    tail = (1 - level) / 2
    error = 4 * np.sqrt(tail * (1 - tail) / N)
    assert (found < low[0, 0]).mean() <= tail + error
    assert (found > high[0, 0]).mean() <= tail + error
    # the ends are quantiles: one step further in leaves out more than the tail
    assert (found <= low[0, 0]).mean() >= tail - error
    assert (found >= high[0, 0]).mean() >= tail - error


@settings(max_examples=40)
@given(
    count=st.integers(0, 300),
    source=st.floats(1e-3, 300),
    target=st.floats(1e-3, 300),
    levels=st.tuples(st.floats(0.01, 0.99), st.floats(0.01, 0.99)).map(sorted),
)
def test_intervals_are_nested(count, source, target, levels):
    ends = [match_interval(np.array([[count]]), [[source]], [[target]], level) for level in levels]
    (inner_low, inner_high), (outer_low, outer_high) = ends
    assert outer_low <= inner_low <= inner_high <= outer_high


def test_interval_contains_unchanged_counts_and_names_what_does_not_fit():
    counts = np.array([[0, 3, 70]], np.uint8)
    low, high = match_interval(counts, np.full((1, 3), 2.5), np.full((1, 3), 2.5), 0.99)
    np.testing.assert_array_equal(low, counts)
    np.testing.assert_array_equal(high, counts)
    assert low.dtype == np.uint8
    one = np.ones((1, 3))
    with pytest.raises(ValueError, match="row 9, gene 1: a Poisson mean"):
        match_interval(counts, [[1, -1, 1]], one, 0.9, 9)
    with pytest.raises(OverflowError, match="row 9, gene 2"):
        match_interval(counts, 60 * one, 400 * one, 0.9, 9)
    with pytest.raises(ValueError, match="level"):
        match_interval(counts, one, one, 1.0)


def test_means_are_those_of_the_matching():
    """With the same bits: counts matched at equal means stay, whatever the rounding."""
    rng = np.random.default_rng(1)
    n, k, b, g = 200, 7, 3, 40
    weights = rng.dirichlet(np.ones(k), n)
    batch, depth = rng.integers(0, b, n), rng.lognormal(5, 1, n)
    intercept, coefficients = rng.normal(-4, 1, (b, g)), rng.normal(0, 1, (b, k, g))
    means = soft_means(weights, batch, depth, intercept, coefficients)
    eta = intercept[batch] + np.einsum("nk,nkg->ng", weights, coefficients[batch])
    np.testing.assert_allclose(means, depth[:, None] * np.exp(eta), rtol=1e-12)

    labels = rng.integers(0, k, n)
    of_labels = depth[:, None] * rates(intercept, coefficients)[batch, labels]
    np.testing.assert_array_equal(
        soft_means(np.eye(k, dtype=np.float32)[labels], batch, depth, intercept, coefficients),
        of_labels,
    )
    part = np.s_[30:50], np.s_[3:17]
    cut = soft_means(
        weights[part[0]], batch[part[0]], depth[part[0]], intercept[:, part[1]],
        coefficients[:, :, part[1]],
    )  # fmt: skip
    np.testing.assert_array_equal(cut, means[part])

    # a draw lies in the interval of almost all mass, which is made from these means
    counts = rng.poisson(means)
    target = rng.normal(-4, 1, g), rng.normal(0, 1, (k, g))
    keys = np.array([stream_key(0, "match", i) for i in range(g)], np.uint64)
    out = match_soft(counts, weights, batch, depth, intercept, coefficients, *target, keys, 0)
    goal = soft_means(weights, np.zeros(n, int), depth, target[0][None], target[1][None])
    low, high = match_interval(counts, means, goal, 1 - 1e-9)
    assert ((low <= out) & (out <= high)).all()
