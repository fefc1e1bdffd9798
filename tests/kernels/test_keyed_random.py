"""Keyed random numbers and the portable exponential and logarithm they are used with."""

from __future__ import annotations

import numpy as np
import pytest
from numba import njit
from scipy import stats

from stdist.kernels import portable_math
from stdist.kernels.keyed_random import stream_key, uniform, uniforms

N = 1 << 20
SIGNIFICANCE = 1e-6  # all streams are fixed: a failure is a defect, never chance

GOLDEN_KEYS = {
    (0, "match", "Gad1"): 5503293860908592634,
    (0, "match", "Gad1", 1): 8270361003013559733,
    (42, "downsample", 7): 13648474514522502766,
}
GOLDEN_FROM_0 = [0.8924814341520707, 0.5906519609985798, 0.8055646047581319, 0.04282128131731866]
GOLDEN_FROM_7E9 = [0.7685917637556928, 0.19670190120816688]
GOLDEN_LAST = [0.7411275904716615]


@njit
def _exps(values, out):
    for i in range(values.size):
        out[i] = portable_math.exp(values[i])


@njit
def _logs(values, out):
    for i in range(values.size):
        out[i] = portable_math.log(values[i])


def _applied(function, values):
    out = np.empty_like(values)
    function(values, out)
    return out


def _error_in_units_of_last_place(values, exact):
    return np.max(np.abs(values - exact) / np.spacing(np.abs(exact.astype(np.float64))))


def test_golden_values():
    assert [int(stream_key(*a)) for a in GOLDEN_KEYS] == list(GOLDEN_KEYS.values())
    key = stream_key(0, "match", "Gad1")
    assert uniforms(key, 0, 4).tolist() == GOLDEN_FROM_0
    assert uniforms(key, 7_000_000_000, 2).tolist() == GOLDEN_FROM_7E9
    assert uniforms(key, 2**64 - 1, 1).tolist() == GOLDEN_LAST


def test_keys_depend_on_every_argument():
    arguments = [(s, p, i, d) for s in (0, 1, -1) for p in ("match", "fit", "")
                 for i in ("7", 7, "", "Gad1", "Gad1'") for d in (0, 1)]  # fmt: skip
    assert len({int(stream_key(*a)) for a in arguments}) == len(arguments)


def test_numpy_integers_give_the_key_of_python_integers():
    assert stream_key(np.int32(3), "fit", np.int64(7)) == stream_key(3, "fit", 7)


def test_uniforms_do_not_depend_on_the_partition_of_rows():
    key = stream_key(5, "match", "Slc17a7")
    whole = uniforms(key, 1000, 777)
    parts = [uniforms(key, 1000 + a, b - a) for a, b in ((0, 1), (1, 300), (300, 300), (300, 777))]
    assert np.array_equal(whole, np.concatenate(parts))
    assert [uniform(key, np.uint64(1000 + i)) for i in range(20)] == whole[:20].tolist()


def test_uniforms_are_odd_multiples_of_the_last_bit():
    u = uniforms(stream_key(0, "match", 1), 0, N)
    steps = u * 2.0**53
    assert np.array_equal(steps % 2, np.ones(N))
    assert 0 < u.min() < 1e-5
    assert 1 - 1e-5 < u.max() < 1
    assert np.array_equal(1 - (1 - u), u)


