"""Dispersion of each gene around Crescendo's fit, and the margin that its counts then have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from stdist.kernels.negative_binomial import moment_dispersion
from stdist.kernels.poisson_means import soft_means
from stdist.kernels.poisson_ridge import RidgeFit

SCORE = 3.0
"""Standard deviations of Dean's (1992) statistic above which counts are overdispersed."""


def overdispersion(
    squared_residuals: np.ndarray, counts: np.ndarray, means: np.ndarray, squared: np.ndarray
) -> np.ndarray:
    """Dispersion of genes that scatter more than Poisson, zero for the others.

    Parameters
    ----------
    squared_residuals, counts, means, squared : (n_genes,) float64
        Sums over cells of ``(y - mu)^2``, ``y``, ``mu`` and ``mu^2``.

    Returns
    -------
    (n_genes,) float64
        ``a`` of ``variance = mu + a mu^2``, where the score test of ``a = 0`` (Dean 1992,
        JASA 87:451) is above three standard deviations.

    Examples
    --------
    >>> one = np.ones(2)
    >>> overdispersion(np.array([2000.0, 1010.0]), 1000 * one, 1000 * one, 1000 * one)
    array([1., 0.])
    """
    excess = squared_residuals - counts
    spread = np.sqrt(2.0 * squared)
    score = np.divide(excess, spread, out=np.zeros_like(excess), where=spread > 0)
    return np.where(score > SCORE, moment_dispersion(squared_residuals, means, squared), 0.0)


def dispersion_of_cells(rows: Any, result: RidgeFit) -> np.ndarray:
    """Dispersion of a panel of genes around the fit to the sampled cells, ``(n_genes,)``."""
    counted = np.flatnonzero(result.converged & ~result.without_counts)
    means = soft_means(
        rows.weights,
        rows.batch,
        rows.depth,
        result.source_intercept[:, counted],
        result.source_coefficients[:, :, counted],
    )
    counts = rows.counts[:, counted].toarray()
    found = np.zeros(len(result.converged))
    found[counted] = overdispersion(
        ((counts - means) ** 2).sum(axis=0),
        counts.sum(axis=0),
        means.sum(axis=0),
        (means**2).sum(axis=0),
    )
    return found


def dispersion_of_strata(
    strata: Mapping[str, np.ndarray],
    chosen: np.ndarray,
    weights: np.ndarray,
    result: RidgeFit,
    batches: np.ndarray,
) -> np.ndarray:
    """Dispersion of a panel of genes around the fit to sums of labelled cells, ``(n_genes,)``.

    ``sum (y - n r)^2 = sum y^2 - 2 r sum n y + r^2 sum n^2`` in a stratum of rate `r`; of the
    fitted `batches` only, ``(n_batches,)`` bool.
    """
    n_rows = strata["depth"].shape[1]
    batch = np.repeat(np.flatnonzero(batches), n_rows)
    one = np.ones(len(batch))
    counted = np.flatnonzero(result.converged & ~result.without_counts)
    rate = soft_means(
        np.tile(weights, (batches.sum(), 1)),
        batch,
        one,
        result.source_intercept[:, counted],
        result.source_coefficients[:, :, counted],
    )

    def of(name: str) -> np.ndarray:
        return strata[name][batches][:, :, chosen[counted]].reshape(len(one), -1)

    depth, depth_squares = (strata[n][batches].reshape(-1, 1) for n in ("depth", "depth_squares"))
    residuals = of("squares") - 2.0 * rate * of("depth_counts") + rate**2 * depth_squares
    found = np.zeros(len(result.converged))
    found[counted] = overdispersion(
        residuals.sum(axis=0),
        of("counts").sum(axis=0),
        (rate * depth).sum(axis=0),
        (rate**2 * depth_squares).sum(axis=0),
    )
    return found
