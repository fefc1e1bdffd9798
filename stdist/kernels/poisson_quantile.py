"""Randomised probability integral transform of one count between two Poisson distributions.

A count k seen under mean ``source`` becomes the smallest x with F(x; target) >= q, where
q = F(k - 1; source) + u pmf(k; source) and u is uniform on (0, 1).  If k is Poisson(source), q is
uniform and x is exactly Poisson(target).  Small means sum the distribution from 0.  Large means
and far tails, where q or 1 - q leaves no digits, work on logarithms of tail probabilities.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from stdist.kernels.portable_math import log

LARGE_MEAN = 128.0
BULK = 0.99999  # the outlier cap is one above this quantile
_LOG_TAIL = -11.512925464970229  # ln 1e-5
_TAIL_DEVIATE = 4.27  # standard deviations, where the search for the cap starts
_LOG_HALF = -0.6931471805599453
_LOG_TWO_PI = 1.8378770664093453
_EPSILON = 2.0**-54


@njit(error_model="numpy")
def stirling_error(x: float) -> float:
    """Log of Gamma(x + 1) less Stirling's formula, for x >= 16."""
    r = 1.0 / (x * x)
    series = 1.0 / 1260 - r * (1.0 / 1680 - r * (1.0 / 1188 - r * (691.0 / 360360)))
    return (1.0 / 12 - r * (1.0 / 360 - r * series)) / x


@njit(error_model="numpy")
def deviance(x: float, mean: float) -> float:
    """``x ln(x / mean) + mean - x`` without cancellation."""
    difference = x - mean
    if abs(difference) >= 0.1 * (x + mean):
        return x * (log(x) - log(mean)) - difference
    v = difference / (x + mean)
    term = 2.0 * x * v
    total = difference * v
    previous = total + 1.0
    divisor = 3.0
    while total != previous:
        previous = total
        term *= v * v
        total += term / divisor
        divisor += 2.0
    return total


@njit(error_model="numpy")
def _log_pmf(x: float, mean: float) -> float:
    """Log of the Poisson probability of x, by Loader's (2000) saddle point for x >= 16."""
    if x == 0.0:
        return -mean
    if x < 16.0:
        factorial = 1.0
        factor = 2.0
        while factor <= x:
            factorial *= factor
            factor += 1.0
        return x * log(mean) - mean - log(factorial)
    return -deviance(x, mean) - stirling_error(x) - 0.5 * (_LOG_TWO_PI + log(x))


@njit(error_model="numpy")
def _below(x: float, mean: float) -> float:
    """P(X < x) / P(X = x)."""
    total = 0.0
    term = 1.0
    while x > 0.0:
        term *= x / mean
        total += term
        x -= 1.0
        if term <= _EPSILON * total:
            break
    return total


@njit(error_model="numpy")
def _above(x: float, mean: float) -> float:
    """P(X > x) / P(X = x)."""
    x += 1.0
    term = mean / x
    total = term
    while term > _EPSILON * total:
        x += 1.0
        term *= mean / x
        total += term
    return total


@njit(error_model="numpy")
def _reached(x: float, mean: float, log_tail: float, upper: bool) -> bool:
    """Whether the wanted quantile is at most x."""
    if upper:
        return _log_pmf(x, mean) + log(_above(x, mean)) <= log_tail
    return _log_pmf(x, mean) + log(1.0 + _below(x, mean)) >= log_tail


@njit(error_model="numpy")
def _tail_quantile(guess: float, mean: float, log_tail: float, upper: bool) -> float:
    """Smallest x with log S(x; mean) <= log_tail if upper, else log F(x; mean) >= log_tail."""
    # Both tails are below 1/2, so the median bounds the search and the series are short.
    middle = np.float64(np.int64(mean))
    high = max(guess, middle) if upper else min(guess, middle + 1.0)
    step = 1.0
    if _reached(high, mean, log_tail, upper):
        low = high - step
        while low >= 0.0 and _reached(low, mean, log_tail, upper):
            high = low
            step *= 2.0
            low = high - step
        low = max(low, -1.0)
    else:
        low = high
        high = low + step
        while not _reached(high, mean, log_tail, upper):
            low = high
            step *= 2.0
            high = low + step
    while high - low > 1.0:
        centre = np.float64(np.int64((low + high) * 0.5))
        if _reached(centre, mean, log_tail, upper):
            high = centre
        else:
            low = centre
    return high


