"""Penalised Poisson regression of counts on clusters, batches and their interaction.

For one gene, with depth ``n_i``, batch ``b`` and cluster weights ``R_ik`` of row ``i``,

    log E[y_i] = log n_i + intercept + delta_b + sum_k R_ik (beta_k + gamma_bk)

minimises ``sum_i (mu_i - y_i log mu_i)`` plus a weighted ridge on ``beta``, ``delta`` and
``gamma``. Counts enter only through ``X^T y``, and given ``(intercept, beta)`` the batches are
independent, so Newton's method eliminates each ``(delta_b, gamma_b)`` and solves a system of
``n_clusters + 1`` unknowns. Every gene is solved on its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.linalg import lapack, solve_triangular
from scipy.special import logsumexp

Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]

HALVINGS = 60  # of a Newton step before the gene is given up
CONSTANT_COLUMN = 1e-7  # standard deviation below which a column is only rounding noise


@dataclass(frozen=True)
class Penalty:
    """Ridge weights: each coefficient ``c`` with weight ``p`` adds ``p c^2 / 2``.

    A weight of infinity removes the coefficient from the model. The intercept is free.

    Attributes
    ----------
    cluster : (n_clusters,) float64
    batch : (n_batches,) float64
    interaction : (n_batches, n_clusters) float64

    Raises
    ------
    ValueError
        If shapes disagree or a weight is not positive.
    """

    cluster: Floats
    batch: Floats
    interaction: Floats

    def __post_init__(self) -> None:
        if self.interaction.shape != self.batch.shape + self.cluster.shape:
            message = f"interaction must be (n_batches, n_clusters), got {self.interaction.shape}"
            raise ValueError(message)
        if not all(np.all(w > 0) for w in (self.cluster, self.batch, self.interaction)):
            message = "penalty weights must be positive"
            raise ValueError(message)

    @classmethod
    def random_effects(
        cls, n_clusters: int, n_batches: int, tau: float = 1.0, cluster: float = 0.01
    ) -> Penalty:
        """Normal prior of standard deviation ``tau`` on every batch coefficient, log scale.

        Examples
        --------
        >>> Penalty.random_effects(n_clusters=2, n_batches=3, tau=0.5).batch
        array([4., 4., 4.])
        """
        batch = np.full(n_batches, tau**-2.0)
        interaction = np.full((n_batches, n_clusters), tau**-2.0)
        return cls(np.full(n_clusters, cluster), batch, interaction)

    @classmethod
    def standardized(cls, weights: ArrayLike, batch: ArrayLike, n_batches: int) -> Penalty:
        """Ridge of glmnet at lambda 1: ``n_rows`` times the variance of each column.

        Parameters
        ----------
        weights : (n_rows, n_clusters) float
        batch : (n_rows,) int
        n_batches : int

        Notes
        -----
        glmnet averages the likelihood over rows and standardises columns (divisor
        ``n_rows``); columns without variance get no coefficient.
        """
        weights = np.asarray(weights, dtype=np.float64)
        member = np.asarray(batch)[:, None] == np.arange(n_batches)
        interaction = [np.where(column[:, None], weights, 0.0).std(axis=0) for column in member.T]
        scales = (weights.std(axis=0), member.std(axis=0), np.stack(interaction))
        return cls(*(np.where(s < CONSTANT_COLUMN, np.inf, len(weights) * s**2) for s in scales))

    def scaled(self, factor: float) -> Penalty:
        """Return the penalty with every weight multiplied by ``factor``."""
        return Penalty(self.cluster * factor, self.batch * factor, self.interaction * factor)


@dataclass(frozen=True)
class RidgeFit:
    """Optimal coefficients on the log scale, last axis genes.

    Attributes
    ----------
    intercept : (n_genes,) float64
        Minus infinity for a gene without counts, whose mean is then exactly zero.
    cluster : (n_clusters, n_genes) float64
    batch : (n_batches, n_genes) float64
    interaction : (n_batches, n_clusters, n_genes) float64
    converged : (n_genes,) bool
    iterations : (n_genes,) int64
        Newton steps taken.
    gradient_norm : (n_genes,) float64
        Largest absolute derivative of the objective at the returned coefficients.
    """

    intercept: Floats
    cluster: Floats
    batch: Floats
    interaction: Floats
    converged: Booleans
    iterations: NDArray[np.int64]
    gradient_norm: Floats

    @property
    def without_counts(self) -> Booleans:
        """Genes that had no count in the fitted rows, (n_genes,)."""
        return np.isneginf(self.intercept)

    @property
    def source_intercept(self) -> Floats:
        """Intercept of each batch, (n_batches, n_genes)."""
        return self.intercept + self.batch

    @property
    def source_coefficients(self) -> Floats:
        """Cluster coefficients of each batch, (n_batches, n_clusters, n_genes)."""
        return self.cluster + self.interaction


class _Step(NamedTuple):
    """Values for (intercept, beta), (n_clusters + 1,), and (delta_b, gamma_b) in rows."""

    common: Floats
    local: Floats


class _Ridge(NamedTuple):
    """Weights in that layout; ``free`` is False where a coefficient stays zero."""

    weight: _Step
    free_common: Booleans
    free_local: Booleans
    variance: Floats  # of (delta_b, gamma_b), zero where left out

    @classmethod
    def of(cls, penalty: Penalty, factor: float) -> _Ridge:
        common = factor * np.concatenate([[0.0], penalty.cluster])
        local = factor * np.column_stack([penalty.batch, penalty.interaction])
        free = np.isfinite(common), np.isfinite(local)
        weight = _Step(np.where(free[0], common, 0.0), np.where(free[1], local, 0.0))
        return cls(weight, *free, variance=1.0 / local)


class _Design(Protocol):
    def means(self, coefficients: Floats) -> tuple[Floats, Floats]:
        """Return the row means and ``X_b^T mu``, (n_batches, n_clusters + 1)."""

    def newton_step(self, means: Floats, ridge: _Ridge, residual: Floats, prior: _Step) -> _Step:
        """Solve the Newton system given ``X_b^T (mu - y)`` and the gradient of the ridge."""


class _Cells:
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

    def newton_step(self, means: Floats, ridge: _Ridge, residual: Floats, prior: _Step) -> _Step:
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
        return _Step(common, local)


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


class _Strata:
    """One row per (batch, label): Hessian blocks are diagonal, bordered by the intercept."""

    def __init__(self, depth: Floats) -> None:
        self.depth = depth

    def means(self, coefficients: Floats) -> tuple[Floats, Floats]:
        moments = np.empty_like(coefficients)
        moments[:, 1:] = self.depth * np.exp(coefficients[:, :1] + coefficients[:, 1:])
        moments[:, 0] = moments[:, 1:].sum(axis=1)
        return moments[:, 1:], moments

    def newton_step(self, means: Floats, ridge: _Ridge, residual: Floats, prior: _Step) -> _Step:
        # gamma, then beta have diagonal blocks; (intercept, delta_1, .., delta_B) remain
        variance = ridge.variance[:, 1:]
        damping = 1.0 / (1.0 + means * variance)
        force = residual[:, 1:] + prior.local[:, 1:]
        weight = means * damping
        label_force = residual[:, 1:] - weight * variance * force
        total = weight.sum(axis=0)
        curvature = np.where(ridge.free_common[1:], ridge.weight.common[1:] + total, np.inf)
        slope = -(label_force.sum(axis=0) + prior.common[1:]) / curvature

        # total * (1 - total / curvature) without cancellation
        remaining = np.where(ridge.free_common[1:], ridge.weight.common[1:] / curvature, 1.0)
        matrix = np.empty((len(means) + 1, len(means) + 1))
        matrix[0, 1:] = matrix[1:, 0] = weight @ remaining
        matrix[0, 0] = matrix[0, 1:].sum()
        matrix[1:, 1:] = -(weight / curvature) @ weight.T
        matrix[np.diag_indices_from(matrix)] += np.append(
            0.0, weight.sum(axis=1) + ridge.weight.local[:, 0]
        )
        pull = -label_force.sum(axis=1) - weight @ slope
        target = np.append(pull.sum(), pull - prior.local[:, 0])
        outer = _solve_free(matrix, target, np.append(True, ridge.free_local[:, 0]))
        batch = outer[0] + outer[1:]
        cluster = slope - batch @ weight / curvature
        local = np.empty_like(residual)
        local[:, 0] = outer[1:]
        local[:, 1:] = -variance * damping * (force + means * (batch[:, None] + cluster))
        return _Step(np.append(outer[0], cluster), local)


class _Optimum(NamedTuple):
    coefficients: _Step
    converged: bool
    iterations: int
    gradient_norm: float


def _moment_start(design: _Design, sums: Floats, ridge: _Ridge, rate: float) -> _Step:
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
    return _Step(common, local)


def _minimise(
    design: _Design, sums: Floats, ridge: _Ridge, rate: float, tolerance: float, limit: int
) -> _Optimum:
    """Newton's method, halving a step until the objective does not increase."""

    def evaluate(common: Floats, local: Floats) -> tuple[float, Floats, Floats, _Step]:
        prior = _Step(ridge.weight.common * common, ridge.weight.local * local)
        means, moments = design.means(common + local)
        likelihood = moments[:, 0].sum() - np.vdot(sums, common + local)
        penalty = 0.5 * (np.vdot(prior.common, common) + np.vdot(prior.local, local))
        return float(likelihood + penalty), means, moments - sums, prior

    def largest_slope(residual: Floats, prior: _Step) -> float:
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
            trial = _Step(*(c + fraction * s for c, s in zip(current, step, strict=True)))
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
    return _Optimum(current, converged, iterations, gradient_norm)


