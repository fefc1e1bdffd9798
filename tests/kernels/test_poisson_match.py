"""Exact matching of counts between Poisson distributions, against SciPy and in distribution."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, poisson

from stdist.kernels.keyed_random import stream_key, uniform, uniforms
from stdist.kernels.poisson_match import match_labels, match_soft, rates

KEYS = np.array([stream_key(7, "match", g) for g in range(4096)], np.uint64)


def matched(counts, source, target, row=0, cap=False):
    """Match one cell whose genes have the given counts and means; also its uniforms."""
    counts, source, target = np.broadcast_arrays(
        np.asarray(counts, np.int64), np.asarray(source, float), np.asarray(target, float)
    )
    keys = np.resize(KEYS, counts.size)
    out = match_labels(
        counts[None], [0], [0], [1.0], source[None, None], target[None], keys, row, cap=cap
    )
    return out[0], np.array([uniform(key, np.uint64(row)) for key in keys])


def oracle(counts, source, target, u):
    """SciPy's answer, and its distance from the nearest steps relative to the smaller tail."""
    q = poisson.cdf(counts - 1, source) + u * poisson.pmf(counts, source)
    s = poisson.sf(counts, source) + (1 - u) * poisson.pmf(counts, source)
    upper = q > 0.5
    tail = np.where(upper, s, q)

    def beyond(x):  # how far x reaches over the wanted quantile, relative to the tail
        lower = poisson.cdf(x, target) / tail - 1
        return np.where(upper, 1 - poisson.sf(x, target) / tail, lower)

    low, x = np.full(np.shape(q), -1.0), np.full(np.shape(q), 2.0**20)
    while np.any(x - low > 1):
        centre = np.floor((low + x) / 2)
        reached = beyond(centre) >= 0
        low, x = np.where(reached, low, centre), np.where(reached, centre, x)
    return x, np.minimum(np.abs(beyond(x)), np.abs(beyond(x - 1))), tail


def draws(source, target, n, name="gene", cap=False):
    key = np.array([stream_key(3, "match", name)], np.uint64)
    counts = np.random.default_rng(5).poisson(source, (n, 1))
    zeros = np.zeros(n, int)
    return match_labels(
        counts, zeros, zeros, np.ones(n), np.full((1, 1, 1), source), np.full((1, 1), target), key,
        0, cap=cap,
    )[:, 0]  # fmt: skip


@pytest.mark.parametrize(
    ("low", "high", "n"),
    [(1e-3, 0.3, 40_000), (0.1, 20, 40_000), (20, 300, 10_000), (100, 2e4, 3_000)],
)
def test_scipy_gives_the_same_counts(low, high, n):
    rng = np.random.default_rng(int(high * 10))
    source = np.exp(rng.uniform(np.log(low), np.log(high), n))
    target = source * np.exp(rng.normal(0, 1, n))
    counts = rng.poisson(source)
    result, u = matched(counts, source, target)
    expected, distance, tail = oracle(counts, source, target, u)
    decided = distance * tail > 1e-12
    assert decided.mean() > 0.999
    np.testing.assert_array_equal(result[decided], expected[decided])


def test_scipy_gives_the_same_counts_in_far_tails():
    rng = np.random.default_rng(1)
    n = 20_000
    source = np.exp(rng.uniform(np.log(1e-6), np.log(1e3), n))
    target = np.exp(rng.uniform(np.log(1e-3), np.log(1e3), n))
    deviates = rng.uniform(-25, 25, n)
    counts = np.maximum(np.round(source + deviates * np.sqrt(source) + (deviates > 0)), 0)
    result, u = matched(counts, source, target)
    expected, distance, tail = oracle(counts, source, target, u)
    decided = (tail > 1e-250) & (distance > 1e-10)
    assert decided.mean() > 0.9
    assert (tail[decided] < 1e-20).sum() > 1000
    np.testing.assert_array_equal(result[decided], expected[decided])