@njit(error_model="numpy")
def _outlier_cap(count: float, target: float) -> float:
    root = np.sqrt(target)
    guess = np.float64(np.int64(target + _TAIL_DEVIATE * root + 2.0))
    return max(count, _tail_quantile(guess, target, _LOG_TAIL, True) + 1.0)


@njit(error_model="numpy")
def _log_tail(count: float, source: float, u: float, upper: bool) -> float:
    """Log of 1 - q if upper, else of q."""
    if upper:
        return _log_pmf(count, source) + log((1.0 - u) + _above(count, source))
    return _log_pmf(count, source) + log(u + _below(count, source))


@njit(error_model="numpy")
def _match_tails(count: float, source: float, target: float, u: float, cap: bool) -> float:
    if target == 0.0:
        return 0.0
    if source == 0.0 and count > 0.0:
        return _outlier_cap(count, target)  # the quantile of 1 is infinite
    upper = count > source
    log_tail = _log_tail(count, source, u, upper)
    if log_tail > _LOG_HALF:
        upper = not upper
        log_tail = _log_tail(count, source, u, upper)
    # Square roots of Poisson counts have almost constant variance.
    root = np.sqrt(target) + (np.sqrt(count + u) - np.sqrt(source + 0.5))
    guess = np.float64(np.int64(root * root)) if root > 0.0 else 0.0
    matched = _tail_quantile(guess, target, log_tail, upper)
    if cap and upper and log_tail < _LOG_TAIL and matched > count:
        return min(matched, _outlier_cap(count, target))
    return matched


@njit(error_model="numpy")
def matched_count(
    count: float,
    source: float,
    target: float,
    source_zero: float,
    target_zero: float,
    u: float,
    cap: bool,
) -> float:
    """Count under the target mean at the randomised quantile of a count under the source mean.

    Parameters
    ----------
    count
        Observed count, a whole number >= 0.
    source, target
        Poisson means, finite and >= 0.
    source_zero, target_zero
        :func:`stdist.kernels.portable_math.exp` of ``-source`` and of ``-target``.
    u
        Uniform strictly inside (0, 1).
    cap
        Whether the result is at most ``max(count, Q + 1)`` where Q is the smallest whole number
        with F(Q; target) >= 0.99999. A positive count under a source mean of 0 has no finite
        quantile and takes this bound in any case.

    Returns
    -------
    float
        A whole number >= 0; ``count`` itself where both means are equal.

    Examples
    --------
    >>> from stdist.kernels.portable_math import exp
    >>> matched_count(0.0, 0.5, 0.25, exp(-0.5), exp(-0.25), 0.999, True)
    0.0
    >>> matched_count(2.0, 1.0, 3.0, exp(-1.0), exp(-3.0), 0.5, True)
    5.0
    """
    if source == target:
        return count  # q lies in (F(k - 1), F(k)], whose quantile is k
    if source > LARGE_MEAN or target > LARGE_MEAN:
        return _match_tails(count, source, target, u, cap)
    probability = source_zero
    below = 0.0
    smaller = 0.0
    while smaller < count and below <= BULK:
        below += probability
        smaller += 1.0
        probability *= source / smaller
    q = below + u * probability
    if q > BULK:
        return _match_tails(count, source, target, u, cap)
    matched = 0.0
    probability = target_zero
    cumulative = probability
    while cumulative < q:
        matched += 1.0
        probability *= target / matched
        cumulative += probability
    return matched