def _fit_gene(
    design: _Design, sums: Floats, depth: float, ridge: _Ridge, tolerance: float, limit: int
) -> _Optimum:
    total = sums[:, 0].sum()
    if total == 0.0:
        zero = _Step(np.zeros(sums.shape[1]), np.zeros_like(sums))
        zero.common[0] = -np.inf
        return _Optimum(zero, converged=True, iterations=0, gradient_norm=0.0)
    with np.errstate(over="ignore", invalid="ignore"):  # a step that overflows is halved
        return _minimise(design, sums, ridge, total / depth, tolerance, limit)


def _collect(optima: list[_Optimum], penalty: Penalty) -> RidgeFit:
    n_batches, n_clusters = penalty.interaction.shape
    common = np.reshape([o.coefficients.common for o in optima], (-1, n_clusters + 1)).T
    local = np.reshape([o.coefficients.local for o in optima], (-1, n_batches, n_clusters + 1))
    return RidgeFit(
        intercept=common[0],
        cluster=common[1:],
        batch=local[:, :, 0].T,
        interaction=np.moveaxis(local[:, :, 1:], 0, -1),
        converged=np.array([o.converged for o in optima], dtype=bool),
        iterations=np.array([o.iterations for o in optima], dtype=np.int64),
        gradient_norm=np.array([o.gradient_norm for o in optima], dtype=np.float64),
    )


