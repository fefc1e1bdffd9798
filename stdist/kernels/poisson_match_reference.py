"""Matching rule of the released Crescendo, in its single precision, with defined results.

For a count k with mean ``source`` and the wanted mean ``target``, with F the Poisson distribution
function and Qc its continuous quantile (the root x >= 0 of ``Q(x + 1, target) = p``, Q the
regularised upper incomplete gamma function; 0 where ``p <= exp(-target)``), the bounds are

    qmin = Qc(min(F(k - 1; source), c); target) + 1, and 0 for k = 0,
    qmax = max(Qc(min(F(k; source), c); target), qmin),          c = float32(0.99999).

Equal bounds give ``floor(qmin)``; else a number of ``floor(qmin) .. floor(qmax + 1)`` is drawn with
the weights of the target distribution, the first times ``1 - frac(qmin)``, the last times
``frac(qmax)``.  A count that is not zero never becomes zero, and means of sparse genes are biased
(:mod:`stdist.kernels.poisson_quantile` is exact): this rule is for comparison.
"""

from __future__ import annotations

from math import lgamma
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from stdist.kernels.keyed_random import row_hash, uniform_of_hash
from stdist.kernels.match_checks import (
    NO_PROBLEM,
    check_array,
    check_tile,
    raise_problem,
)
from stdist.kernels.poisson_match_numba import BAD_MEAN, MAXIMUM_MEAN, NEGATIVE_COUNT, OVERFLOW

CEILING = np.float32(0.99999)
_EPSILON = 2.0**-53
_LARGE_MEAN = 200.0  # up to here sums from zero find a quantile's neighbours fastest
_NEGLIGIBLE = 1e-18  # of the sum of the weights of a draw
_PRECISION = 1e-8  # of a quantile and of its log tail; single precision has 6e-8
_STEPS = 100


@njit(nogil=True, cache=True, error_model="numpy")
def _gamma_tails(a: float, x: float) -> tuple[float, float]:
    """Regularised lower and upper incomplete gamma functions (P, Q), the smaller one precise."""
    log_power = a * np.log(x) - x
    if x < a + 1.0:
        term = 1.0
        total = 1.0
        n = a
        while term > _EPSILON * total:
            n += 1.0
            term *= x / n
            total += term
        lower = np.exp(log_power - lgamma(a + 1.0)) * total
        return lower, 1.0 - lower
    # continued fraction by Lentz's method
    b = x + 1.0 - a
    c = 1e300
    d = 1.0 / b
    fraction = d
    n = 0.0
    change = 0.0
    while abs(change - 1.0) > _EPSILON * 4:
        n += 1.0
        an = -n * (n - a)
        b += 2.0
        d = 1.0 / (an * d + b)
        c = b + an / c
        change = c * d
        fraction *= change
    upper = np.exp(log_power - lgamma(a)) * fraction
    return 1.0 - upper, upper


@njit(nogil=True, cache=True, error_model="numpy")
def _log_excess(lower: float, upper: float, p: float) -> float:
    """Log ratio of the smaller tail to the wanted one; rises with x."""
    if p < 0.5:
        return np.log(upper) - np.log(p)
    return np.log(1.0 - p) - np.log(lower)


@njit(nogil=True, cache=True, error_model="numpy")
def _excess(x: float, p: float, mean: float) -> float:
    lower, upper = _gamma_tails(x + 1.0, mean)
    return _log_excess(lower, upper, p)


@njit(nogil=True, cache=True, error_model="numpy")
def _bracket(p: float, mean: float) -> tuple[float, float, float, float]:
    """Numbers between which the quantile lies, and the excess at both; it is above zero."""
    if mean <= _LARGE_MEAN:
        probability = np.exp(-mean)
        before = 0.0
        cumulative = probability
        high = 0.0
        while cumulative < p and (high < mean or probability > 0.0):
            high += 1.0
            probability *= mean / high
            before = cumulative
            cumulative += probability
        below = _log_excess(1.0 - before, before, p)
        return high - 1.0, high, below, _log_excess(1.0 - cumulative, cumulative, p)
    step = 1.0 + np.sqrt(mean)
    low = high = mean
    below = above = _excess(mean, p, mean)
    while above < 0.0:
        low, below = high, above
        high += step
        step *= 2.0
        above = _excess(high, p, mean)
    while below >= 0.0 and low > 0.0:
        high, above = low, below
        low = max(low - step, 0.0)
        step *= 2.0
        below = _excess(low, p, mean)
    return low, high, below, above