@pytest.mark.parametrize(
    ("source", "target", "n"),
    [(0.05, 0.1, 400_000), (0.1, 0.05, 400_000), (1, 0.001, 400_000), (0.4, 0.9, 400_000),
     (3, 1, 400_000), (20, 22, 200_000), (126, 130, 50_000), (1e3, 2e3, 20_000),
     (1e4, 1.1e4, 10_000)],
)  # fmt: skip
def test_poisson_counts_become_poisson_counts_of_the_target(source, target, n):
    result = draws(source, target, n)
    assert abs(result.mean() - target) < 4 * np.sqrt(target / n)
    zero = np.exp(-target)
    assert abs((result == 0).mean() - zero) <= 4 * np.sqrt(zero * (1 - zero) / n)
    edges = np.unique(poisson.ppf(np.linspace(0, 1, 41)[1:-1], target))
    expected = np.diff(np.concatenate([[0], poisson.cdf(edges, target), [1]])) * n
    observed = np.bincount(np.searchsorted(edges, result), minlength=expected.size)
    keep = expected > 5
    observed = np.append(observed[keep], observed[~keep].sum())
    expected = np.append(expected[keep], expected[~keep].sum())
    if expected[-1] < 1e-9:
        observed, expected = observed[:-1], expected[:-1]
    assert chisquare(observed, expected).pvalue > 1e-4


@pytest.mark.parametrize("mean", [1e-300, 1e-8, 0.05, 3.0, 64.0, 200.0, 39000.0])
def test_equal_means_return_the_count(mean):
    counts = np.array([0, 1, 2, 5, 17, 1000, 50_000])
    result, _ = matched(counts, mean, mean, cap=True)
    np.testing.assert_array_equal(result, counts)


def test_zeros_stay_zero_exactly_as_often_as_the_distributions_say():
    n = 200_000
    key = stream_key(3, "match", "zeros")
    for source, target in ((0.5, 0.2), (0.02, 0.05), (0.3, 2.0), (0.0, 1.0)):
        zeros = np.zeros(n, int)
        result = match_labels(
            np.zeros((n, 1), int), zeros, zeros, np.ones(n), np.full((1, 1, 1), source),
            np.full((1, 1), target), [key], 40,
        )[:, 0]  # fmt: skip
        np.testing.assert_array_equal(result == 0, uniforms(key, 40, n) <= np.exp(source - target))


@pytest.mark.parametrize("cap", [True, False])
def test_results_rise_with_the_count(cap):
    # One gene in many cells would change u; the same key in every column keeps it.
    for source, target in ((0.2, 0.5), (5, 3), (40, 90), (127, 129), (300, 250), (1e4, 9e3)):
        spread = int(8 * np.sqrt(source)) + 30
        counts = np.arange(max(0, int(source) - spread), int(source) + spread)
        out = match_labels(
            counts[None], [0], [0], [1.0], np.full((1, 1, counts.size), source),
            np.full((1, counts.size), target), np.full(counts.size, KEYS[0]), 5, cap=cap,
        )[0]  # fmt: skip
        assert np.all(np.diff(out) >= 0)
        assert out[-1] > out[0]


def test_counts_far_below_a_large_mean_do_not_collapse():
    result, _ = matched([19352] * 50, 39000.0, 39000.0 * np.linspace(0.5, 2, 50))
    assert np.all(np.diff(result) > 0)
    # Equal tails have almost equal densities; poisson.cdf itself is 0 here.
    densities = poisson.logpmf(result, 39000.0 * np.linspace(0.5, 2, 50))
    np.testing.assert_allclose(densities, poisson.logpmf(19352, 39000.0), atol=3)
    close, _ = matched(19352, 39000.0, np.array([38999.999, 39000.001]))
    assert np.all(np.abs(close - 19352) <= 1)


@pytest.mark.parametrize("cap", [True, False])
@pytest.mark.parametrize("source", [0.0, 5e-324, 1e-300, 1e-8, 1e-3, 1.0, 150.0, 39000.0])
@pytest.mark.parametrize("target", [0.0, 5e-324, 1e-300, 1e-8, 1e-3, 1.0, 150.0, 39000.0])
def test_extremes_give_defined_counts(source, target, cap):
    counts = np.array([0, 1, 2, 15, 16, 1000, 19352, 100_000])
    result, _ = matched(counts, source, target, cap=cap)
    assert np.all(result >= 0)
    if target == 0 and source > 0:
        assert not result.any()
    if cap:
        q = poisson.isf(1e-5, target) if target > 0 else 0
        assert np.all(result <= np.maximum(counts, q + 1))
    if target < source:
        assert np.all(result <= counts)
    elif not cap and source > 0:
        assert np.all(result >= counts)


