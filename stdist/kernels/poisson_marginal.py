"""Batch-free coefficients from a fit with batches, and the guard against runaway ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

from stdist.kernels.poisson_newton import Floats
from stdist.kernels.poisson_ridge import RidgeFit, require


def marginal(fit: RidgeFit, mass: ArrayLike) -> tuple[Floats, Floats]:
    """Batch-free coefficients: the mean over batches of the multiplicative batch effect.

    Parameters
    ----------
    fit : RidgeFit
    mass : (n_batches, n_clusters) float
        Sum of the weights of each cluster in each batch.

    Returns
    -------
    intercept : (n_genes,) float64
    coefficients : (n_clusters, n_genes) float64
        ``beta_k + log sum_b w_bk exp(gamma_bk)``, w the share of the cluster's mass in batch
        b: never above the largest batch. A cluster without mass keeps ``beta_k``.

    Raises
    ------
    ValueError
        If ``mass`` has another shape than (n_batches, n_clusters).
    """
    share = _shares(fit, mass)
    return fit.intercept, fit.cluster + logsumexp(fit.interaction, axis=0, b=share[:, :, None])


def interquartile_marginal(fit: RidgeFit, mass: ArrayLike) -> tuple[Floats, Floats]:
    """Batch-free coefficients: the interquartile mean over batches of the log batch effect.

    Parameters
    ----------
    fit : RidgeFit
    mass : (n_batches, n_clusters) float
        Sum of the weights of each cluster in each batch.

    Returns
    -------
    intercept : (n_genes,) float64
    coefficients : (n_clusters, n_genes) float64
        ``beta_k`` and the mean of ``gamma_bk`` over the middle half of the cluster's mass, with
        batches in the order of their effect: a batch with less than a quarter of the mass has
        no weight if its effect is the lowest or highest.

    Raises
    ------
    ValueError
        If ``mass`` has another shape than (n_batches, n_clusters).
    """
    share = _shares(fit, mass)
    middle = [_interquartile_mean(fit.interaction[:, k], share[:, k]) for k in range(len(share.T))]
    return fit.intercept, fit.cluster + np.array(middle)


def log_factor_to_keep_totals(
    intercept: Floats,
    coefficients: Floats,
    fit: RidgeFit,
    weights: ArrayLike,
    batch: ArrayLike,
    depth: ArrayLike,
    least: float,
) -> Floats:
    """By what to multiply the batch-free rates of a gene so that its total stays near the fitted.

    Parameters
    ----------
    intercept : (n_genes,) float64
    coefficients : (n_columns, n_genes) float64
    fit : RidgeFit
    weights : (n_cells, n_columns) float
    batch : (n_cells,) int
    depth : (n_cells,) float
        Depths, times the number of cells that each stands for.
    least : float
        The total is kept within ``least`` and ``1 / least`` of that with batches.

    Returns
    -------
    (n_genes,) float64
        Logarithm of the factor; zero where the total is near, zero or not finite.
    """
    weights, batch, depth = np.asarray(weights), np.asarray(batch), np.asarray(depth)
    start, slope = fit.source_intercept, fit.source_coefficients
    totals = np.zeros((2, len(intercept)))
    with np.errstate(over="ignore", invalid="ignore"):
        for b in np.unique(batch):
            own = batch == b
            rows, n = weights[own], depth[own]
            for gene in range(
                len(intercept)
            ):  # apart: a product of several depends on their number
                rates = start[b, gene] + rows @ np.ascontiguousarray(slope[b, :, gene])
                totals[0, gene] += n @ np.exp(rates)
                rates = intercept[gene] + rows @ np.ascontiguousarray(coefficients[:, gene])
                totals[1, gene] += n @ np.exp(rates)
        ratio = totals[1] / np.where(totals[0] > 0, totals[0], np.nan)
    ratio = np.where(np.isfinite(ratio) & (ratio > 0), ratio, 1.0)
    return np.log(np.clip(ratio, least, 1 / least) / ratio)


def _shares(fit: RidgeFit, mass: ArrayLike) -> Floats:
    """Share of each batch in the mass of a cluster; equal ones in a cluster without mass."""
    mass = np.asarray(mass, dtype=np.float64)
    require(mass.shape == fit.interaction.shape[:2], f"mass has shape {mass.shape}")
    total = mass.sum(axis=0)
    return np.divide(mass, total, out=np.full_like(mass, 1.0 / len(mass)), where=total > 0)


def _interquartile_mean(values: Floats, share: Floats) -> Floats:
    """Mean of each column of `values` over the middle half of the rows' shares, in its order."""
    order = values.argsort(axis=0, kind="stable")
    own = share[order]
    end = own.cumsum(axis=0)
    weight = np.maximum(np.minimum(end, 0.75) - np.maximum(end - own, 0.25), 0.0)
    inside = np.take_along_axis(values, order, axis=0)
    return np.asarray((weight * inside).sum(axis=0) / weight.sum(axis=0))


