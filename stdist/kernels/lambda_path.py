"""Penalty of the released Crescendo: the value 1 on the path of lambdas that glmnet computes.

glmnet (Friedman, Hastie and Tibshirani 2010) fits a descending geometric path from the smallest
lambda that would leave only the null model (of a penalty that is nearly a lasso) and may end it
early. A value between two lambdas of the path is interpolated, one outside takes the nearest end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stdist.kernels.poisson_newton import Floats
from stdist.kernels.poisson_ridge import Penalty, RidgeFit

Indices = NDArray[np.int64]
FitAt = Callable[[Indices, Floats], RidgeFit]
"""Fit some genes, each with its own lambda."""

WANTED = 1.0
"""Lambda at which the released program reads the path."""
N_VALUES = 100
SMALLEST = 1e-4
SMALLEST_OF_FEW_ROWS = 1e-2
_LASSO_SHARE = 1e-3  # glmnet's floor of alpha in the start of the path
_ENOUGH = 0.999  # deviance ratio that ends a path
_LEAST_GAIN = 1e-5  # of the deviance ratio per step, relative, below which a path ends
_LEAST_VALUES = 5
_STRIDE = 10  # lambda halves within, so that gains per step differ by less than _MARGIN there
_MARGIN = 10.0


@dataclass(frozen=True)
class FitSums:
    """Sums over the fitted rows, from which lambda and deviance follow.

    Attributes
    ----------
    n_rows : int
        Number of cells.
    counts : (n_batches, n_columns + 1, n_genes) float64
        ``X_b^T y`` with a first column of ones.
    depth : (n_batches, n_columns + 1) float64
        ``X_b^T n``.
    """

    n_rows: int
    counts: Floats
    depth: Floats

    @property
    def totals(self) -> Floats:
        """Sum of the counts, (n_genes,)."""
        return self.counts[:, 0].sum(axis=0)

    @property
    def log_rate(self) -> Floats:
        """Log rate of the null model, (n_genes,); minus infinity without counts."""
        with np.errstate(divide="ignore"):
            return np.log(self.totals / self.depth[:, 0].sum())

    def smallest(self) -> float:
        """Smallest lambda of the path, relative to the largest."""
        n_batches, n_columns = self.depth.shape  # of which one is the intercept
        n_coefficients = n_columns + (n_columns - 1) * n_batches + n_batches
        return SMALLEST if self.n_rows > n_coefficients else SMALLEST_OF_FEW_ROWS


def lambda_maximum(sums: FitSums, penalty: Penalty) -> Floats:
    """Start of glmnet's path for each gene.

    Parameters
    ----------
    sums : FitSums
    penalty : Penalty
        Of lambda 1 (``Penalty.standardized``): its weights are ``n_rows`` times the variances.

    Returns
    -------
    (n_genes,) float64
        ``max_j |g_j| / 0.001`` with ``g_j`` the mean product of the standardised column j and the
        residual of the null model; zero for a gene without counts.
    """
    residual = sums.counts - np.exp(sums.log_rate) * sums.depth[:, :, None]
    n_genes = residual.shape[2]
    largest = np.zeros(n_genes)
    for weight, part in (
        (penalty.cluster, residual[:, 1:].sum(axis=0)),
        (penalty.batch, residual[:, 0]),
        (penalty.interaction, residual[:, 1:]),
    ):
        scale = np.sqrt(sums.n_rows * weight)  # rows times standard deviation
        slopes = np.abs(part) / scale[..., None]
        largest = np.maximum(largest, slopes.reshape(-1, n_genes).max(axis=0, initial=0.0))
    return largest / _LASSO_SHARE


def exact_lambda(sums: FitSums, penalty: Penalty) -> Floats:
    """Lambda 1, within the ends of the whole path, (n_genes,)."""
    maximum = lambda_maximum(sums, penalty)
    found: Floats = np.clip(WANTED, sums.smallest() * maximum, maximum)
    return np.where(maximum > 0, found, WANTED)


def deviance_ratio(fit: RidgeFit, sums: FitSums, saturated: Floats) -> Floats:
    """Share of the null deviance that a fit explains, (n_genes,); zero without counts.

    Parameters
    ----------
    fit : RidgeFit
        At an optimum, where fitted means sum to the counts.
    sums : FitSums
    saturated : (n_genes,) float64
        ``sum_i y_i log(y_i / n_i)`` over cells.
    """
    counted = sums.totals > 0
    rate = np.where(counted, sums.log_rate, 0.0)
    intercept = np.where(counted, fit.intercept, 0.0)
    gain = (
        (intercept - rate) * sums.totals
        + (fit.cluster * sums.counts[:, 1:].sum(axis=0)).sum(axis=0)
        + (fit.batch * sums.counts[:, 0]).sum(axis=0)
        + (fit.interaction * sums.counts[:, 1:]).sum(axis=(0, 1))
    )
    null = saturated - rate * sums.totals
    return np.divide(gain, null, out=np.zeros_like(gain), where=null > 0)


def fit_reference(
    fit_at: FitAt, sums: FitSums, saturated: Floats, penalty: Penalty
) -> tuple[RidgeFit, Floats]:
    """Fit every gene as the released Crescendo reads glmnet: ``coef(fit, s=1)``.

    Parameters
    ----------
    fit_at : callable
        ``fit_at(genes, lambdas)`` fits these genes with ``penalty`` scaled by lambda.
    sums : FitSums
    saturated : (n_genes,) float64
        As for :func:`deviance_ratio`.
    penalty : Penalty
        Of lambda 1.

    Returns
    -------
    fit : RidgeFit
        Interpolated, linearly in lambda, between the two values of the path around 1.
    lambdas : (n_genes,) float64
        The value that was read: 1, or the end of the path that is nearest to it.

    Notes
    -----
    glmnet ends a path of at least five values once the deviance ratio exceeds 0.999 or a step
    raises it by less than 1e-5 of its value. This is looked for at every tenth value, and step by
    step only where it may happen.
    """
    maximum = lambda_maximum(sums, penalty)
    steps = sums.smallest() ** (np.arange(N_VALUES) / (N_VALUES - 1))
    path = np.where(maximum > 0, maximum, WANTED)[:, None] * steps
    # first value of the path that is not above the wanted one
    lower = np.minimum((path > WANTED).sum(axis=1), N_VALUES - 1)

    def at(genes: Indices, index: Indices) -> RidgeFit:
        return _fit_index(fit_at, sums.log_rate, path, genes, index)

    def ratio(genes: Indices, index: Indices) -> Floats:
        own = replace(sums, counts=sums.counts[:, :, genes])
        return deviance_ratio(at(genes, index), own, saturated[genes])

    genes = np.arange(len(path))
    end = _path_end(ratio, lower)
    upper = np.where(path[genes, end] >= WANTED, end, np.maximum(end - 1, 0))
    ends = path[genes, upper], path[genes, end]
    width = ends[0] - ends[1]
    share = np.divide(WANTED - ends[1], width, out=np.zeros_like(width), where=width > 0)
    fitted = _interpolate(at(genes, upper), at(genes, end), share)
    return fitted, np.where(width > 0, WANTED, ends[1])


def _path_end(ratio: Callable[[Indices, Indices], Floats], lower: Indices) -> Indices:
    """Index at which each gene's path ends, or `lower` where it reaches that."""
    genes = np.arange(len(lower))
    marks = np.minimum(np.arange(0, lower.max() + _STRIDE, _STRIDE)[:, None], lower)
    ratios = [ratio(genes, mark) for mark in marks]
    end = lower.copy()
    for number in range(len(marks) - 1, 0, -1):  # the first place wins
        first, last = marks[number - 1], marks[number]
        gain = ratios[number] - ratios[number - 1]
        least = _MARGIN * _LEAST_GAIN * (last - first) * ratios[number]
        doubtful = (last > first) & ((gain < least) | (ratios[number] > _ENOUGH))
        for gene in np.flatnonzero(doubtful):
            for index in range(max(first[gene] + 1, _LEAST_VALUES - 1), last[gene] + 1):
                one = np.array([gene, gene])
                before, now = ratio(one, np.array([index - 1, index]))
                if now > _ENOUGH or now - before < _LEAST_GAIN * now:
                    end[gene] = index
                    break
    return end


