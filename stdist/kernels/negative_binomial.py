"""Negative binomial distribution with mean m and variance m + a m^2, and matching between two.

As :mod:`stdist.kernels.poisson_quantile`, for genes whose counts scatter more than Poisson. The
distribution is summed from 0 for small means; large means and far tails use continued fractions
of the incomplete beta function and Loader's (2000) form of the probabilities.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from stdist.kernels.keyed_random import row_hash, uniform_of_hash
from stdist.kernels.poisson_quantile import LARGE_MEAN, deviance, stirling_error

_BULK = 0.99999  # the outlier cap is one above this quantile
_LOG_TAIL = math.log(1e-5)
_LOG_HALF = -math.log(2.0)
_HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)
_EPSILON = 2.0**-52
_TINY = 1e-300


@njit(error_model="numpy", cache=True)
def _stirling_error(x: float) -> float:
    if x >= 16.0:
        return stirling_error(x)
    return math.lgamma(x + 1.0) - (x + 0.5) * math.log(x) + x - _HALF_LOG_TWO_PI


@njit(error_model="numpy", cache=True)
def log_probability(x: float, mean: float, dispersion: float) -> float:
    """Log of the probability of x.

    Parameters
    ----------
    x
        A whole number >= 0.
    mean, dispersion
        Positive.

    Examples
    --------
    >>> round(log_probability(0.0, 2.0, 0.5), 12) == round(-2 * math.log(2), 12)
    True
    """
    if x == 0.0:
        return -math.log1p(dispersion * mean) / dispersion
    size = 1.0 / dispersion
    n = x + size
    p = 1.0 / (1.0 + dispersion * mean)
    log_binomial = _stirling_error(n) - _stirling_error(x) - _stirling_error(size)
    log_binomial -= deviance(size, n * p) + deviance(x, n * (dispersion * mean * p))
    # Loader (2000): size / n times the binomial probability of size in n
    return 0.5 * math.log(size / (n * x)) - _HALF_LOG_TWO_PI + log_binomial


@njit(error_model="numpy", cache=True)
def _beta_fraction(a: float, b: float, x: float) -> float:
    """Continued fraction of the incomplete beta function (DLMF 8.17.22), by Lentz's method."""
    c, d = 1.0, 1.0 - (a + b) * x / (a + 1.0)
    d = 1.0 / (d if abs(d) > _TINY else _TINY)
    h = d
    for m in range(1, 100_000):
        even = m * (b - m) * x / ((a + 2 * m - 1.0) * (a + 2 * m))
        d = 1.0 + even * d
        d = 1.0 / (d if abs(d) > _TINY else _TINY)
        c = 1.0 + even / c
        c = c if abs(c) > _TINY else _TINY
        h *= d * c
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1.0))
        d = 1.0 + odd * d
        d = 1.0 / (d if abs(d) > _TINY else _TINY)
        c = 1.0 + odd / c
        c = c if abs(c) > _TINY else _TINY
        h *= d * c
        if abs(d * c - 1.0) < _EPSILON:
            break
    return h


@njit(error_model="numpy", cache=True)
def _log_tail(x: float, mean: float, dispersion: float, upper: bool) -> float:
    """Log of P(X > x) if upper, else of P(X <= x); exact to rounding on its side of the mean."""
    size = 1.0 / dispersion
    p = 1.0 / (1.0 + dispersion * mean)
    q = dispersion * mean * p
    if upper:
        ratio = q * (x + size) / (x + 1.0) * _beta_fraction(x + 1.0, size, q)
    else:
        ratio = q * (x + size) / size * _beta_fraction(size, x + 1.0, p)
    return log_probability(x, mean, dispersion) + math.log(ratio)


@njit(error_model="numpy", cache=True)
def _reached(x: float, mean: float, dispersion: float, log_tail: float, upper: bool) -> bool:
    if x < 0.0:
        return False
    # the fraction converges on one side of the mean only
    if upper == (x >= mean):
        tail = _log_tail(x, mean, dispersion, upper)
    else:
        tail = math.log(-math.expm1(min(0.0, _log_tail(x, mean, dispersion, not upper))))
    return tail <= log_tail if upper else tail >= log_tail


@njit(error_model="numpy", cache=True)
def _quantile(guess: float, mean: float, dispersion: float, log_tail: float, upper: bool) -> float:
    """Smallest x with ``log P(X > x) <= log_tail`` if upper, else ``log P(X <= x) >= log_tail``."""
    high, step = max(0.0, np.floor(guess)), 1.0
    if _reached(high, mean, dispersion, log_tail, upper):
        low = high - step
        while low >= 0.0 and _reached(low, mean, dispersion, log_tail, upper):
            high = low
            step *= 2.0
            low = high - step
        low = max(low, -1.0)
    else:
        low = high
        high = low + step
        while not _reached(high, mean, dispersion, log_tail, upper):
            low = high
            step *= 2.0
            high = low + step
    while high - low > 1.0:
        centre = np.floor((low + high) * 0.5)
        if _reached(centre, mean, dispersion, log_tail, upper):
            high = centre
        else:
            low = centre
    return high