def _require(condition: bool | np.bool_, message: str) -> None:
    if not condition:
        raise ValueError(message)


def fit(
    counts: Any,
    weights: ArrayLike,
    batch: ArrayLike,
    depth: ArrayLike,
    penalty: Penalty,
    penalty_scale: ArrayLike = 1.0,
    *,
    tolerance: float = 1e-10,
    max_iterations: int = 100,
) -> RidgeFit:
    """Fit every gene to cells with soft cluster weights.

    Parameters
    ----------
    counts : (n_cells, n_genes) array or scipy sparse
        Non-negative counts.
    weights : (n_cells, n_clusters) float
        Cluster membership of each cell, non-negative.
    batch : (n_cells,) int
        Codes ``0 .. n_batches - 1``.
    depth : (n_cells,) float
        Total counts (nUMI) of each cell, positive.
    penalty : Penalty
    penalty_scale : float or (n_genes,) float
        Multiplies the penalty of each gene: the path of glmnet is ``Penalty.standardized``
        scaled by lambda.
    tolerance : float
        Newton stops once no coefficient moves by more, or once the gradient is rounding.
    max_iterations : int

    Returns
    -------
    RidgeFit
        A gene that did not converge is marked so in ``converged``.

    Raises
    ------
    ValueError
        If shapes disagree, a batch code is out of range, or a value is out of its domain.

    Notes
    -----
    Each gene is solved separately: its result does not depend on the other columns. With
    ``Penalty.random_effects`` this is the posterior mode of a Poisson mixed model with
    normal batch effects; with ``Penalty.standardized`` the estimate of Crescendo (Millard
    et al., Genome Biology 2025, doi 10.1186/s13059-025-03479-9).

    Examples
    --------
    >>> counts = np.array([[4], [6], [8], [12]])
    >>> weights = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    >>> penalty = Penalty.random_effects(n_clusters=2, n_batches=2)
    >>> result = fit(counts, weights, [0, 0, 1, 1], [10.0, 10.0, 10.0, 10.0], penalty)
    >>> result.batch.round(2)
    array([[-0.22],
           [ 0.22]])
    """
    weights = np.asarray(weights, dtype=np.float64)
    batch = np.asarray(batch)
    depth = np.asarray(depth, dtype=np.float64)
    n_batches, n_clusters = penalty.interaction.shape
    n_cells = len(depth)
    by_gene = sparse.csc_array(counts, dtype=np.float64)
    _require(by_gene.shape[0] == n_cells, f"counts has {by_gene.shape[0]} rows, depth {n_cells}")
    _require(weights.shape == (n_cells, n_clusters), f"weights has shape {weights.shape}")
    _require(batch.shape == (n_cells,) and batch.dtype.kind in "iu", "batch must be int codes")
    _require(np.all((batch >= 0) & (batch < n_batches)), f"batch codes must be below {n_batches}")
    _require(np.all((depth > 0) & np.isfinite(depth)), "depth must be positive and finite")
    _require(np.all((weights >= 0) & np.isfinite(weights)), "weights must be non-negative, finite")
    stored = by_gene.data
    _require(np.all((stored >= 0) & np.isfinite(stored)), "counts must be non-negative, finite")

    design = _Cells(weights, batch, depth, n_batches)
    by_gene = by_gene[design.order]
    by_gene.sum_duplicates()
    n_genes = by_gene.shape[1]
    optima = []
    for gene, scale in enumerate(np.broadcast_to(np.asarray(penalty_scale), (n_genes,))):
        entries = slice(by_gene.indptr[gene], by_gene.indptr[gene + 1])
        sums = design.count_sums(by_gene.indices[entries], by_gene.data[entries])
        ridge = _Ridge.of(penalty, scale)
        optima.append(_fit_gene(design, sums, depth.sum(), ridge, tolerance, max_iterations))
    return _collect(optima, penalty)