def reference_marginal(fit: RidgeFit) -> tuple[Floats, Floats]:
    """Batch-free coefficients of the released Crescendo: mean plus half the variance.

    Returns
    -------
    intercept : (n_genes,) float64
    coefficients : (n_clusters, n_genes) float64
        ``beta_k + mean_b(gamma_bk) + var_b(gamma_bk) / 2`` with divisor ``n_batches - 1``.
    """
    n_batches = len(fit.interaction)
    variance = fit.interaction.var(axis=0, ddof=1) if n_batches > 1 else 0.0
    return fit.intercept, fit.cluster + fit.interaction.mean(axis=0) + variance / 2


def exceeding_marginals(
    intercept: Floats,
    coefficients: Floats,
    weights: ArrayLike,
    largest_rate: ArrayLike,
    factor: float = 1e4,
) -> NDArray[np.int64]:
    """Find marginal rates that no data support.

    Parameters
    ----------
    intercept : (n_genes,) float64
    coefficients : (n_clusters, n_genes) float64
    weights : (n_cells, n_clusters) float
        Cells to correct, or the identity for one label per cell.
    largest_rate : (n_genes,) float
        Largest observed count over depth.
    factor : float

    Returns
    -------
    (n_found, 2) int64
        Genes for which a cell's marginal rate is above ``factor`` times ``largest_rate`` or
        not a number, each with the cluster that raises the worst cell most.

    Notes
    -----
    The rate is judged at the cells, not at ``exp(intercept + coefficient)``: a cluster that
    is nowhere pure has a coefficient far from any cell.

    Examples
    --------
    >>> coefficients = np.array([[0.5], [20.0]])
    >>> exceeding_marginals(np.array([-7.0]), coefficients, np.eye(2), np.array([0.01]))
    array([[0, 1]])
    >>> exceeding_marginals(np.array([-7.0]), coefficients, [[0.9, 0.1]], np.array([0.01]))
    array([], shape=(0, 2), dtype=int64)
    """
    weights = np.asarray(weights, dtype=np.float64)
    rates = np.asarray(largest_rate, dtype=np.float64)
    bound = np.log(factor) + np.log(rates, out=np.full_like(rates, -np.inf), where=rates > 0)
    # no cell is above its highest cluster, so few genes need a look at the cells
    heaviest = max(1.0, weights.sum(axis=1).max(initial=0.0))
    ceiling = intercept + heaviest * np.maximum(coefficients, 0.0).max(axis=0)
    found = []
    for gene in np.flatnonzero(~(ceiling <= bound)):
        excess = intercept[gene] + weights @ coefficients[:, gene] - bound[gene]
        worst = int(np.nan_to_num(excess, nan=np.inf).argmax())
        if not excess[worst] <= 0:
            pull = np.nan_to_num(weights[worst] * coefficients[:, gene], nan=np.inf)
            found.append((gene, int(pull.argmax())))
    return np.array(found, dtype=np.int64).reshape(-1, 2)
