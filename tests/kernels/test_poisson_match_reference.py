"""The released matching rule: its bounds, its draws, and counts where it has none."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import gammaincc
from scipy.stats import chisquare, poisson

from stdist.kernels.keyed_random import stream_key
from stdist.kernels.poisson_match_reference import CEILING, match_reference, reference_bounds

KEYS = np.array([stream_key(7, "match", g) for g in range(64)], np.uint64)


@pytest.fixture(scope="module")
def fixtures(shared):
    return shared / "fixtures" / "crescendo"


def distance(found, expected):
    return np.abs(found - expected) / (1 + expected)


def test_bounds_on_the_grid_equal_the_released_program(fixtures):
    grid = np.load(fixtures / "matching_grid.npz")
    lower, upper = reference_bounds(grid["k"], grid["mu_source"], grid["mu_target"])
    assert np.isfinite(lower).all()
    assert (lower >= 0).all()
    assert (upper >= lower).all()
    defined = ~np.isnan(grid["qmin"])
    for found, name in ((lower, "qmin"), (upper, "qmax")):
        close = distance(found, grid[name])[defined] <= 1e-4
        assert close.mean() >= 0.98
        # below 1e-25 the root finding of the released program ends at zero
        tail = np.where(grid["cdf_min"] > 0, grid["cdf_min"], grid["cdf_max"])[defined]
        assert close[(tail == 0) | (tail >= 1e-25)].all()


@pytest.mark.parametrize("name", ["sim_a", "real_a"])
@pytest.mark.parametrize("offset", ["final", "observed"])
def test_bounds_on_data_equal_the_released_program(fixtures, name, offset):
    case = np.load(fixtures / f"{name}.npz")
    source = case["expected_full_observed"]
    if offset == "final":
        source = source / case["numi"][:, None] * np.median(case["numi"])
    found = reference_bounds(case["counts"], source, case["expected_marginalized"])
    # far tails: the root finding of the released program ends at zero
    lowest = np.where(case["counts"] > 0, case["counts"] - 1, 0)
    ordinary = poisson.cdf(lowest, source) > 1e-22
    assert ordinary.mean() > 0.995
    for values, end in zip(found, ("qmin", "qmax"), strict=True):
        close = distance(values, case[f"{end}_{offset}"]) <= 1e-4
        assert close.mean() >= 0.98
        assert close[ordinary].all()


def oracle(count, source, target):
    """Bounds in double precision by SciPy, and the weights of what may be drawn."""

    def quantile(p):
        if p <= np.exp(-target):
            return 0.0
        high = poisson.isf(1e-6, target) + 5
        return brentq(lambda x: gammaincc(x + 1, target) - p, 0, high, xtol=1e-12)

    def cut(x):
        return min(float(np.float32(poisson.cdf(x, np.float32(source)))), float(CEILING))

    qmin = quantile(cut(count - 1)) + 1 if count else 0.0
    qmax = max(quantile(cut(count)), qmin)
    if qmin == qmax:
        return qmin, qmax, np.array([np.floor(qmin)]), np.ones(1)
    values = np.arange(np.floor(qmin), np.floor(qmax + 1) + 1)
    weights = poisson.pmf(values, target)
    weights[0] *= 1 - qmin % 1
    weights[-1] *= qmax % 1
    return qmin, qmax, values, weights / weights.sum()


@pytest.mark.parametrize(
    ("count", "source", "target"),
    [(0, 0.3, 2.0), (0, 0.05, 0.1), (0, 1.0, 40.0), (1, 0.5, 3.0), (3, 2.0, 9.0), (2, 5.0, 1.0),
     (10, 12.0, 30.0), (60, 50.0, 900.0), (30, 1.0, 20.0), (1, 0.001, 7.5)],
)  # fmt: skip
def test_draws_follow_the_stated_weights(count, source, target):
    qmin, qmax, values, weights = oracle(count, source, target)
    lower, upper = reference_bounds(count, source, target)
    np.testing.assert_allclose([lower, upper], [qmin, qmax], rtol=1e-5, atol=1e-5)
    n = 40_000
    means = np.ones((n, 1))
    out = match_reference(np.full((n, 1), count), source * means, target * means, KEYS[:1], 0)[:, 0]
    assert out.min() >= np.floor(lower)
    assert out.max() <= np.floor(upper + 1)
    observed = (out[:, None] == values).sum(axis=0)
    likely = weights * n >= 5
    expected = np.append(weights[likely], weights[~likely].sum()) * n
    observed = np.append(observed[likely], observed[~likely].sum())
    if expected[-1] < 1:
        assert observed[-1] <= 5
        expected, observed = (
            expected[:-1] * observed[:-1].sum() / expected[:-1].sum(),
            observed[:-1],
        )
    if len(expected) > 1:
        assert chisquare(observed, expected).pvalue > 1e-4


@pytest.mark.parametrize("source", [0.0, 1e-50, 1e-40, 1e-8, 1.0, 39000.0, 2.0**31, 1e200, np.inf])
@pytest.mark.parametrize("target", [0.0, 1e-50, 1e-40, 1e-8, 1.0, 39000.0])
def test_every_count_has_a_result(source, target):
    counts = np.array([[0, 1, 5, 1000, 19352, 1_000_000]])
    means = np.ones(counts.shape)
    out = match_reference(counts, source * means, target * means, KEYS[:6], 3)
    assert (out >= 0).all()
    if min(source, target) < 1e-45 or source > 2.0**31:
        np.testing.assert_array_equal(out, counts)
    else:
        assert (out[0, 1:] >= 1).all()  # a count that is not zero never becomes zero
        assert (out <= poisson.isf(9e-6, np.float32(target)) + 2).all()


def test_results_do_not_depend_on_the_tile_and_types():
    rng = np.random.default_rng(0)
    source = rng.lognormal(0, 1.5, (50, 64))
    target = source * rng.lognormal(0, 0.7, (50, 64))
    counts = rng.poisson(source).astype(np.uint16)
    whole = match_reference(counts, source, target, KEYS, 100)
    assert whole.dtype == np.uint16
    assert (whole != counts).any()
    part = np.s_[20:31, 5:40:7]
    cut = match_reference(counts[part], source[part], target[part], KEYS[5:40:7], 120)
    np.testing.assert_array_equal(cut, whole[part])
    wide = match_reference(counts, source, target, KEYS, 100, out=np.empty((50, 64), np.int64))
    np.testing.assert_array_equal(wide, whole)


def test_what_does_not_fit_is_named():
    one = np.ones((1, 3))
    with pytest.raises(ValueError, match="row 100, gene 1: a Poisson mean"):
        match_reference(np.zeros((1, 3), int), [[1, np.nan, 1]], one, KEYS[:3], 100)
    with pytest.raises(ValueError, match="row 100, gene 2: the count is negative"):
        match_reference(np.array([[0, 0, -1]]), one, one, KEYS[:3], 100)
    with pytest.raises(OverflowError, match=r"row 100, gene 0: .*uint8"):
        match_reference(np.full((1, 3), 250, np.uint8), 200 * one, 900 * one, KEYS[:3], 100)
    with pytest.raises(ValueError, match="source_mean must have the shape"):
        match_reference(np.zeros((1, 3), int), one[:, :2], one, KEYS[:3], 0)