def test_cap_is_one_above_the_quantile_and_leaves_ordinary_counts_alone():
    means = np.exp(np.random.default_rng(2).uniform(np.log(0.01), np.log(3e3), 500))
    extreme, _ = matched(30, np.full(500, 1e-8), means, cap=True)
    bound = np.maximum(30, poisson.isf(1e-5, means) + 1)
    np.testing.assert_array_equal(extreme, bound)
    uncapped, _ = matched(30, np.full(500, 1e-8), means)
    assert np.all(uncapped > bound)
    counts = np.random.default_rng(3).poisson(means)
    source = means * 1.05
    free, u = matched(counts, source, means)
    q = poisson.cdf(counts - 1, source) + u * poisson.pmf(counts, source)
    ordinary = q < 0.99998
    capped, _ = matched(counts, source, means, cap=True)
    np.testing.assert_array_equal(capped[ordinary], free[ordinary])


def tile(n=37, g=300, k=7, b=3, seed=0, dtype=np.uint16):
    rng = np.random.default_rng(seed)
    source = {
        "intercept": rng.normal(-5, 1.5, (b, g)),
        "coefficients": rng.normal(0, 0.5, (b, k, g)),
    }
    target = {"intercept": rng.normal(-5, 1.5, g), "coefficients": rng.normal(0, 0.5, (k, g))}
    weights = rng.dirichlet(np.full(k, 0.3), n).astype(np.float32)
    batch = rng.integers(0, b, n)
    depth = rng.lognormal(4, 0.6, n)
    eta = source["intercept"][batch] + np.einsum(
        "nk,nkg->ng", weights.astype(float), source["coefficients"][batch]
    )
    counts = rng.poisson(depth[:, None] * np.exp(eta)).astype(dtype)
    return counts, weights, batch, depth, source, target, KEYS[:g]


def soft(t, rows=slice(None), genes=slice(None), **options):
    counts, weights, batch, depth, source, target, keys = t
    start = 1000 + (rows.start or 0)
    return match_soft(
        counts[rows, genes], weights[rows], batch[rows], depth[rows],
        source["intercept"][:, genes], source["coefficients"][:, :, genes],
        target["intercept"][genes], target["coefficients"][:, genes], keys[genes], start,
        **options,
    )  # fmt: skip


TILE = tile()
WHOLE = soft(TILE)


@settings(max_examples=60)
@given(
    cuts=st.lists(st.integers(0, 37), max_size=5),
    genes=st.lists(st.integers(0, 299), min_size=1, max_size=300),
)
def test_soft_results_do_not_depend_on_rows_and_genes_of_the_tile(cuts, genes):
    bounds = [0, *sorted(cuts), 37]
    parts = [soft(TILE, slice(a, b), np.array(genes)) for a, b in pairwise(bounds)]
    np.testing.assert_array_equal(np.concatenate(parts), WHOLE[:, genes])


@settings(max_examples=30)
@given(cut=st.integers(0, 37), genes=st.lists(st.integers(0, 299), min_size=1, max_size=300))
def test_label_results_do_not_depend_on_rows_and_genes_of_the_tile(cut, genes):
    counts, weights, batch, depth, source, target, keys = TILE
    labels = weights.argmax(1)
    r_source, r_target = rates(**source), rates(**target)

    def run(rows, genes):
        return match_labels(
            counts[rows][:, genes], labels[rows], batch[rows], depth[rows], r_source[..., genes],
            r_target[:, genes], keys[genes], rows.start,
        )  # fmt: skip

    whole = run(slice(0, 37), np.arange(300))
    parts = [run(slice(0, cut), np.array(genes)), run(slice(cut, 37), np.array(genes))]
    np.testing.assert_array_equal(np.concatenate(parts), whole[:, genes])


@pytest.mark.parametrize("weight_type", [np.float32, np.float64])
@pytest.mark.parametrize("k", [1, 2, 5, 8])
def test_labels_equal_soft_assignments_that_are_one_hot(k, weight_type):
    counts, _, batch, depth, source, target, keys = tile(n=300, k=k, seed=k)
    labels = np.random.default_rng(k).integers(0, k, 300)
    weights = np.eye(k, dtype=weight_type)[labels]
    output = match_soft(
        counts, weights, batch, depth, source["intercept"], source["coefficients"],
        target["intercept"], target["coefficients"], keys, 0, target_depth=2 * depth,
    )  # fmt: skip
    expected = match_labels(
        counts, labels, batch, depth, rates(**source), rates(**target), keys, 0,
        target_depth=2 * depth,
    )  # fmt: skip
    np.testing.assert_array_equal(output, expected)