@njit(nogil=True, cache=True, error_model="numpy")
def _continuous_quantile(p: float, mean: float) -> float:
    if p <= np.exp(-mean):
        return 0.0
    low, high, below, above = _bracket(p, mean)
    # false position with halved weights (Illinois), and a bisection every fifth time
    step = 0
    while high - low > _PRECISION * (1.0 + high) and step < _STEPS:
        step += 1
        x = high - above * (high - low) / (above - below)
        if step % 5 == 0 or not low < x < high:
            x = 0.5 * (low + high)
        value = _excess(x, p, mean)
        if abs(value) <= _PRECISION:
            return x
        if value < 0.0:
            low, below = x, value
            above *= 0.5
        else:
            high, above = x, value
            below *= 0.5
    return 0.5 * (low + high)


@njit(nogil=True, cache=True, error_model="numpy")
def _single(value: float) -> float:
    """Value in single precision, cut at the ceiling."""
    return np.float64(min(np.float32(value), CEILING))


@njit(nogil=True, cache=True, error_model="numpy")
def _levels(count: float, mean: float) -> tuple[float, float]:
    """F(count - 1; mean) and F(count; mean), in single precision, cut at the ceiling."""
    if mean > _LARGE_MEAN:
        before = _gamma_tails(count, mean)[1] if count > 0.0 else 0.0
        return _single(before), _single(_gamma_tails(count + 1.0, mean)[1])
    probability = np.exp(-mean)
    before = 0.0
    cumulative = probability
    value = 0.0
    while value < count and before < CEILING:
        value += 1.0
        probability *= mean / value
        before = cumulative
        cumulative += probability
    return _single(before), _single(cumulative)


@njit(nogil=True, cache=True, error_model="numpy")
def _bounds(count: float, source: float, target: float) -> tuple[float, float]:
    """Return (qmin, qmax) of means in single precision, both above zero."""
    lowest = np.float32(0.0)
    before, level = _levels(count, source)
    if count > 0.0:
        lowest = np.float32(np.float32(_continuous_quantile(before, target)) + np.float32(1.0))
    highest = np.float32(_continuous_quantile(level, target))
    return np.float64(lowest), np.float64(max(lowest, highest))


@njit(nogil=True, cache=True, error_model="numpy")
def _edge(value: float, first: float, last: float, qmin: float, qmax: float) -> float:
    factor = 1.0
    if value == first:
        factor = 1.0 - (qmin - np.floor(qmin))
    if value == last:
        factor *= qmax - np.floor(qmax)
    return factor


@njit(nogil=True, cache=True, error_model="numpy")
def _draw(qmin: float, qmax: float, mean: float, u: float) -> float:
    """Whole number between the bounds, weighted by the Poisson distribution of the mean."""
    first = np.floor(qmin)
    if qmin == qmax:
        return first
    last = np.floor(qmax + 1.0)
    # weights relative to the largest; what is negligible beside their sum is left out
    pivot = min(max(np.floor(mean), first), last)
    total = 0.0
    term = 1.0
    value = pivot
    lowest = pivot
    lowest_term = 1.0
    while value >= first and not term < _NEGLIGIBLE * total:
        total += term * _edge(value, first, last, qmin, qmax)
        lowest, lowest_term = value, term
        term *= value / mean
        value -= 1.0
    term = mean / (pivot + 1.0)
    value = pivot + 1.0
    highest = pivot
    while value <= last and not term < _NEGLIGIBLE * total:
        total += term * _edge(value, first, last, qmin, qmax)
        highest = value
        value += 1.0
        term *= mean / value
    threshold = u * total
    value, term = lowest, lowest_term
    cumulative = term * _edge(value, first, last, qmin, qmax)
    while cumulative < threshold and value < highest:
        value += 1.0
        term *= mean / value
        cumulative += term * _edge(value, first, last, qmin, qmax)
    return value