@njit(error_model="numpy", cache=True)
def _match_tails(
    count: float, source: float, target: float, dispersion: float, u: float, cap: bool
) -> float:
    if target <= 0.0:
        return 0.0
    bound = np.inf
    if cap or source <= 0.0:
        guess = target + 4.27 * math.sqrt(target * (1.0 + dispersion * target))
        limit = _quantile(guess, target, dispersion, _LOG_TAIL, True) + 1.0
        bound = max(count, limit)
    if source <= 0.0:
        return bound if count > 0.0 else 0.0
    upper = count > source
    for _ in range(2):
        # P(X > k) + (1 - u) P(X = k) above, P(X <= k) - (1 - u) P(X = k) below
        log_mass = log_probability(count, source, dispersion)
        if upper:
            rest = math.exp(_log_tail(count, source, dispersion, upper) - log_mass)
            log_tail = log_mass + math.log((1.0 - u) + rest)
        else:
            rest = math.exp(_log_tail(count, source, dispersion, upper) - log_mass)
            log_tail = log_mass + math.log(max(rest - 1.0, 0.0) + u)
        if log_tail <= _LOG_HALF:
            break
        upper = not upper
    ratio = target * (1.0 + dispersion * target) / (source * (1.0 + dispersion * source))
    matched = _quantile(
        target + (count + u - 0.5 - source) * math.sqrt(ratio), target, dispersion, log_tail, upper
    )
    return min(matched, bound)


@njit(error_model="numpy", cache=True)
def matched_count(
    count: float, source: float, target: float, dispersion: float, u: float, cap: bool
) -> float:
    """Count under the target mean at the randomised quantile of a count under the source mean.

    Parameters
    ----------
    count
        Observed count, a whole number >= 0.
    source, target
        Means, finite and >= 0.
    dispersion
        The ``a`` of ``variance = mean + a mean^2``, the same on both sides, positive.
    u
        Uniform strictly inside (0, 1).
    cap
        Whether the result is at most ``max(count, Q + 1)`` with Q the 0.99999 quantile of the
        target; a positive count under a source mean of 0 takes this bound in any case.

    Returns
    -------
    float
        A whole number >= 0; ``count`` itself where both means are equal.

    Examples
    --------
    >>> matched_count(8.0, 2.0, 4.0, 1.0, 0.5, True)
    15.0
    """
    if source == target:
        return count
    if source > LARGE_MEAN or target > LARGE_MEAN:
        return _match_tails(count, source, target, dispersion, u, cap)
    probability = math.exp(-math.log1p(dispersion * source) / dispersion)
    ratio = source / (1.0 + dispersion * source)
    below = smaller = 0.0
    while smaller < count and below <= _BULK:
        below += probability
        probability *= ratio * (1.0 + dispersion * smaller) / (smaller + 1.0)
        smaller += 1.0
    q = below + u * probability
    if q > _BULK:
        return _match_tails(count, source, target, dispersion, u, cap)
    probability = math.exp(-math.log1p(dispersion * target) / dispersion)
    ratio = target / (1.0 + dispersion * target)
    cumulative, matched = probability, 0.0
    while cumulative < q:
        probability *= ratio * (1.0 + dispersion * matched) / (matched + 1.0)
        matched += 1.0
        cumulative += probability
    return matched


@njit(nogil=True, cache=True)
def match_tile(
    counts: NDArray[np.int64],
    source: NDArray[np.float64],
    target: NDArray[np.float64],
    dispersion: NDArray[np.float64],
    gene_keys: NDArray[np.uint64],
    row_start: int,
    cap: bool,
) -> NDArray[np.int64]:
    """Match the counts of a tile.

    Parameters
    ----------
    counts : (n_cells, n_genes) int64
    source, target : (n_cells, n_genes) float64
        Means of the counts as observed, and without batch effects.
    dispersion : (n_genes,) float64
    gene_keys : (n_genes,) uint64
        As for :func:`stdist.kernels.poisson_match.match_soft`.
    row_start
        Global index of the tile's first cell.
    cap
        See :func:`matched_count`.

    Returns
    -------
    (n_cells, n_genes) int64
        Depends on key, global row, count, means and dispersion only.
    """
    out = np.empty_like(counts)
    for i in range(counts.shape[0]):
        hashed = row_hash(np.uint64(row_start + i))
        for g in range(counts.shape[1]):
            u = uniform_of_hash(gene_keys[g], hashed)
            m, t = source[i, g], target[i, g]
            # the log of P(0) falls by less than 1 per unit of the mean: such zeros stay zero
            if counts[i, g] == 0 and u <= 1.0 - (t - m):
                out[i, g] = 0
            else:
                out[i, g] = np.int64(
                    matched_count(np.float64(counts[i, g]), m, t, dispersion[g], u, cap)
                )
    return out


def moment_dispersion(
    squared_residuals: NDArray[np.float64],
    means: NDArray[np.float64],
    squared_means: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Dispersion of each gene by moments, zero where counts scatter no more than Poisson.

    Parameters
    ----------
    squared_residuals, means, squared_means : (n_genes,) float64
        Sums over cells of ``(y - mu)^2``, ``mu`` and ``mu^2``.

    Returns
    -------
    (n_genes,) float64
        ``sum((y - mu)^2 - mu) / sum(mu^2)``, at least 0.

    Examples
    --------
    >>> moment_dispersion(np.array([30.0]), np.array([10.0]), np.array([40.0]))
    array([0.5])
    """
    excess = np.maximum(squared_residuals - means, 0.0)
    return np.divide(excess, squared_means, out=np.zeros_like(excess), where=squared_means > 0)
