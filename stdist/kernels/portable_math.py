"""Exponential and logarithm with the same bits on every processor.

Vendors' mathematical libraries differ in the last bit, and a last bit can move a count across a
step of a distribution function.  These two functions use only additions, multiplications,
divisions and integer operations in a fixed order, so that Numba on any CPU, a C compiler with
``-ffp-contract=off`` and CUDA with ``--fmad=false`` agree exactly (``portable_math.cuh`` is the
same text in C).  They have no branches that depend on data, so loops over them vectorise.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

_LOG2_E = 1.4426950408889634
# ln 2 in two parts; the first has 32 trailing zero bits, so its products with exponents are exact.
_LN2_HIGH = 0.6931471803691238
_LN2_LOW = 1.9082149292705877e-10
# Adding 1.5 * 2**52 leaves the nearest integer in the low bits of the sum.
_ROUNDING = 6755399441055744.0
_ROUNDING_BITS = np.int64(0x4338000000000000)
_HIGHEST = 710.0  # exp overflows above 709.8
_LOWEST = -750.0  # and is 0 below -745.2

_ONE = np.int64(1)
_BIAS = np.int64(1023)
_MANTISSA_BITS = np.int64(52)
_SQRT_HALF_BITS = np.int64(0x3FE6A09E667F3BCD)
_SMALLEST_NORMAL = 2.2250738585072014e-308
_TWO_POWER_54 = 18014398509481984.0


@njit(inline="always", error_model="numpy")
def _power_of_two(exponent: np.int64) -> np.float64:
    return np.int64((exponent + _BIAS) << _MANTISSA_BITS).view(np.float64)


@njit(inline="always", error_model="numpy")
def exp(x: float) -> float:
    """Exponential of a float64, within 1 unit in the last place, subnormal results included.

    Parameters
    ----------
    x
        Any double: overflow gives inf, underflow 0, NaN gives NaN.

    Returns
    -------
    float
        ``e**x``; never below 1 + x rounded, for -0.34 < x < 0.

    Examples
    --------
    >>> exp(0.0), exp(-1000.0), exp(1000.0)
    (1.0, 0.0, inf)
    """
    x = _HIGHEST if x > _HIGHEST else x
    x = _LOWEST if x < _LOWEST else x
    shifted = x * _LOG2_E + _ROUNDING
    exponent = np.float64(shifted).view(np.int64) - _ROUNDING_BITS
    whole = shifted - _ROUNDING
    r = (x - whole * _LN2_HIGH) - whole * _LN2_LOW
    r2 = r * r
    series = 1.0 / 479001600 + r * (1.0 / 6227020800)
    series = (1.0 / 3628800 + r * (1.0 / 39916800)) + r2 * series
    series = (1.0 / 40320 + r * (1.0 / 362880)) + r2 * series
    series = (1.0 / 720 + r * (1.0 / 5040)) + r2 * series
    series = (1.0 / 24 + r * (1.0 / 120)) + r2 * series
    series = (1.0 / 2 + r * (1.0 / 6)) + r2 * series
    value = 1.0 + (r + r2 * series)
    # Two factors, because 2**1024 and 2**-1075 are not normal doubles.
    half = exponent >> _ONE
    return (value * _power_of_two(half)) * _power_of_two(exponent - half)


@njit(inline="always", error_model="numpy")
def log(x: float) -> float:
    """Natural logarithm of a float64, within 1 unit in the last place, subnormals included.

    Parameters
    ----------
    x
        A double that is not negative: 0 gives -inf, inf gives inf.

    Returns
    -------
    float
        ``ln(x)``; NaN for NaN and for negative values.

    Examples
    --------
    >>> log(1.0), log(0.0)
    (0.0, -inf)
    """
    subnormal = x < _SMALLEST_NORMAL
    scaled = x * _TWO_POWER_54 if subnormal else x
    bits = np.float64(scaled).view(np.int64)
    exponent = (bits - _SQRT_HALF_BITS) >> _MANTISSA_BITS
    f = np.int64(bits - (exponent << _MANTISSA_BITS)).view(np.float64) - 1.0
    s = f / (2.0 + f)  # ln(1 + f) = 2 artanh(s)
    z = s * s
    series = 2.0 / 21 + z * (2.0 / 23)
    series = 2.0 / 19 + z * series
    series = 2.0 / 17 + z * series
    series = 2.0 / 15 + z * series
    series = 2.0 / 13 + z * series
    series = 2.0 / 11 + z * series
    series = 2.0 / 9 + z * series
    series = 2.0 / 7 + z * series
    series = 2.0 / 5 + z * series
    series = z * (2.0 / 3 + z * series)
    power = np.float64(exponent) - (54.0 if subnormal else 0.0)
    value = power * _LN2_HIGH + (f - (s * (f - series) - power * _LN2_LOW))
    if x > 0.0:
        return value if x < np.inf else x
    return -np.inf if x == 0.0 else np.nan


@njit(nogil=True, cache=True)
def _exp_in_place(values: NDArray[np.float64]) -> None:
    for position in range(values.size):
        values[position] = exp(values[position])


def exps(values: ArrayLike) -> NDArray[np.float64]:
    """Elementwise :func:`exp` in a new array of float64.

    Examples
    --------
    >>> exps([[0.0, -1000.0]])
    array([[1., 0.]])
    """
    result = np.array(values, np.float64, order="C")
    _exp_in_place(result.reshape(-1))
    return result