@njit(nogil=True, cache=True)
def _match(
    counts: NDArray[Any],
    source: NDArray[np.float64],
    target: NDArray[np.float64],
    keys: NDArray[np.uint64],
    row_start: int,
    out: NDArray[Any],
    status: NDArray[np.int64],
) -> None:
    n_cells, n_genes = counts.shape
    maximum = np.iinfo(out.dtype).max
    for i in range(n_cells):
        hashed_row = row_hash(np.uint64(row_start + i))
        for g in range(n_genes):
            position = i * n_genes + g
            ms, mt = source[i, g], target[i, g]
            if not (ms >= 0.0 and mt >= 0.0):
                status[BAD_MEAN] = min(status[BAD_MEAN], position)
                continue
            if counts[i, g] < 0:
                status[NEGATIVE_COUNT] = min(status[NEGATIVE_COUNT], position)
                continue
            count = np.float64(counts[i, g])
            ms, mt = np.float64(np.float32(ms)), np.float64(np.float32(mt))
            matched: float = count
            if 0.0 < ms <= MAXIMUM_MEAN and 0.0 < mt <= MAXIMUM_MEAN:
                qmin, qmax = _bounds(count, ms, mt)
                matched = _draw(qmin, qmax, mt, uniform_of_hash(keys[g], hashed_row))
            if matched <= maximum:
                out[i, g] = np.int64(matched)
            else:
                status[OVERFLOW] = min(status[OVERFLOW], position)


def match_reference(
    counts: Any,
    source_mean: ArrayLike,
    target_mean: ArrayLike,
    gene_keys: ArrayLike,
    row_start: int,
    *,
    out: Any = None,
) -> Any:
    """Match the counts of a tile by the rule of the released Crescendo.

    Parameters
    ----------
    counts
        Observed counts, any integer type, shape (n_cells, n_genes).
    source_mean, target_mean
        Poisson means with and without batch, shape (n_cells, n_genes).
    gene_keys
        :func:`stdist.kernels.keyed_random.stream_key` of every gene, uint64, shape (n_genes,).
    row_start
        Global index of the tile's first cell.
    out
        Array for the result, any integer type; by default a new one of the type of the counts.

    Returns
    -------
    ndarray of integers, shape (n_cells, n_genes)
        Never negative. A count is kept if a mean is zero in single precision, where the released
        program returns -1, or above 2**31.

    Raises
    ------
    ValueError
        If a shape or type does not fit, or a count or a mean is negative or NaN; the last two
        name the row and the gene.
    OverflowError
        If a result exceeds the type of ``out``; names the row and the gene.

    Notes
    -----
    Millard et al., Genome Biology 2025, equation 5, as released.

    Examples
    --------
    >>> keys = np.array([1, 2], np.uint64)
    >>> match_reference(np.array([[3, 0]]), [[1.0, 0.5]], [[0.01, 0.2]], keys, 0)
    array([[1, 0]])
    """
    counts, out = check_tile(np, counts, out, row_start)
    status = np.full(3, NO_PROBLEM, dtype=np.int64)
    _match(
        counts,
        check_array(np, source_mean, np.float64, counts.shape, "source_mean"),
        check_array(np, target_mean, np.float64, counts.shape, "target_mean"),
        check_array(np, gene_keys, np.uint64, counts.shape[1:], "gene_keys"),
        row_start,
        out,
        status,
    )
    raise_problem(status, counts.shape[1], row_start, out.dtype)
    return out


def reference_bounds(
    count: ArrayLike, source_mean: ArrayLike, target_mean: ArrayLike
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Bounds between which :func:`match_reference` draws, broadcast over the arguments.

    Returns
    -------
    qmin, qmax : ndarray of float32
        The count itself where it is kept.

    Examples
    --------
    >>> reference_bounds(1, 1.0, 0.01)
    (array(1., dtype=float32), array(1., dtype=float32))
    """
    count, source, target = np.broadcast_arrays(
        np.asarray(count, np.float64),
        np.asarray(source_mean, np.float32),
        np.asarray(target_mean, np.float32),
    )
    lower, upper = count.astype(np.float32), count.astype(np.float32)
    ordinary = (source > 0) & (source <= MAXIMUM_MEAN) & (target > 0) & (target <= MAXIMUM_MEAN)
    for place in np.argwhere(ordinary):
        at = tuple(place)
        lower[at], upper[at] = _bounds(count[at], float(source[at]), float(target[at]))
    return lower, upper
