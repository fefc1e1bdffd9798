"""Newton's method for one gene of a penalised Poisson regression, by elimination of batches.

Given ``(intercept, beta)`` the batches are independent, so each ``(delta_b, gamma_b)`` is
eliminated and a system of ``n_clusters + 1`` unknowns is left.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack, solve_triangular

if TYPE_CHECKING:
    from stdist.kernels.poisson_ridge import Penalty

Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]

HALVINGS = 60  # of a Newton step before the gene is given up


class Step(NamedTuple):
    """Values for (intercept, beta), (n_clusters + 1,), and (delta_b, gamma_b) in rows."""

    common: Floats
    local: Floats


class Ridge(NamedTuple):
    """Weights in that layout; ``free`` is False where a coefficient stays zero."""

    weight: Step
    free_common: Booleans
    free_local: Booleans
    variance: Floats  # of (delta_b, gamma_b), zero where left out

    @classmethod
    def of(cls, penalty: Penalty, factor: float) -> Ridge:
        """Scale a penalty."""
        common = factor * np.concatenate([[0.0], penalty.cluster])
        local = factor * np.column_stack([penalty.batch, penalty.interaction])
        free = np.isfinite(common), np.isfinite(local)
        weight = Step(np.where(free[0], common, 0.0), np.where(free[1], local, 0.0))
        return cls(weight, *free, variance=1.0 / local)


class Cells:
    """Rows with soft cluster weights, sorted so that a batch is one contiguous block."""

    def __init__(self, weights: Floats, batch: NDArray[Any], depth: Floats, n_batches: int) -> None:
        self.order = np.argsort(batch, kind="stable")
        self.bounds = np.searchsorted(batch[self.order], np.arange(n_batches + 1))
        self.depth = depth[self.order]
        self.columns = np.column_stack([np.ones(len(batch)), weights[self.order]])
        self.blocks = [slice(*pair) for pair in pairwise(self.bounds)]

    def count_sums(self, rows: NDArray[Any], counts: Floats) -> Floats:
        cuts = np.searchsorted(rows, self.bounds)
        return np.stack([counts[i:j] @ self.columns[rows[i:j]] for i, j in pairwise(cuts)])

    def means(self, coefficients: Floats) -> tuple[Floats, Floats]:
        means = np.empty_like(self.depth)
        moments = np.empty_like(coefficients)
        for b, block in enumerate(self.blocks):
            columns = self.columns[block]
            means[block] = self.depth[block] * np.exp(columns @ coefficients[b])
            moments[b] = means[block] @ columns
        return means, moments

    def newton_step(self, means: Floats, ridge: Ridge, residual: Floats, prior: Step) -> Step:
        # (H + P)^-1 = D (I + D H D)^-1 D with D = P^-1/2 stays defined for infinite weights
        scale = np.sqrt(ridge.variance)
        forces = scale * (residual + prior.local)
        schur = np.diag(ridge.weight.common)
        target = -residual.sum(axis=0) - prior.common
        factors, couplings = [], []
        for b, block in enumerate(self.blocks):
            weighted = self.columns[block] * np.sqrt(means[block])[:, None]
            hessian = weighted.T @ weighted
            inner = scale[b][:, None] * hessian * scale[b]
            inner[np.diag_indices_from(inner)] += 1.0
            factors.append(np.linalg.cholesky(inner))
            eliminated = np.column_stack([scale[b][:, None] * hessian, forces[b]])
            couplings.append(_solve_lower(factors[b], eliminated))
            coupling, force = couplings[b][:, :-1], couplings[b][:, -1]
            schur += hessian - coupling.T @ coupling
            target += force @ coupling
        common = _solve_free(schur, target, ridge.free_common)
        local = np.empty_like(residual)
        for b, (factor, coupling) in enumerate(zip(factors, couplings, strict=True)):
            pull = coupling[:, :-1] @ common + coupling[:, -1]
            local[b] = -scale[b] * _solve_lower(factor, pull, transposed=True)
        return Step(common, local)


def _solve_lower(factor: Floats, right: Floats, *, transposed: bool = False) -> Floats:
    return solve_triangular(factor, right, trans=int(transposed), lower=True, check_finite=False)


def _solve_free(matrix: Floats, right: Floats, free: Booleans) -> Floats:
    """Solve a positive definite system in which the unknowns that are not free are zero."""
    matrix = np.where(np.outer(free, free), matrix, np.eye(len(free)))
    _, solution, failed = lapack.dposv(matrix, np.where(free, right, 0.0), lower=1)
    if failed:
        message = "the Newton system is not positive definite"
        raise np.linalg.LinAlgError(message)
    return solution


class Optimum(NamedTuple):
    """Where the search ended."""

    coefficients: Step
    converged: bool
    iterations: int
    gradient_norm: float


def _moment_start(design: Cells, sums: Floats, ridge: Ridge, rate: float) -> Step:
    """Log ratios of observed to expected counts, by cluster and then within each batch."""
    common, local = np.zeros(sums.shape[1]), np.zeros_like(sums)
    common[0] = np.log(rate)
    _, expected = design.means(common + local)
    observed = sums.sum(axis=0)[1:]
    ratio = np.log((observed + 1.0) / (expected.sum(axis=0)[1:] + 1.0))
    common[1:] = np.where(ridge.free_common[1:], ratio, 0.0)
    _, expected = design.means(common + local)
    ratio = np.log((sums[:, 1:] + 1.0) / (expected[:, 1:] + 1.0))
    local[:, 1:] = np.where(ridge.free_local[:, 1:], ratio, 0.0)
    return Step(common, local)


def _minimise(
    design: Cells, sums: Floats, ridge: Ridge, rate: float, tolerance: float, limit: int
) -> Optimum:
    """Newton's method, halving a step until the objective does not increase."""

    def evaluate(common: Floats, local: Floats) -> tuple[float, Floats, Floats, Step]:
        prior = Step(ridge.weight.common * common, ridge.weight.local * local)
        means, moments = design.means(common + local)
        likelihood = moments[:, 0].sum() - np.vdot(sums, common + local)
        penalty = 0.5 * (np.vdot(prior.common, common) + np.vdot(prior.local, local))
        return float(likelihood + penalty), means, moments - sums, prior

    def largest_slope(residual: Floats, prior: Step) -> float:
        slopes = residual.sum(axis=0) + prior.common, residual + prior.local
        common = np.abs(slopes[0]).max(where=ridge.free_common, initial=0.0)
        return float(np.abs(slopes[1]).max(where=ridge.free_local, initial=common))

    current = _moment_start(design, sums, ridge, rate)
    objective, means, residual, prior = evaluate(*current)
    # a sum over counts carries this much rounding, which no further step removes
    noise = 4 * np.finfo(np.float64).eps * sums[:, 0].sum()
    slack = noise * max(1.0, abs(np.log(rate)))
    gradient_norm = largest_slope(residual, prior)
    converged, iterations = gradient_norm <= noise, 0
    while iterations < limit and not converged:
        try:
            step = design.newton_step(means, ridge, residual, prior)
        except np.linalg.LinAlgError:
            break
        for fraction in 0.5 ** np.arange(HALVINGS):
            trial = Step(*(c + fraction * s for c, s in zip(current, step, strict=True)))
            attempt = evaluate(*trial)
            if attempt[0] <= objective + slack:
                break
        else:
            break
        iterations += 1
        current, (objective, means, residual, prior) = trial, attempt
        gradient_norm = largest_slope(residual, prior)
        length = max(np.abs(change).max() for change in step)
        converged = bool(gradient_norm <= noise or length < tolerance)
    return Optimum(current, converged, iterations, gradient_norm)


def fit_gene(
    design: Cells, sums: Floats, depth: float, ridge: Ridge, tolerance: float, limit: int
) -> Optimum:
    """Fit one gene from ``X_b^T y``, (n_batches, n_clusters + 1), and the total depth."""
    total = sums[:, 0].sum()
    if total == 0.0:
        zero = Step(np.zeros(sums.shape[1]), np.zeros_like(sums))
        zero.common[0] = -np.inf
        return Optimum(zero, converged=True, iterations=0, gradient_norm=0.0)
    with np.errstate(over="ignore", invalid="ignore"):  # a step that overflows is halved
        return _minimise(design, sums, ridge, total / depth, tolerance, limit)
