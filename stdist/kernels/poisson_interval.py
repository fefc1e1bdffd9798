"""Interval of the count to which a randomised match may go.

The exact match (:mod:`stdist.kernels.poisson_quantile`) of a count is a rising function of one
uniform number, so its quantiles are its values at the quantiles of the uniform.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from stdist.kernels.match_checks import NO_PROBLEM, check_array, check_tile, raise_problem
from stdist.kernels.poisson_match_numba import BAD_MEAN, MAXIMUM_MEAN, NEGATIVE_COUNT, OVERFLOW
from stdist.kernels.poisson_quantile import matched_count
from stdist.kernels.portable_math import exp


@njit(nogil=True, cache=True)
def _fill(
    counts: NDArray[Any],
    source: NDArray[np.float64],
    target: NDArray[np.float64],
    tail: float,
    cap: bool,
    lower: NDArray[Any],
    upper: NDArray[Any],
    status: NDArray[np.int64],
) -> None:
    n_cells, n_genes = counts.shape
    maximum = np.iinfo(upper.dtype).max
    for i in range(n_cells):
        for g in range(n_genes):
            position = i * n_genes + g
            ms, mt = source[i, g], target[i, g]
            if not (ms >= 0.0 and ms <= MAXIMUM_MEAN and mt >= 0.0 and mt <= MAXIMUM_MEAN):
                status[BAD_MEAN] = min(status[BAD_MEAN], position)
                continue
            if counts[i, g] < 0:
                status[NEGATIVE_COUNT] = min(status[NEGATIVE_COUNT], position)
                continue
            lower[i, g] = upper[i, g] = 0
            if counts[i, g] == 0 and mt <= ms:
                continue
            count, source_zero, target_zero = np.float64(counts[i, g]), exp(-ms), exp(-mt)
            low = matched_count(count, ms, mt, source_zero, target_zero, tail, cap)
            high = matched_count(count, ms, mt, source_zero, target_zero, 1.0 - tail, cap)
            if high <= maximum:
                lower[i, g], upper[i, g] = np.int64(low), np.int64(high)
            else:
                status[OVERFLOW] = min(status[OVERFLOW], position)


def match_interval(
    counts: Any,
    source_mean: ArrayLike,
    target_mean: ArrayLike,
    level: float,
    row_start: int = 0,
    *,
    cap: bool = True,
) -> tuple[Any, Any]:
    """Central interval of the matched count of each entry, given the observed one.

    Parameters
    ----------
    counts
        Observed counts, any integer type, shape (n_cells, n_genes).
    source_mean, target_mean
        Poisson means with and without batch, shape (n_cells, n_genes).
    level
        Mass of the interval, in (0, 1).
    row_start
        Global index of the first cell, for messages.
    cap
        As for :func:`stdist.kernels.poisson_match.match_soft`.

    Returns
    -------
    lower, upper : ndarray of integers, shape (n_cells, n_genes)
        Of the type of the counts. The match is below `lower`, and above `upper`, with a
        probability of at most ``(1 - level) / 2`` each. Equal where it is not random.

    Raises
    ------
    ValueError, OverflowError
        As :func:`stdist.kernels.poisson_match.match_soft`.

    Examples
    --------
    >>> lower, upper = match_interval(np.array([[0, 3, 3]]), [[1.0] * 3], [[0.5, 1.0, 6.0]], 0.9)
    >>> lower, upper
    (array([[ 0,  3, 10]]), array([[ 0,  3, 11]]))
    """
    if not 0.0 < level < 1.0:
        message = f"level must lie in (0, 1), not {level}"
        raise ValueError(message)
    counts, lower = check_tile(np, counts, None, row_start)
    upper = np.empty_like(lower)
    status = np.full(3, NO_PROBLEM, dtype=np.int64)
    _fill(
        counts,
        check_array(np, source_mean, np.float64, counts.shape, "source_mean"),
        check_array(np, target_mean, np.float64, counts.shape, "target_mean"),
        0.5 * (1.0 - level),
        cap,
        lower,
        upper,
        status,
    )
    raise_problem(status, counts.shape[1], row_start, lower.dtype)
    return lower, upper