@pytest.mark.parametrize("row_start", [0, 2**32 - N // 2, 2**63])
def test_values_and_bits_are_uniform(row_start):
    u = uniforms(stream_key(11, "match", "Pvalb"), row_start, N)
    assert stats.kstest(u, "uniform").pvalue > SIGNIFICANCE
    bits = (u * 2.0**53).astype(np.uint64) >> np.uint64(1)
    for shift in (0, 8, 20, 32, 42):
        cells = np.bincount(
            ((bits >> np.uint64(shift)) & np.uint64(1023)).astype(int), minlength=1024
        )
        assert stats.chisquare(cells).pvalue > SIGNIFICANCE
    for bit in range(52):
        ones = int(((bits >> np.uint64(bit)) & np.uint64(1)).sum())
        assert abs(ones - N / 2) < 5.5 * np.sqrt(N / 4)


def _assert_independent(first, second):
    table = np.histogram2d(first, second, bins=32, range=[[0, 1], [0, 1]])[0]
    assert stats.chisquare(table.ravel()).pvalue > SIGNIFICANCE
    assert abs(np.corrcoef(first, second)[0, 1]) < 5.5 / np.sqrt(first.size)


@pytest.mark.parametrize("lag", [1, 2, 3, 64, 4096])
def test_rows_are_independent(lag):
    u = uniforms(stream_key(2, "match", "Sst"), 0, N + lag)
    _assert_independent(u[:-lag], u[lag:])


@pytest.mark.parametrize(
    "other", [(0, "match", 1), (1, "match", 0), (0, "fit", 0), (0, "match", 0, 1)]
)
def test_streams_are_independent(other):
    _assert_independent(
        uniforms(stream_key(0, "match", 0), 0, N), uniforms(stream_key(*other), 0, N)
    )


@pytest.mark.parametrize("flip", [0, 1, 31, 32, 63])
def test_keys_that_differ_in_one_bit_give_independent_streams(flip):
    key = stream_key(0, "match", 0)
    _assert_independent(uniforms(key, 0, N), uniforms(key ^ np.uint64(1 << flip), 0, N))


def test_genes_of_one_cell_are_independent_of_the_next_cell():
    keys = [stream_key(0, "match", f"gene {g}") for g in range(2048)]
    u = np.array([uniforms(key, 10, 513) for key in keys])
    _assert_independent(u[:, :-1].ravel(), u[:, 1:].ravel())
    _assert_independent(u[:-1].ravel(), u[1:].ravel())
    assert np.unique(u).size == u.size


def test_negative_rows_are_refused():
    with pytest.raises(ValueError, match="must not be negative"):
        uniforms(np.uint64(1), -1, 3)


@pytest.mark.parametrize(
    ("low", "high"),
    [(-745.1, -708), (-708, 709.78), (-40, 0), (-1, 1), (-1e-3, 1e-3), (-1e-12, 1e-12)],
)
def test_exp_is_within_one_unit_of_the_last_place(low, high):
    x = np.random.default_rng(0).uniform(low, high, 200_000)
    exact = np.exp(x.astype(np.longdouble))
    assert _error_in_units_of_last_place(_applied(_exps, x), exact) <= 1


def test_exp_at_the_ends_of_the_range():
    x = np.array([0, -0.0, 1e-320, np.inf, -np.inf, 709.782712893384, 709.7827128933841, 1e300,
                  -745.1332191019411, -745.1332191019412, -1e300, np.nan])  # fmt: skip
    expected = np.array([1, 1, 1, np.inf, 0, 1.797693134862273e308, np.inf, np.inf,
                         5e-324, 0, 0, np.nan])  # fmt: skip
    np.testing.assert_allclose(_applied(_exps, x), expected, rtol=1e-15, atol=0)


def test_exp_of_minus_d_is_not_below_one_minus_d():
    d = 10.0 ** np.random.default_rng(1).uniform(-18, 0, 500_000)
    assert np.all(_applied(_exps, -d) >= 1 - d)


@pytest.mark.parametrize(
    ("low", "high"), [(-323, -307), (-307, 308), (-2, 2), (-0.1, 0.1), (-1e-6, 1e-6)]
)
def test_log_is_within_one_unit_of_the_last_place(low, high):
    x = 10.0 ** np.random.default_rng(0).uniform(low, high, 200_000)
    x = x[x != 1]
    exact = np.log(x.astype(np.longdouble))
    assert _error_in_units_of_last_place(_applied(_logs, x), exact) <= 1


def test_log_at_the_ends_of_the_range():
    x = np.array([1, 0, -0.0, np.inf, -1, -np.inf, np.nan, 5e-324])
    expected = np.array([0, -np.inf, -np.inf, np.inf, np.nan, np.nan, np.nan, -744.4400719213812])
    np.testing.assert_allclose(_applied(_logs, x), expected, rtol=1e-15, atol=0)


def test_no_multiplication_is_fused_with_an_addition():
    _exps(np.zeros(8), np.zeros(8))
    assembly = "".join(_exps.inspect_asm().values()).lower()
    assert "mul" in assembly
    assert not any(name in assembly for name in ("fmadd", "fmsub", "fnmadd", "fmla"))
