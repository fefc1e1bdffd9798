"""Spot counts that scatter more than Poisson: the negative binomial as a Poisson-gamma mixture.

A count with mean mu and dispersion a, of variance ``mu + a mu^2``, is Poisson with mean
``mu lambda``, where lambda has the mean 1 and the variance a. Given the count, lambda has the mean
``(y + r) / (mu + r)``, ``r = 1 / a``: the weight of the mean in the next M-step; and the
dispersion has an M-step of its own, from ``E log lambda - E lambda``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numba import njit
from scipy.special import digamma, polygamma

from stdist.kernels.poisson_factors_rows import Counts, Floats

SMALLEST_DISPERSION, LARGEST_DISPERSION = 1e-6, 1e3


@njit(nogil=True, cache=True)
def _digamma(x: float) -> float:
    """Derivative of log gamma, by the asymptotic series beyond 8; 1e-14."""
    below = 0.0
    while x < 8.0:
        below += 1.0 / x
        x += 1.0
    s = 1.0 / (x * x)
    series = s * (1 / 12 - s * (1 / 120 - s * (1 / 252 - s * (1 / 240 - s * (1 / 132)))))
    return math.log(x) - 0.5 / x - series - below


@njit(nogil=True, cache=True)
def explain_overdispersed(
    counts: Counts,
    row: int,
    loading: Floats,
    table: Floats,
    dispersion: Floats,
    log_sum: float,
    means: Floats,
    weights: Floats,
    rate: Floats,
) -> float:
    """Weights of all genes of a spot, and the sum of its factors by them.

    Parameters
    ----------
    counts, row
        Which counts.
    loading : (n_padded,) float64
    table : (n_genes, n_padded) float64
    dispersion : (n_genes,) float64
        Positive.
    log_sum
        ``sum_g y_g log mean_g``.
    means, weights : (n_genes,) float64
        Set.
    rate : (n_padded,) float64
        Set to ``weights @ table``.

    Returns
    -------
    float
        Negative log likelihood without ``log y!``; with the dispersion it tends to the loss of
        the Poisson distribution.
    """
    loss = -log_sum
    rate[:] = 0.0
    for g in range(means.size):
        mean = 0.0
        for k in range(loading.size):
            mean += loading[k] * table[g, k]
        means[g] = mean
        weights[g] = 1.0 / (1.0 + dispersion[g] * mean)
        loss += math.log1p(dispersion[g] * mean) / dispersion[g]
    for e in range(counts.indptr[row], counts.indptr[row + 1]):
        g, count = counts.genes[e], np.float64(counts.values[e])
        size = 1.0 / dispersion[g]
        weights[g] *= 1.0 + dispersion[g] * count
        loss += count * math.log(size + means[g]) - math.lgamma(count + size) + math.lgamma(size)
    for g in range(means.size):
        for k in range(loading.size):
            rate[k] += weights[g] * table[g, k]
    return loss


@njit(nogil=True, cache=True)
def expected_logs(
    counts: Counts, row: int, dispersion: Floats, means: Floats, weights: Floats, out: Floats
) -> None:
    """Add ``E log lambda - E lambda`` of a spot, after `explain_overdispersed`."""
    for g in range(means.size):
        size = 1.0 / dispersion[g]
        out[g] += _digamma(size) - math.log(size + means[g]) - weights[g]
    for e in range(counts.indptr[row], counts.indptr[row + 1]):
        g = counts.genes[e]
        size = 1.0 / dispersion[g]
        out[g] += _digamma(size + np.float64(counts.values[e])) - _digamma(size)


def dispersion_step(total: Mapping[str, Any], dispersion: Floats, exponent: float = 1.0) -> Floats:
    """Update the dispersion of every gene.

    Parameters
    ----------
    total
        Added statistics of `stdist.kernels.poisson_factors.tile_pass`.
    dispersion : (n_genes,) float64
        With which the pass was made.
    exponent
        1 is the EM step, which with that of the factors never raises the loss; more is
        over-relaxation in logarithms.

    Returns
    -------
    (n_genes,) float64

    Examples
    --------
    >>> steady = digamma(4.0) - np.log(4.0) - 1
    >>> dispersion_step({"log_gamma": np.array([steady]), "n_spots": 1}, np.array([0.25]))
    array([0.25])
    """
    # the gamma distribution's likelihood is greatest where log r - digamma(r) is this
    gap = np.maximum(-1.0 - np.asarray(total["log_gamma"]) / total["n_spots"], 1e-12)
    new = 1.0 / dispersion
    for _ in range(20):
        slope = 1.0 / new - polygamma(1, new)  # negative
        # Newton's method on 1 / r (Minka 2002)
        inverse = 1.0 / new + (np.log(new) - digamma(new) - gap) / (new * new * slope)
        new = 1.0 / np.clip(inverse, SMALLEST_DISPERSION, LARGEST_DISPERSION)
    moved = dispersion * (1.0 / (new * dispersion)) ** exponent
    return np.clip(moved, SMALLEST_DISPERSION, LARGEST_DISPERSION)