def test_soft_means_are_those_of_the_formula():
    counts, weights, batch, depth, source, target, keys = tile(n=200, k=11, seed=9)
    target_depth = depth[::-1].copy()
    result = match_soft(
        counts, weights, batch, depth, source["intercept"], source["coefficients"],
        target["intercept"], target["coefficients"], keys, 50, target_depth=target_depth,
        cap=False,
    )  # fmt: skip
    w = weights.astype(float)
    eta = source["intercept"][batch] + np.einsum("nk,nkg->ng", w, source["coefficients"][batch])
    ms = depth[:, None] * np.exp(eta)
    mt = target_depth[:, None] * np.exp(target["intercept"] + w @ target["coefficients"])
    u = np.stack([uniforms(key, 50, 200) for key in keys], axis=1)
    expected, distance, tail = oracle(counts.astype(float), ms, mt, u)
    decided = distance * tail > 1e-12
    assert decided.mean() > 0.999
    np.testing.assert_array_equal(result[decided], expected[decided])


@pytest.mark.parametrize("dtype", ["i1", "u8"])
def test_integer_types_agree(dtype):
    counts = np.minimum(TILE[0], 20)
    expected = soft((counts.astype(np.int64), *TILE[1:]), out=np.empty(counts.shape, np.int64))
    result = soft((counts.astype(dtype), *TILE[1:]), out=np.empty(counts.shape, np.int32))
    assert result.dtype == np.int32
    np.testing.assert_array_equal(result, expected)


def test_result_has_the_type_of_the_counts_by_default():
    assert WHOLE.dtype == np.uint16


def test_empty_tiles_are_returned_empty():
    assert soft(TILE, slice(3, 3)).shape == (0, 300)
    assert soft(TILE, slice(None), slice(0, 0)).shape == (37, 0)


def _one(counts, source, target, **options):
    n, g = np.shape(counts)
    zeros = np.zeros(n, int)
    return match_labels(
        np.asarray(counts), zeros, zeros, np.ones(n), np.reshape(source, (1, 1, g)),
        np.reshape(target, (1, g)), KEYS[:g], 100, **options,
    )  # fmt: skip


def test_overflow_of_the_output_type_names_row_and_gene():
    counts = np.array([[1, 1], [1, 200], [1, 250]], np.uint8)
    with pytest.raises(OverflowError, match="row 101, gene 1: the matched count exceeds uint8"):
        _one(counts, [1.0, 100.0], [1.0, 200.0])
    wide = _one(counts, [1.0, 100.0], [1.0, 200.0], out=np.empty((3, 2), np.int32))
    assert wide[1, 1] > 255


@pytest.mark.parametrize("bad", [np.nan, -1e-9, np.inf, 2.1**31])
def test_bad_means_name_row_and_gene(bad):
    with pytest.raises(ValueError, match="row 100, gene 1: a Poisson mean"):
        _one(np.zeros((3, 3), int), [1.0, bad, 1.0], [1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="row 100, gene 2: a Poisson mean"):
        _one(np.zeros((3, 3), int), [1.0, 1.0, 1.0], [1.0, 1.0, bad])


def test_overflowing_soft_means_name_row_and_gene():
    t = tile()
    t[4]["coefficients"][:, :, 17] = 5000.0
    with pytest.raises(ValueError, match="row 1000, gene 17"):
        soft(t)


def test_negative_counts_name_row_and_gene():
    with pytest.raises(ValueError, match="row 101, gene 0: the count is negative"):
        _one(np.array([[0, 3], [-1, 0]]), [1.0, 1.0], [2.0, 2.0])


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, TILE[0].astype(float), "matrix of integers"),
        (1, TILE[1].astype(np.float16), "float32 or float64"),
        (1, TILE[1][:-1], "weights must have the shape"),
        (2, TILE[2] + 1, "batch codes must lie between 0 and 2"),
        (2, TILE[2] - 1, "batch codes must lie between 0 and 2"),
        (3, TILE[3] * 0, "depth must be positive"),
        (3, np.append(TILE[3][:-1], np.nan), "depth must be positive"),
        (6, KEYS[:299], "gene_keys must have the shape"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(position, value, message):
    arguments = list(TILE)
    arguments[position] = value
    with pytest.raises(ValueError, match=message):
        soft(tuple(arguments))


def test_negative_first_row_is_refused():
    with pytest.raises(ValueError, match="row_start must not be negative"):
        soft(TILE, slice(-1001, None))


def test_output_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="out must be"):
        soft(TILE, out=np.empty((37, 299), np.int32))
