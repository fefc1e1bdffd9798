"""Compiled loops of Harmony over cells; `harmony_cells` is their interface.

Rows and products are float32, sums over rows float64. Nothing larger than some rows' soft
clusters is allocated, and these stay in the cache.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Single = NDArray[np.float32]
Double = NDArray[np.float64]
Codes = NDArray[np.int32]

# rows whose soft clusters are held at a time: they stay in the cache
_CHUNK = 128
_LOG2_E = np.float32(1.4426950408889634)
# ln 2 in two parts: products of the first with exponents are exact
_LN2_HIGH = np.float32(0.693359375)
_LN2_LOW = np.float32(-2.12194440e-4)
# adding 1.5 * 2**23 leaves the nearest integer in the low bits of the sum
_ROUNDING = np.float32(12582912.0)
_ROUNDING_BITS = np.int32(0x4B400000)
_BIAS, _MANTISSA_BITS = np.int32(127), np.int32(23)
_LOWEST = np.float32(-87.0)
_ONE = np.float32(1.0)
# minimax polynomial of exp on [-ln 2 / 2, ln 2 / 2] (Moshier, Cephes library)
_C2, _C3, _C4 = np.float32(0.5), np.float32(1.6666665459e-1), np.float32(4.1665795894e-2)
_C5, _C6 = np.float32(8.3334519073e-3), np.float32(1.3981999507e-3)
_C7 = np.float32(1.9875691500e-4)


@njit(nogil=True, cache=True, fastmath={"contract"})
def _exp_in_place(values: Single, largest: np.float32) -> None:
    """``exp(values - largest)`` without branches, so that it vectorises; 2e-7 relative."""
    for k in range(values.size):
        x = values[k] - largest
        x = _LOWEST if x < _LOWEST else x
        shifted = x * _LOG2_E + _ROUNDING
        exponent = np.int32(np.float32(shifted).view(np.int32) - _ROUNDING_BITS)
        whole = shifted - _ROUNDING
        r = (x - whole * _LN2_HIGH) - whole * _LN2_LOW
        series = _C7 * r + _C6
        series = series * r + _C5
        series = series * r + _C4
        series = series * r + _C3
        series = series * r + _C2
        series = series * (r * r) + r + _ONE
        power = np.int32(np.int32(exponent + _BIAS) << _MANTISSA_BITS).view(np.float32)
        values[k] = series * power


@njit(nogil=True, cache=True, fastmath={"nnan", "nsz"})
def _largest(values: Single) -> np.float32:
    found = values[0]
    for k in range(values.size):
        found = values[k] if values[k] > found else found
    return found


@njit(nogil=True, cache=True, fastmath={"reassoc", "nsz"})
def _total(values: Single) -> np.float32:
    total = np.float32(0.0)
    for k in range(values.size):
        total += values[k]
    return total


@njit(nogil=True, cache=True, fastmath={"contract"})
def assign_rows(
    unit: Single, strata: Codes, directions: Single, log_penalty: Single, weights: Single
) -> float:
    """Fill in soft clusters; return the sum of the logarithms of their normalisers."""
    n_rows, n_dims = unit.shape
    n_clusters = weights.shape[1]
    log_sum = 0.0
    for n in range(n_rows):
        row = weights[n]
        penalty = log_penalty[strata[n]]
        for k in range(n_clusters):
            row[k] = penalty[k]
        whole = n_dims - n_dims % 4
        for j in range(0, whole, 4):
            a, b, c, d = unit[n, j], unit[n, j + 1], unit[n, j + 2], unit[n, j + 3]
            for k in range(n_clusters):
                row[k] += (
                    a * directions[j, k]
                    + b * directions[j + 1, k]
                    + c * directions[j + 2, k]
                    + d * directions[j + 3, k]
                )
        for j in range(whole, n_dims):
            a = unit[n, j]
            for k in range(n_clusters):
                row[k] += a * directions[j, k]
        largest = _largest(row)
        _exp_in_place(row, largest)
        total = _total(row)
        inverse = _ONE / total
        for k in range(n_clusters):
            row[k] *= inverse
        log_sum += largest + np.log(np.float64(total))
    return log_sum


@njit(nogil=True, cache=True)
def _sum_weights(weights: Single, strata: Codes, sums: Double) -> None:
    for n in range(weights.shape[0]):
        row, out = weights[n], sums[strata[n]]
        for k in range(row.size):
            out[k] += row[k]


@njit(nogil=True, cache=True, fastmath={"contract"})
def _sum_rows(weights: Single, values: Single, codes: Codes, sums: Double) -> None:
    """``sums[code, dim, cluster]``, four neighbours of one code at a time."""
    n_rows, n_clusters = weights.shape
    n = 0
    while n < n_rows:
        code = codes[n]
        four = n + 3 < n_rows and codes[n + 1] == codes[n + 2] == codes[n + 3] == code
        for j in range(values.shape[1]):
            out = sums[code, j]
            if four:
                a, b, c, d = values[n, j], values[n + 1, j], values[n + 2, j], values[n + 3, j]
                for k in range(n_clusters):
                    out[k] += (
                        a * weights[n, k]
                        + b * weights[n + 1, k]
                        + c * weights[n + 2, k]
                        + d * weights[n + 3, k]
                    )
            else:
                a = values[n, j]
                for k in range(n_clusters):
                    out[k] += a * weights[n, k]
        n += 4 if four else 1


@njit(nogil=True, cache=True, fastmath={"reassoc", "nsz", "contract"})
def _dot(left: Single, right: Single) -> np.float32:
    total = np.float32(0.0)
    for k in range(left.size):
        total += left[k] * right[k]
    return total


@njit(nogil=True, cache=True)
def _correct(values: Single, weights: Single, strata: Codes, shift: Single, out: Single) -> None:
    for n in range(values.shape[0]):
        of_stratum = shift[strata[n]]
        for j in range(values.shape[1]):
            out[n, j] = values[n, j] - _dot(weights[n], of_stratum[j])


@njit(nogil=True, cache=True)
def scale_rows(rows: Single) -> None:
    """Scale rows to length one; rows of zeros stay."""
    for n in range(rows.shape[0]):
        length = np.sqrt(_dot(rows[n], rows[n]))
        if length > 0:
            for j in range(rows.shape[1]):
                rows[n, j] /= length


@njit(nogil=True, cache=True)
def sum_rows_of_round(
    unit: Single,
    strata: Codes,
    directions: Single,
    penalty: Single,
    observed: Double,
    values: Single,
    codes: Codes,
    sums: Double,
) -> float:
    """Add masses to `observed`, and rows by each variable's codes to `sums`; see `assign_rows`."""
    weights = np.empty((_CHUNK, penalty.shape[1]), np.float32)
    log_sum = 0.0
    for first in range(0, len(unit), _CHUNK):
        last = min(len(unit), first + _CHUNK)
        part, of_rows = weights[: last - first], strata[first:last]
        log_sum += assign_rows(unit[first:last], of_rows, directions, penalty, part)
        _sum_weights(part, of_rows, observed)
        for variable in range(codes.shape[0]):
            _sum_rows(part, values[first:last], codes[variable, first:last], sums)
    return log_sum


@njit(nogil=True, cache=True)
def correct_rows(
    values: Single,
    unit: Single,
    strata: Codes,
    directions: Single,
    penalty: Single,
    shift: Single,
    out: Single,
) -> None:
    """Fill in rows without what their soft clusters subtract."""
    weights = np.empty((_CHUNK, penalty.shape[1]), np.float32)
    for first in range(0, len(unit), _CHUNK):
        last = min(len(unit), first + _CHUNK)
        part, of_rows = weights[: last - first], strata[first:last]
        assign_rows(unit[first:last], of_rows, directions, penalty, part)
        _correct(values[first:last], part, of_rows, shift, out[first:last])