def fit_strata(
    counts: ArrayLike,
    depth: ArrayLike,
    penalty: Penalty,
    penalty_scale: ArrayLike = 1.0,
    *,
    tolerance: float = 1e-10,
    max_iterations: int = 100,
) -> RidgeFit:
    """Fit every gene to cells with one label each, summed over (batch, label) strata.

    The sums are sufficient: coefficients equal those of ``fit`` on the single cells with
    one-hot weights.

    Parameters
    ----------
    counts : (n_batches, n_labels, n_genes) float
        Sums of counts.
    depth : (n_batches, n_labels) float
        Sums of cell depths; zero where a stratum has no cell.
    penalty : Penalty
    penalty_scale : float or (n_genes,) float
    tolerance : float
    max_iterations : int

    Returns
    -------
    RidgeFit

    Raises
    ------
    ValueError
        If shapes disagree, a value is negative or a stratum has counts but no depth.

    Examples
    --------
    >>> counts = np.array([[[4], [6]], [[8], [12]]])
    >>> depth = np.full((2, 2), 10.0)
    >>> fit_strata(counts, depth, Penalty.random_effects(n_clusters=2, n_batches=2)).iterations
    array([4])
    """
    counts = np.asarray(counts, dtype=np.float64)
    depth = np.asarray(depth, dtype=np.float64)
    _require(depth.shape == penalty.interaction.shape, f"depth has shape {depth.shape}")
    _require(counts.ndim == 3 and counts.shape[:2] == depth.shape, f"counts is {counts.shape}")
    _require(np.all((depth >= 0) & np.isfinite(depth)), "depth must be non-negative and finite")
    _require(np.all((counts >= 0) & np.isfinite(counts)), "counts must be non-negative, finite")
    _require(not counts[depth == 0].any(), "a stratum without depth has counts")

    design = _Strata(depth)
    n_genes = counts.shape[2]
    optima = []
    for gene, scale in enumerate(np.broadcast_to(np.asarray(penalty_scale), (n_genes,))):
        labelled = counts[:, :, gene]
        sums = np.column_stack([labelled.sum(axis=1), labelled])
        ridge = _Ridge.of(penalty, scale)
        optima.append(_fit_gene(design, sums, depth.sum(), ridge, tolerance, max_iterations))
    return _collect(optima, penalty)


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
    mass = np.asarray(mass, dtype=np.float64)
    _require(mass.shape == fit.interaction.shape[:2], f"mass has shape {mass.shape}")
    total = mass.sum(axis=0)
    share = np.divide(mass, total, out=np.full_like(mass, 1.0 / len(mass)), where=total > 0)
    return fit.intercept, fit.cluster + logsumexp(fit.interaction, axis=0, b=share[:, :, None])


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