def _fit_index(
    fit_at: FitAt, log_rate: Floats, path: Floats, genes: Indices, index: Indices
) -> RidgeFit:
    """Fit genes at an index of their path each; index 0 is the null model."""
    fitted = fit_at(genes, path[genes, index])
    null = index == 0
    return replace(
        fitted,
        intercept=np.where(null, log_rate[genes], fitted.intercept),
        cluster=np.where(null, 0.0, fitted.cluster),
        batch=np.where(null, 0.0, fitted.batch),
        interaction=np.where(null, 0.0, fitted.interaction),
        converged=null | fitted.converged,
    )


def _interpolate(high: RidgeFit, low: RidgeFit, share: Floats) -> RidgeFit:
    def mean(first: Floats, second: Floats) -> Floats:
        both: Floats = share * first + (1.0 - share) * second
        return both

    counted = ~low.without_counts
    intercept = np.full_like(low.intercept, -np.inf)
    intercept[counted] = mean(
        np.where(counted, high.intercept, 0.0), np.where(counted, low.intercept, 0.0)
    )[counted]
    return RidgeFit(
        intercept=intercept,
        cluster=mean(high.cluster, low.cluster),
        batch=mean(high.batch, low.batch),
        interaction=mean(high.interaction, low.interaction),
        converged=high.converged & low.converged,
        iterations=high.iterations + low.iterations,
        gradient_norm=np.maximum(high.gradient_norm, low.gradient_norm),
    )
