"""Variance components of counts between cell types and batches: a Poisson mixed model per gene.

Counts enter as totals of (cell type, batch) groups: within a group the linear predictor differs
by the offset only, so that the totals are sufficient and the cost does not depend on the number
of cells.  The likelihood and its gradient are in :mod:`stdist.kernels.poisson_laplace`.
It is even in every standard deviation: a variance at its boundary 0 is an ordinary stationary
point of an unconstrained search.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln, xlogy

from stdist.kernels.poisson_laplace import FloatArray, laplace

MINIMUM_BATCH_VARIANCE = 1e-3
MINIMUM_CELLTYPE_VARIANCE = 1e-3
ZONE_MINIMUM_CVR = 0.5

_STARTS = np.array([[1.0, 0.5, 0.3], [0.3, 0.1, 1.0]])  # standard deviations
_MAXIMUM_STEPS = 100
_MAXIMUM_RESTARTS = 5
_DIFFERENCE = 1e-6
_SMALLEST_STEP = 1e-10
_SETTLED, _ROUNDING, _SMALLEST_GAIN = 1e-13, 1e-8, 1e-9  # of the log-likelihood


@dataclass(frozen=True)
class VarianceComponents:
    """Fitted mixed model of every gene; all arrays are float64 of shape (n_genes,).

    Attributes
    ----------
    celltype, batch, interaction
        Variances of the random effects on the natural-log scale; NaN where there is no count.
    intercept
        Fixed effect: log of the expected count per unit of exposure.
    log_likelihood
        Laplace log-likelihood of the group totals, with all constants (as ``lme4::glmer``).
    converged
        bool (n_genes,): False for genes without counts and where the search did not settle.
    """

    celltype: FloatArray
    batch: FloatArray
    interaction: FloatArray
    intercept: FloatArray
    log_likelihood: FloatArray
    converged: NDArray[np.bool_]

    @property
    def batch_related(self) -> FloatArray:
        """B = var(batch) + var(celltype:batch), shape (n_genes,)."""
        return self.batch + self.interaction


@dataclass(frozen=True)
class VarianceRatios:
    """Batch and cell-type variance after correction relative to before; shape (n_genes,).

    ``bvr`` and ``cvr`` are NaN where the flag ``no_batch_variance`` or ``no_celltype_variance``
    says that the denominator is negligible.
    """

    bvr: FloatArray
    cvr: FloatArray
    no_batch_variance: NDArray[np.bool_]
    no_celltype_variance: NDArray[np.bool_]
    in_zone: NDArray[np.bool_]


def fit_poisson_glmm(counts: ArrayLike, exposure: ArrayLike) -> VarianceComponents:
    """Fit ``y ~ 1 + (1|celltype) + (1|batch) + (1|celltype:batch)`` to every gene.

    Parameters
    ----------
    counts
        (n_types, n_batches, n_genes): counts summed over the cells of a group.
    exposure
        (n_types, n_batches): observed total counts (nUMI) summed over the cells of a group.
        0 marks a group without cells: it is left out of the model.

    Returns
    -------
    VarianceComponents
        The maximum of the Laplace likelihood, for each gene on its own.

    Raises
    ------
    ValueError
        Wrong shapes; negative or non-finite values; counts in a group without exposure; fewer
        than two types or batches with cells; every type in one batch only or every batch with
        one type only (then the interaction cannot be told from a main effect).

    Notes
    -----
    Group totals up to about 1e9 are safe; beyond, float64 rounds the gradient away and genes
    may be reported as not converged.

    References
    ----------
    The model of ``lme4::glmer(family = poisson, nAGQ = 1)``, Bates et al. 2015, J Stat Softw 67.

    Examples
    --------
    >>> counts = np.array([[[120], [260]], [[900], [2100]], [[40], [70]]])
    >>> fit = fit_poisson_glmm(counts, np.full((3, 2), 1e5))
    >>> bool(fit.converged[0]), bool(fit.celltype[0] > fit.batch_related[0])
    (True, True)
    """
    counts, exposure = np.asarray(counts, np.float64), np.asarray(exposure, np.float64)
    _check_groups(counts, exposure)
    # The dense Schur complement is over axis 1: make it the shorter one.
    transposed = counts.shape[1] > counts.shape[0]
    if transposed:
        counts, exposure = counts.transpose(1, 0, 2), exposure.T
    by_gene = np.ascontiguousarray(np.moveaxis(counts, 2, 0))
    fitted, deviance, converged = _fit_genes(by_gene, np.ascontiguousarray(exposure))
    saturated = (xlogy(by_gene, by_gene) - by_gene - gammaln(by_gene + 1)).sum(axis=(1, 2))
    first, second, interaction = (np.ascontiguousarray(fitted[:, k] ** 2) for k in range(3))
    celltype, batch = (second, first) if transposed else (first, second)
    return VarianceComponents(
        celltype, batch, interaction, fitted[:, 3].copy(), saturated - deviance, converged
    )


def bvr_cvr(pre: VarianceComponents, post: VarianceComponents) -> VarianceRatios:
    """Batch-variance and cell-type-variance ratios of a correction (Crescendo's metrics).

    ``BVR = B_post / B_pre`` with B = var(batch) + var(celltype:batch), and
    ``CVR = C_post / C_pre`` with C = var(celltype).  A gene is in the target zone when
    BVR < 1 and CVR >= 0.5; only genes with B_pre > 0.001 can be.  Without cell-type variance
    before (C_pre < 0.001) there is none to lose: CVR is NaN and the zone compares
    C_post >= 0.5 C_pre.

    Parameters
    ----------
    pre, post
        Fits of the same genes before and after correction, (n_genes,) each.

    Returns
    -------
    VarianceRatios

    Raises
    ------
    ValueError
        The two fits have different numbers of genes.

    References
    ----------
    Millard et al. 2025, Genome Biology 26 (Crescendo).

    Examples
    --------
    >>> pre = fit_poisson_glmm([[[50], [400]], [[100], [900]], [[10], [70]]], np.full((3, 2), 1e5))
    >>> post = fit_poisson_glmm([[[51], [52]], [[99], [103]], [[10], [8]]], np.full((3, 2), 1e5))
    >>> bvr_cvr(pre, post).in_zone
    array([ True])
    """
    if pre.batch.shape != post.batch.shape:
        msg = f"pre has {pre.batch.size} genes and post {post.batch.size}: fit the same genes"
        raise ValueError(msg)
    before, after = pre.batch_related, post.batch_related
    has_batch = before > MINIMUM_BATCH_VARIANCE
    has_celltype = pre.celltype >= MINIMUM_CELLTYPE_VARIANCE
    bvr = np.divide(after, before, out=np.full_like(before, np.nan), where=has_batch)
    cvr = np.divide(post.celltype, pre.celltype, out=np.full_like(bvr, np.nan), where=has_celltype)
    kept = post.celltype >= ZONE_MINIMUM_CVR * pre.celltype
    return VarianceRatios(bvr, cvr, ~has_batch, ~has_celltype, has_batch & (after < before) & kept)


def _check_groups(counts: FloatArray, exposure: FloatArray) -> None:
    if counts.ndim != 3 or exposure.shape != counts.shape[:2]:
        msg = (
            "counts must be (n_types, n_batches, n_genes) and exposure (n_types, n_batches), "
            f"got {counts.shape} and {exposure.shape}"
        )
        raise ValueError(msg)
    for name, values in (("counts", counts), ("exposure", exposure)):
        if not (np.isfinite(values).all() and (values >= 0).all()):
            msg = f"{name} must be finite and not negative"
            raise ValueError(msg)
    present = exposure > 0
    if counts[~present].any():
        msg = "counts in a (cell type, batch) group whose exposure is 0"
        raise ValueError(msg)
    n_types, n_batches = present.any(axis=1).sum(), present.any(axis=0).sum()
    if min(n_types, n_batches) < 2 or present.sum() == max(n_types, n_batches):
        msg = (
            "batch and interaction variances need at least two cell types and two batches, and "
            f"types shared between batches; got {n_types} types, {n_batches} batches and "
            f"{present.sum()} groups with cells"
        )
        raise ValueError(msg)


@njit(nogil=True, cache=True)
def _minimise(
    theta: FloatArray, counts: FloatArray, offset: FloatArray, reference: FloatArray
) -> tuple[float, FloatArray, bool]:
    """Newton on |Hessian| (differenced gradients) with backtracking: value, theta, settled."""
    n_types, n_batches = counts.shape
    mode = (np.zeros(n_types), np.zeros(n_batches), np.zeros((n_types, n_batches)))
    value, gradient, mode = laplace(theta, counts, offset, reference, mode)
    hessian = np.empty((4, 4))
    for _ in range(_MAXIMUM_STEPS):
        for k in range(4):
            shifted = theta.copy()
            shifted[k] += _DIFFERENCE
            hessian[k] = laplace(shifted, counts, offset, reference, mode)[1] - gradient
        curvature, axes = np.linalg.eigh((hessian + hessian.T) / (2.0 * _DIFFERENCE))
        curvature = np.abs(curvature)
        along = (axes.T * gradient).sum(axis=1) / np.maximum(curvature, 1e-10 * curvature.max())
        direction = -(axes * along).sum(axis=1)
        slope = (direction * gradient).sum()
        if -slope < _SETTLED:
            return value, theta, True
        step = min(1.0, 1.0 / np.abs(direction).max())
        while step > _SMALLEST_STEP:
            trial = theta + step * direction
            trial_value, trial_gradient, trial_mode = laplace(
                trial, counts, offset, reference, mode
            )
            if trial_value <= value + 1e-4 * step * slope:
                break
            step *= 0.5
        if not step > _SMALLEST_STEP:
            return value, theta, -slope < _ROUNDING
        theta, value, gradient, mode = trial, trial_value, trial_gradient, trial_mode
    return value, theta, False


@njit(nogil=True, cache=True)
def _fit_genes(
    counts: FloatArray, exposure: FloatArray
) -> tuple[FloatArray, FloatArray, NDArray[np.bool_]]:
    """Best optimum over the starts of every gene; counts are (n_genes, n_types, n_batches)."""
    n_genes, n_types, n_batches = counts.shape
    fitted, best = np.full((n_genes, 4), np.nan), np.full(n_genes, np.nan)
    settled = np.zeros(n_genes, np.bool_)
    offset, reference = np.zeros((n_types, n_batches)), np.zeros((n_types, n_batches))
    theta = np.empty(4)
    for gene in range(n_genes):
        total = counts[gene].sum()
        if total == 0.0:
            continue
        for c in range(n_types):
            for b in range(n_batches):
                if exposure[c, b] > 0.0:
                    reference[c, b] = max(counts[gene, c, b], 1.0)
                    offset[c, b] = np.log(exposure[c, b] / reference[c, b])
        best[gene] = np.inf
        for start in _STARTS:
            theta[:3], theta[3] = start, np.log(total / exposure.sum())
            value, optimum, done = _minimise(theta.copy(), counts[gene], offset, reference)
            if value < best[gene] - _SMALLEST_GAIN:
                best[gene], fitted[gene], settled[gene] = value, optimum, done
        for _ in range(_MAXIMUM_RESTARTS):
            theta[:] = fitted[gene]
            for k in range(3):
                theta[k] = max(abs(theta[k]), 0.1)
            value, optimum, done = _minimise(theta.copy(), counts[gene], offset, reference)
            if not value < best[gene] - _SMALLEST_GAIN:
                break
            best[gene], fitted[gene], settled[gene] = value, optimum, done
    return fitted, best, settled
