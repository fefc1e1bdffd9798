"""Variance components of a continuous layer: a Gaussian mixed model per gene, by REML.

Model of one gene, for cell i of cell type c and batch b::

    y_i = b0 + s t1 x_c + s t2 z_b + s t3 w_cb + s e_i,    x, z, w, e ~ Normal(0, 1)

The numbers, means and sums of squares of the (cell type, batch) groups are sufficient. With Q the
squares within groups, N cells and M groups, r the group means minus b0 and

    V = diag(t3^2 + 1 / n) + t1^2 C C' + t2^2 B B'        (M x M, in units of s^2)

the restricted likelihood, with b0 and s^2 = (Q + r' V^-1 r) / (N - 1) at their best, is

    -2 log L = (N - 1)(1 + log 2 pi s^2) + log det V + sum(log n) + log(1' V^-1 1)

(Pinheiro and Bates 2000, chapter 2; the criterion of ``lme4::lmer(REML = TRUE)``). It is even in
t1, t2 and t3, so a variance at its boundary 0 is an ordinary stationary point.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize

FloatArray = NDArray[np.float64]
Groups = tuple[FloatArray, FloatArray, float, float]

_GRADIENT = 1e-5
_SETTLED = 1e-3
_STARTS = np.array([[1.0, 1.0, 1.0], [0.3, 0.1, 1.0]])
_SMALLEST_GAIN = 1e-9
_FLAT = 1e-13
"""Share of the sum of squares below which squares within groups are rounding."""


@dataclass(frozen=True)
class GaussianComponents:
    """Fitted mixed model of every gene; all arrays are float64 of shape (n_genes,).

    Attributes
    ----------
    celltype, batch, interaction, residual
        Variances, in the squared unit of the values; NaN where cells of a group do not differ.
    intercept
        Fixed effect.
    log_likelihood
        Restricted log-likelihood, with all constants (as ``lme4::lmer(REML = TRUE)``).
    converged
        bool (n_genes,): False where variances are NaN or the search did not settle.
    """

    celltype: FloatArray
    batch: FloatArray
    interaction: FloatArray
    residual: FloatArray
    intercept: FloatArray
    log_likelihood: FloatArray
    converged: NDArray[np.bool_]


def fit_gaussian_glmm(sums: ArrayLike, squares: ArrayLike, cells: ArrayLike) -> GaussianComponents:
    """Fit ``y ~ 1 + (1|celltype) + (1|batch) + (1|celltype:batch)`` to every gene by REML.

    Parameters
    ----------
    sums, squares
        (n_types, n_batches, n_genes): sums of the values, and of their squares, over the cells of
        a group.
    cells
        (n_types, n_batches): number of cells of a group; 0 leaves the group out.

    Returns
    -------
    GaussianComponents
        The maximum of the restricted likelihood, for each gene on its own.

    Raises
    ------
    ValueError
        Wrong shapes, values that are not finite, fewer than two types or batches with cells,
        every type in one batch only or every batch with one type only, or one cell per group.

    Examples
    --------
    >>> sums = np.array([[[10.0], [12.0]], [[30.0], [33.0]], [[19.0], [23.0]]])
    >>> squares = sums**2 / 10 + 9.0
    >>> fit = fit_gaussian_glmm(sums, squares, np.full((3, 2), 10))
    >>> bool(fit.converged[0]), bool(fit.celltype[0] > fit.batch[0])
    (True, True)
    """
    total, square = np.asarray(sums, np.float64), np.asarray(squares, np.float64)
    n = np.asarray(cells, np.float64)
    _check_groups(total, square, n)
    # The dense Schur complement is over axis 1: make it the shorter one.
    transposed = n.shape[1] > n.shape[0]
    if transposed:
        total, square, n = total.transpose(1, 0, 2), square.transpose(1, 0, 2), n.T
    n = np.ascontiguousarray(n)
    n_genes = total.shape[2]
    fitted = np.full((6, n_genes), np.nan)
    converged = np.zeros(n_genes, np.bool_)
    for gene in range(n_genes):
        found = _fit_gene(np.ascontiguousarray(total[:, :, gene]), square[:, :, gene], n)
        if found is not None:
            fitted[:, gene], converged[gene] = found
    if transposed:
        fitted[:2] = fitted[1::-1].copy()
    celltype, batch, interaction, residual, intercept, log_likelihood = fitted
    return GaussianComponents(
        celltype, batch, interaction, residual, intercept, log_likelihood, converged
    )


def _check_groups(sums: FloatArray, squares: FloatArray, cells: FloatArray) -> None:
    if sums.ndim != 3 or squares.shape != sums.shape or cells.shape != sums.shape[:2]:
        message = (
            "sums and squares must be (n_types, n_batches, n_genes) and cells "
            f"(n_types, n_batches), got {sums.shape}, {squares.shape} and {cells.shape}"
        )
        raise ValueError(message)
    if not all(np.isfinite(values).all() for values in (sums, squares, cells)):
        message = "sums, squares and cells must be finite"
        raise ValueError(message)
    present = cells > 0
    n_types, n_batches = present.any(axis=1).sum(), present.any(axis=0).sum()
    groups = present.sum()
    if min(n_types, n_batches) < 2 or groups == max(n_types, n_batches) or cells.sum() <= groups:
        message = (
            "the variances need at least two cell types and two batches, types shared between "
            f"batches, and several cells in a group; got {n_types} types, {n_batches} batches, "
            f"{groups} groups and {cells.sum():.0f} cells"
        )
        raise ValueError(message)


def _fit_gene(
    sums: FloatArray, squares: FloatArray, cells: FloatArray
) -> tuple[FloatArray, bool] | None:
    """Variances, intercept, log-likelihood and convergence; None where nothing varies."""
    mean = np.divide(sums, cells, out=np.zeros_like(sums), where=cells > 0)
    n_cells, n_groups = float(cells.sum()), int((cells > 0).sum())
    within = float((squares - sums * mean).sum())
    if within <= _FLAT * float(squares.sum()):
        return None
    groups = mean, cells, within, n_cells
    scale = _spread(mean, cells) / np.sqrt(within / (n_cells - n_groups))
    best = None
    for start in _STARTS:
        result = minimize(
            lambda point: _scaled(point, scale, groups),
            start,
            jac=True,
            method="BFGS",
            options={"gtol": _GRADIENT},
        )
        if best is None or result.fun < best.fun - _SMALLEST_GAIN:
            best = result
    assert best is not None
    theta = best.x * scale
    _, _, intercept, variance = restricted_deviance(theta, *groups)
    log_likelihood = -0.5 * (
        best.fun
        + (n_cells - 1.0) * (1.0 + np.log(2.0 * np.pi * within / (n_cells - 1.0)))
        + np.log(cells[cells > 0]).sum()
    )
    components = [*(theta**2 * variance), variance, intercept, log_likelihood]
    return np.array(components), bool(np.abs(best.jac).max() < _SETTLED)


def _spread(mean: FloatArray, cells: FloatArray) -> FloatArray:
    """Standard deviations of type means, batch means and what remains: where searches start."""
    present = cells > 0
    count = [np.maximum(present.sum(axis=axis), 1) for axis in (1, 0)]
    centre = mean[present].mean()
    deviation = np.where(present, mean - centre, 0.0)
    types, batches = deviation.sum(axis=1) / count[0], deviation.sum(axis=0) / count[1]
    rest = np.where(present, deviation - types[:, None] - batches, 0.0)
    found = np.array([types.std(), batches.std(), rest[present].std()])
    return np.maximum(found, 1e-3 * max(float(found.max()), 1e-12))


def _scaled(point: FloatArray, scale: FloatArray, groups: Groups) -> tuple[float, FloatArray]:
    value, gradient, _, _ = restricted_deviance(point * scale, *groups)
    return value, gradient * scale


@njit(nogil=True, cache=True)
def restricted_deviance(
    theta: FloatArray, mean: FloatArray, cells: FloatArray, within: float, n_cells: float
) -> tuple[float, FloatArray, float, float]:
    """-2 log L without its constants, its gradient in theta, b0 and s^2.

    Left out: ``(N - 1)(1 + log(2 pi Q / (N - 1))) + sum(log n)``.
    """
    n_types, n_batches = mean.shape
    root = np.empty(n_types + n_batches)
    root[:n_types], root[n_types:] = theta[0], theta[1]
    weight = cells / (1.0 + theta[2] ** 2 * cells)
    log_det = 0.0
    for c in range(n_types):
        for b in range(n_batches):
            if weight[c, b] > 0.0:
                log_det -= np.log(weight[c, b])
    inverse, log_det_inner = _inverse(weight, theta[0], theta[1])
    log_det += log_det_inner
    ones = _solve(np.ones_like(mean), weight, root, inverse)
    information = ones.sum()
    b0 = (ones * mean).sum() / information
    solved = _solve(mean - b0, weight, root, inverse)
    between = ((mean - b0) * solved).sum()
    variance = (within + between) / (n_cells - 1.0)
    value = (n_cells - 1.0) * np.log1p(between / within) + log_det + np.log(information)
    gradient = np.zeros(3)
    for axis in range(2):
        gradient[axis] = -(ones.sum(axis=1 - axis) ** 2).sum() / information
        gradient[axis] -= (solved.sum(axis=1 - axis) ** 2).sum() / variance
        gradient[axis] *= 2.0 * theta[axis]
        first, last = (0, n_types) if axis == 0 else (n_types, len(root))
        if theta[axis] != 0.0:
            for k in range(first, last):
                gradient[axis] += 2.0 * (1.0 - inverse[k, k]) / theta[axis]
    trace = -(ones * ones).sum() / information - (solved * solved).sum() / variance
    for c in range(n_types):
        for b in range(n_batches):
            k, w = n_types + b, weight[c, b]
            spread = root[c] ** 2 * inverse[c, c] + root[k] ** 2 * inverse[k, k]
            trace += w - w * w * (spread + 2.0 * root[c] * root[k] * inverse[c, k])
    gradient[2] = 2.0 * theta[2] * trace
    return value, gradient, b0, variance


@njit(nogil=True, cache=True)
def _inverse(weight: FloatArray, t1: float, t2: float) -> tuple[FloatArray, float]:
    """Inverse and log determinant of ``I + U' diag(weight) U`` with U = [t1 C, t2 B].

    Its block of types is diagonal: once it is eliminated, a matrix over the batches is left.
    """
    n_types, n_batches = weight.shape
    diagonal = 1.0 + t1 * t1 * weight.sum(axis=1)
    cross = t1 * t2 * weight
    scaled = np.empty_like(cross)
    for c in range(n_types):
        scaled[c] = cross[c] / diagonal[c]
    schur = -(scaled.T @ cross)
    for b in range(n_batches):
        schur[b, b] += 1.0 + t2 * t2 * weight[:, b].sum()
    log_det = np.log(diagonal).sum()
    log_det += 2.0 * np.log(np.diag(np.linalg.cholesky(schur))).sum()
    remaining = np.linalg.inv(schur)
    inverse = np.empty((n_types + n_batches, n_types + n_batches))
    corner = -(scaled @ remaining)
    inverse[:n_types, n_types:] = corner
    inverse[n_types:, :n_types] = corner.T
    inverse[n_types:, n_types:] = remaining
    inverse[:n_types, :n_types] = -(corner @ scaled.T)
    for c in range(n_types):
        inverse[c, c] += 1.0 / diagonal[c]
    return inverse, log_det


@njit(nogil=True, cache=True)
def _solve(
    values: FloatArray, weight: FloatArray, root: FloatArray, inverse: FloatArray
) -> FloatArray:
    """V^-1 times group values, by Woodbury's identity."""
    n_types = values.shape[0]
    weighted = weight * values
    projected = np.empty(len(root))
    projected[:n_types] = root[:n_types] * weighted.sum(axis=1)
    projected[n_types:] = root[n_types:] * weighted.sum(axis=0)
    effects = root * (inverse @ projected)
    fitted = np.empty_like(values)
    for c in range(n_types):
        for b in range(values.shape[1]):
            fitted[c, b] = effects[c] + effects[n_types + b]
    return weight * (values - fitted)
