"""Compiled steps of a Poisson factorisation on single rows: of counts, and of probabilities.

The steps majorise, so that none raises what it minimises. Tables have their columns padded to a
multiple of eight: short inner loops then run in whole vectors.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy import sparse

from stdist.kernels.array_module import array_module

Floats = NDArray[np.float64]

EPSILON = 1e-8
"""Added to every mean inside its logarithm."""
SMALLEST = 1e-12
"""Least probability of a row: exact zeros could never grow again."""

_DEPTH = 56.0  # 2 (c - u) is less for logarithms between that of SMALLEST and 0


class Counts(NamedTuple):
    """Rows of counts; compressed, of fixed types."""

    indptr: NDArray[np.int64]
    genes: NDArray[np.int32]
    values: NDArray[np.float32]

    @classmethod
    def of(cls, matrix: sparse.csr_array) -> Counts:
        """The rows of a matrix; arrays of the right types are not copied."""
        return cls(
            matrix.indptr.astype(np.int64, copy=False),
            matrix.indices.astype(np.int32, copy=False),
            matrix.data.astype(np.float32, copy=False),
        )


def padded(table: Floats) -> Floats:
    """A table with columns of zeros appended, up to a multiple of eight; NumPy's or CuPy's."""
    out: Floats = array_module(table).zeros((len(table), -(-table.shape[1] // 8) * 8))
    out[:, : table.shape[1]] = table
    return out


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
def explain(
    counts: Counts, row: int, weights: Floats, table: Floats, sums: Floats, ratios: Floats
) -> float:
    """Explain the counts of a row by ``means = table @ weights + EPSILON``.

    Parameters
    ----------
    counts, row
        Which counts ``y``.
    weights : (n_padded,) float64
    table : (n_genes, n_padded) float64
    sums : (n_padded,) float64
        Set to ``sum_g (y_g / mean_g) table[g]``.
    ratios : (>= n_nonzero,) float64
        Its begin is set to ``y / mean`` of the non-zeros.

    Returns
    -------
    float
        ``sum_g y_g log mean_g``.
    """
    first, last = counts.indptr[row], counts.indptr[row + 1]
    width = weights.size
    sums[:] = 0.0
    log_sum, product = 0.0, 1.0
    for e in range(first, last):
        of_gene = table[counts.genes[e]]
        mean = EPSILON
        for k in range(width):
            mean += weights[k] * of_gene[k]
        count = np.float64(counts.values[e])
        ratio = count / mean
        ratios[e - first] = ratio
        for k in range(width):
            sums[k] += ratio * of_gene[k]
        if count < 8.0:  # one logarithm for many means
            bits = np.int64(count)
            square = mean * mean
            product *= (
                (mean if bits & 1 else 1.0)
                * (square if bits & 2 else 1.0)
                * (square * square if bits & 4 else 1.0)
            )
            if not 1e-150 < product < 1e150:
                log_sum += math.log(product)
                product = 1.0
        else:
            log_sum += count * math.log(mean)
    return log_sum + math.log(product)


@njit(nogil=True, cache=True, fastmath={"contract"})
def scatter(counts: Counts, row: int, weights: Floats, ratios: Floats, out: Floats) -> None:
    """Add ``ratio_g * weights`` to ``out[g]`` for the non-zeros of a row."""
    first, last = counts.indptr[row], counts.indptr[row + 1]
    for e in range(first, last):
        ratio, of_gene = ratios[e - first], out[counts.genes[e]]
        for k in range(weights.size):
            of_gene[k] += ratio * weights[k]


@njit(nogil=True, cache=True)
def ratio_sums(counts: Counts, weights: Floats, table: Floats, sums: Floats, out: Floats) -> float:
    """`explain` and `scatter` for all rows.

    Parameters
    ----------
    weights : (n_rows, n_padded) float64
    table : (n_genes, n_padded) float64
    sums : (n_rows, n_padded) float64
        Set to ``(Y / L) @ table``, where L are the means.
    out : (n_genes, n_padded) float64
        Raised by ``(Y / L).T @ weights``.

    Returns
    -------
    float
        ``sum Y log L``.
    """
    longest = 0
    for row in range(weights.shape[0]):
        longest = max(longest, counts.indptr[row + 1] - counts.indptr[row])
    ratios = np.empty(longest)
    total = 0.0
    for row in range(weights.shape[0]):
        total += explain(counts, row, weights[row], table, sums[row], ratios)
        scatter(counts, row, weights[row], ratios, out)
    return total


@njit(nogil=True, cache=True, error_model="numpy")
def shrunken_log(count: float, rate: float, centre: float, l2: float) -> float:
    """The u that minimises ``rate e^u - count u + l2 (u - centre)^2``; rate positive.

    Newton's method on a concave decreasing function: from the right of its root it never
    oversteps it.
    """
    free = math.log(count / rate) if count > 0.0 else -math.inf
    if l2 == 0.0:
        return free
    u = free if free >= centre else min(centre, math.log((count + _DEPTH * l2) / rate))
    for _ in range(60):
        curve = rate * math.exp(u)
        step = (count - curve - 2.0 * l2 * (u - centre)) / (curve + 2.0 * l2)
        u += step
        if step > -1e-12:
            break
    return u


@njit(nogil=True, cache=True, error_model="numpy")
def normalise(row: Floats) -> float:
    """Scale a row to the sum 1, its entries at least `SMALLEST`; return the former sum."""
    before = row.sum()
    factor, after = 1.0 / before, 0.0
    for k in range(row.size):
        row[k] = max(row[k] * factor, SMALLEST)
        after += row[k]
    factor = 1.0 / after
    for k in range(row.size):
        row[k] *= factor
    return before


@njit(nogil=True, cache=True, error_model="numpy")
def _probabilities(
    counts: Floats, rates: Floats, shift: float, centre: float, l2: float, out: Floats
) -> tuple[float, float]:
    """Set probabilities for a multiplier of their sum; return the sum and its derivative."""
    total = slope = 0.0
    for k in range(counts.size):
        rate = rates[k] + shift
        if l2 == 0.0:
            p = counts[k] / rate
            slope -= p / rate
        else:
            p = math.exp(shrunken_log(counts[k], rate, centre, l2))
            slope -= p * p / (rate * p + 2.0 * l2)
        out[k] = p
        total += p
    return total, slope


@njit(nogil=True, cache=True, error_model="numpy")
def penalised_row(
    counts: Floats, rates: Floats, old: Floats, entropy: float, l2: float, out: Floats
) -> None:
    """Update a row of probabilities under penalties of its entropy and of its logits.

    Lowers ``rates @ p - counts @ log p + entropy * H(p) + l2 |log p - mean log p|^2`` on the
    simplex, from its majoriser at `old`: entropy is concave and lies below its tangent, the
    spread around the old mean bounds that around the new one. What is left is one equation for
    the multiplier of the sum, solved from the left, where the reciprocal of the sum is below 1.

    Parameters
    ----------
    counts : (n_factors,) float64
        Not negative; if all are zero the row stays.
    rates : (n_factors,) float64
        Overwritten.
    old, out : (n_factors,) float64
        Positive; `old` sums up to 1.
    entropy
        In nats per row.
    l2
        Weight of the squared logits.
    """
    n = counts.size
    out[:] = old
    if counts.sum() <= 0.0:
        return
    centre = 0.0
    for k in range(n):
        log_p = math.log(old[k])
        centre += log_p / n
        shifted = old[k] + SMALLEST
        rates[k] -= entropy * (math.log(shifted) + old[k] / shifted)
    low = -math.inf
    for k in range(n):
        # here one of the probabilities is 1, no rate below zero
        low = max(low, counts[k] + 2.0 * l2 * centre - rates[k])
    edge = -rates.min()
    if low <= edge:
        low = edge + SMALLEST * (1.0 + abs(edge))
    high, shift, total = math.inf, low, math.inf
    for _ in range(100):
        total, slope = _probabilities(counts, rates, shift, centre, l2, out)
        if abs(total - 1.0) < 1e-13:
            break
        if total > 1.0:
            low = shift
        else:
            high = shift
        shift -= total * (total - 1.0) / slope  # Newton's method on the reciprocal
        if not low <= shift <= high:
            shift = 0.5 * (low + high)
    if abs(total - 1.0) > 1e-6:  # hardly a count: no multiplier makes the sum 1
        out[:] = old
    normalise(out)
