"""Newton's method for penalised Poisson regressions of many genes, by elimination of batches.

Given ``(intercept, beta)`` the batches are independent, so each ``(delta_b, gamma_b)`` is
eliminated and a system of ``n_clusters + 1`` unknowns is left. Genes are the first axis of every
array, NumPy or CuPy, and leave when they have converged.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from stdist.kernels.array_module import array_module

if TYPE_CHECKING:
    from stdist.kernels.poisson_ridge import Penalty

Array = Any  # of NumPy or CuPy
Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]

HALVINGS = 60  # of a Newton step before the gene is given up
PRODUCTS = 2**21  # of columns, formed at once on a device


class Ridges(NamedTuple):
    """Ridge of every gene; ``free`` is False where a coefficient stays zero.

    Attributes
    ----------
    common : (n_genes, n_clusters + 1) float64
        Weights of (intercept, beta).
    local : (n_genes, n_batches, n_clusters + 1) float64
        Weights of (delta_b, gamma_b).
    variance : (n_genes, n_batches, n_clusters + 1) float64
        Inverse of `local`, zero where left out.
    free_common : (n_clusters + 1,) bool
    free_local : (n_batches, n_clusters + 1) bool
    """

    common: Array
    local: Array
    variance: Array
    free_common: Array
    free_local: Array

    @classmethod
    def of(cls, penalty: Penalty, factors: Array) -> Ridges:
        """Scale a penalty by the factor of each gene, where the factors are."""
        xp = array_module(factors)
        common = np.concatenate([[0.0], penalty.cluster])
        local = np.column_stack([penalty.batch, penalty.interaction])
        free = np.isfinite(common), np.isfinite(local)
        weights = np.where(free[0], common, 0.0), np.where(free[1], local, 0.0)
        return cls(
            factors[:, None] * xp.asarray(weights[0]),
            factors[:, None, None] * xp.asarray(weights[1]),
            1.0 / (factors[:, None, None] * xp.asarray(local)),
            xp.asarray(free[0]),
            xp.asarray(free[1]),
        )

    def take(self, genes: Array) -> Ridges:
        """Return the ridges of some genes."""
        scaled = {name: getattr(self, name)[genes] for name in ("common", "local", "variance")}
        return self._replace(**scaled)


class Design(Protocol):
    """Rows of one form, cells or strata, that give means and solve the Newton systems."""

    depth: Array

    def means(self, coefficients: Array) -> tuple[Array, Array]:
        """Return the row means and ``X_b^T mu``, (n_genes, n_batches, n_clusters + 1)."""

    def newton_step(
        self, means: Array, ridges: Ridges, residual: Array, slope: tuple[Array, Array]
    ) -> tuple[Array, Array]:
        """Solve for the step given ``X_b^T (mu - y)`` and the gradient of the ridge."""


class Strata:
    """One row per (batch, label), (n_batches, n_labels) depths."""

    def __init__(self, depth: Array) -> None:
        self.depth = depth

    def means(self, coefficients: Array) -> tuple[Array, Array]:
        xp = array_module(coefficients)
        means = self.depth * xp.exp(coefficients[..., :1] + coefficients[..., 1:])
        return means, xp.concatenate([means.sum(axis=-1)[..., None], means], axis=-1)

    def newton_step(
        self, means: Array, ridges: Ridges, residual: Array, slope: tuple[Array, Array]
    ) -> tuple[Array, Array]:
        # gamma, then beta have diagonal blocks; (intercept, delta_1, .., delta_B) remain
        xp = array_module(means)
        variance, free = ridges.variance[..., 1:], ridges.free_common[1:]
        damping = 1.0 / (1.0 + means * variance)
        force = residual[..., 1:] + slope[1][..., 1:]
        weight = means * damping
        label_force = residual[..., 1:] - weight * variance * force
        ridge = ridges.common[:, 1:]
        curvature = xp.where(free, ridge + weight.sum(axis=1), np.inf)
        direct = -(label_force.sum(axis=1) + slope[0][:, 1:]) / curvature

        # total * (1 - total / curvature) without cancellation
        remaining = xp.where(free, ridge / curvature, 1.0)
        border = (weight * remaining[:, None]).sum(axis=-1)
        inner = -(weight / curvature[:, None]) @ weight.swapaxes(1, 2)
        inner += _diagonal(weight.sum(axis=-1) + ridges.local[..., 0])
        corner = border.sum(axis=-1)[:, None, None]
        top = xp.concatenate([corner, border[:, None]], axis=2)
        matrix = xp.concatenate([top, xp.concatenate([border[..., None], inner], axis=2)], axis=1)
        pull = -label_force.sum(axis=-1) - (weight * direct[:, None]).sum(axis=-1)
        target = xp.concatenate([pull.sum(axis=-1)[:, None], pull - slope[1][..., 0]], axis=1)
        free = xp.concatenate([xp.ones(1, bool), ridges.free_local[:, 0]])
        outer = _solve_free(matrix, target, free)
        batch = outer[:, :1] + outer[:, 1:]
        cluster = direct - (batch[..., None] * weight).sum(axis=1) / curvature
        shift = batch[..., None] + cluster[:, None]
        local = -variance * damping * (force + means * shift)
        return (
            xp.concatenate([outer[:, :1], cluster], axis=1),
            xp.concatenate([outer[:, 1:, None], local], axis=2),
        )


class Cells:
    """Rows with soft cluster weights, sorted so that a batch is one contiguous block.

    On the host, products are formed gene by gene: BLAS sums the columns of wider matrices in
    another order, and a gene must not depend on the others.

    Parameters
    ----------
    weights : (n_cells, n_clusters) float64
    batch : (n_cells,) int
    depth : (n_cells,) float64
    n_batches : int
    """

    def __init__(self, weights: Array, batch: Array, depth: Array, n_batches: int) -> None:
        xp = array_module(weights)
        self.order = xp.argsort(batch, kind="stable")
        self.depth = depth[self.order]
        self.columns = xp.concatenate([xp.ones((len(depth), 1)), weights[self.order]], axis=1)
        bounds = xp.searchsorted(batch[self.order], xp.arange(n_batches + 1))
        self.blocks = [slice(int(a), int(b)) for a, b in pairwise(bounds)]

    def count_sums(self, counts: Array) -> Array:
        """``X_b^T y`` of every gene, (n_genes, n_batches, n_clusters + 1).

        Parameters
        ----------
        counts : (n_cells, n_genes) scipy CSR, or array on a device
        """
        counts = counts[self.order]
        sums = [counts[block].T @ self.columns[block] for block in self.blocks]
        return array_module(self.columns).stack(sums, axis=1)

    def means(self, coefficients: Array) -> tuple[Array, Array]:
        xp = array_module(coefficients)
        means = xp.empty((len(coefficients), len(self.depth)))
        moments = xp.empty_like(coefficients)
        for b, block in enumerate(self.blocks):
            columns = self.columns[block]
            for genes in _together(coefficients):
                predictors = coefficients[genes, b] @ columns.T
                means[genes, block] = self.depth[block] * xp.exp(predictors)
                moments[genes, b] = means[genes, block] @ columns
        return means, moments

    def _hessian(self, means: Array, block: slice) -> Array:
        """``X_b^T diag(mu) X_b`` of every gene; on a device one product of products of columns."""
        xp = array_module(means)
        n = self.columns.shape[1]
        if xp is np:
            found = np.empty((len(means), n, n))
            for gene, root in enumerate(np.sqrt(means[:, block])):
                weighted = self.columns[block] * root[:, None]
                found[gene] = weighted.T @ weighted
            return found
        first, second = np.tril_indices(n)
        total = xp.zeros((len(means), len(first)))
        step = max(1, PRODUCTS // len(first))
        for start in range(block.start, block.stop, step):
            rows = slice(start, min(start + step, block.stop))
            columns = self.columns[rows]
            products = columns[:, xp.asarray(first)] * columns[:, xp.asarray(second)]
            total += means[:, rows] @ products
        place = np.empty((n, n), dtype=np.int64)
        place[first, second] = place[second, first] = np.arange(len(first))
        return total[:, xp.asarray(place.ravel())].reshape(-1, n, n)

    def newton_step(
        self, means: Array, ridges: Ridges, residual: Array, slope: tuple[Array, Array]
    ) -> tuple[Array, Array]:
        # (H + P)^-1 = D (I + D H D)^-1 D with D = P^-1/2 stays defined for infinite weights
        xp = array_module(means)
        scale = xp.sqrt(ridges.variance)
        forces = scale * (residual + slope[1])
        schur = _diagonal(ridges.common)
        target = -residual.sum(axis=1) - slope[0]
        solved = []
        for b, block in enumerate(self.blocks):
            own = scale[:, b]
            hessian = self._hessian(means, block)
            scaled = own[..., None] * hessian
            inner = scaled * own[:, None] + xp.eye(hessian.shape[-1])
            right = xp.concatenate([scaled, forces[:, b, :, None]], axis=2)
            solved.append(_solve(inner, right))
            effect = scaled.swapaxes(1, 2) @ solved[b]
            schur += hessian - effect[..., :-1]
            target += effect[..., -1]
        common = _solve_free(schur, target, ridges.free_common)
        pulls = [(s[..., :-1] @ common[..., None])[..., 0] + s[..., -1] for s in solved]
        return common, -scale * xp.stack(pulls, axis=1)


def _together(values: Array) -> list[slice]:
    """Return the genes, first axis of values, that one product is formed for."""
    if array_module(values) is not np:
        return [slice(None)]
    return [slice(gene, gene + 1) for gene in range(len(values))]


def _diagonal(values: Array) -> Array:
    """Stack of diagonal matrices."""
    return values[..., None] * array_module(values).eye(values.shape[-1])


def _solve_free(matrix: Array, right: Array, free: Array) -> Array:
    """Solve systems in which the unknowns that are not free are zero."""
    xp = array_module(matrix)
    matrix = xp.where(free[:, None] & free, matrix, xp.eye(len(free)))
    return _solve(matrix, xp.where(free, right, 0.0)[..., None])[..., 0]


def _solve(matrix: Array, right: Array) -> Array:
    """Solve a stack of systems; not finite for those that are singular."""
    xp = array_module(matrix)
    try:
        return xp.linalg.solve(matrix, right)
    except np.linalg.LinAlgError:  # NumPy's, for the whole stack
        if len(matrix) == 1:
            return xp.full_like(right, np.nan)
        half = len(matrix) // 2
        halves = _solve(matrix[:half], right[:half]), _solve(matrix[half:], right[half:])
        return xp.concatenate(halves)


class Optima(NamedTuple):
    """Where the searches ended.

    Attributes
    ----------
    common : (n_genes, n_clusters + 1) float64
        Minus infinity for the intercept of a gene without counts.
    local : (n_genes, n_batches, n_clusters + 1) float64
    converged : (n_genes,) bool
    iterations : (n_genes,) int64
    gradient_norm : (n_genes,) float64
    """

    common: Array
    local: Array
    converged: Array
    iterations: Array
    gradient_norm: Array


class _Points(NamedTuple):
    """Points of some genes, and what the next step needs there."""

    common: Array
    local: Array
    objective: Array
    means: Array
    residual: Array
    slope_common: Array  # gradient of the ridge
    slope_local: Array

    @property
    def slope(self) -> tuple[Array, Array]:
        return self.slope_common, self.slope_local

    def take(self, genes: Array) -> _Points:
        return _Points(*(part[genes] for part in self))

    def put(self, genes: Array, other: _Points) -> None:
        for part, new in zip(self, other, strict=True):
            part[genes] = new


def _evaluate(design: Design, sums: Array, ridges: Ridges, common: Array, local: Array) -> _Points:
    slope = ridges.common * common, ridges.local * local
    coefficients = common[:, None] + local
    means, moments = design.means(coefficients)
    objective = moments[..., 0].sum(axis=1) - (sums * coefficients).sum(axis=(1, 2))
    objective += 0.5 * (slope[0] * common).sum(axis=1) + 0.5 * (slope[1] * local).sum(axis=(1, 2))
    return _Points(common, local, objective, means, moments - sums, *slope)


def _largest_slope(points: _Points, ridges: Ridges) -> Array:
    xp = array_module(points.common)
    common = xp.abs(points.residual.sum(axis=1) + points.slope_common) * ridges.free_common
    local = xp.abs(points.residual + points.slope_local) * ridges.free_local
    return xp.maximum(common.max(axis=1), local.max(axis=(1, 2)))


def _start(design: Design, sums: Array, ridges: Ridges, rate: Array) -> tuple[Array, Array]:
    """Log ratios of observed to expected counts, by cluster and then within each batch."""
    xp = array_module(sums)
    common, local = xp.zeros((len(sums), sums.shape[2])), xp.zeros_like(sums)
    common[:, 0] = xp.log(rate)
    expected = design.means(common[:, None] + local)[1].sum(axis=1)
    ratio = xp.log((sums.sum(axis=1) + 1.0) / (expected + 1.0))
    common[:, 1:] = xp.where(ridges.free_common, ratio, 0.0)[:, 1:]
    expected = design.means(common[:, None] + local)[1]
    ratio = xp.log((sums + 1.0) / (expected + 1.0))
    local[..., 1:] = xp.where(ridges.free_local, ratio, 0.0)[..., 1:]
    return common, local


def _search(
    design: Design,
    sums: Array,
    ridges: Ridges,
    now: _Points,
    step: tuple[Array, Array],
    slack: Array,
) -> tuple[_Points, Array]:
    """Halve the steps until no objective increases; the points and which genes found one."""
    xp = array_module(sums)
    found = xp.zeros(len(sums), bool)
    best = _Points(*(part.copy() for part in now))
    waiting = xp.arange(len(sums))
    for halving in range(HALVINGS):
        fraction = 0.5**halving
        trial = _evaluate(
            design,
            sums[waiting],
            ridges.take(waiting),
            now.common[waiting] + fraction * step[0][waiting],
            now.local[waiting] + fraction * step[1][waiting],
        )
        good = trial.objective <= now.objective[waiting] + slack[waiting]
        best.put(waiting[good], trial.take(good))
        found[waiting[good]] = True
        waiting = waiting[~good]
        if not len(waiting):
            break
    return best, found


def fit_genes(design: Design, sums: Array, ridges: Ridges, tolerance: float, limit: int) -> Optima:
    """Fit genes from ``X_b^T y``, halving a step until the objective does not increase.

    Parameters
    ----------
    design : Strata or Cells
    sums : (n_genes, n_batches, n_clusters + 1) float64
        Counts of each batch, then their sums over cells times weights.
    ridges : Ridges
    tolerance : float
        A gene has converged once no coefficient moves by more, or its gradient is rounding.
    limit : int
        Largest number of steps.

    Returns
    -------
    Optima
        Arrays of the library that holds `sums`.
    """
    xp = array_module(sums)
    total = sums[..., 0].sum(axis=1)
    counted = total > 0
    optima = Optima(
        xp.zeros((len(sums), sums.shape[2])),
        xp.zeros_like(sums),
        ~counted,
        xp.zeros(len(sums), np.int64),
        xp.zeros(len(sums)),
    )
    optima.common[:, 0] = xp.where(counted, 0.0, -np.inf)
    genes = xp.flatnonzero(counted)
    if not len(genes):
        return optima
    with np.errstate(over="ignore", invalid="ignore"):  # a step that overflows is halved
        _minimise(design, sums, ridges, genes, optima, tolerance, limit)
    return optima


def _minimise(
    design: Design,
    sums: Array,
    ridges: Ridges,
    genes: Array,
    optima: Optima,
    tolerance: float,
    limit: int,
) -> None:
    """Move `genes` to their optima; those that are done leave."""
    xp = array_module(sums)
    sums, ridges = sums[genes], ridges.take(genes)
    rate = sums[..., 0].sum(axis=1) / design.depth.sum()
    # a sum over counts carries this much rounding, which no further step removes
    noise = 4 * np.finfo(np.float64).eps * sums[..., 0].sum(axis=1)
    slack = noise * xp.maximum(1.0, xp.abs(xp.log(rate)))
    now = _evaluate(design, sums, ridges, *_start(design, sums, ridges, rate))
    norm = _largest_slope(now, ridges)
    converged, stuck = norm <= noise, xp.zeros(len(genes), bool)
    for iteration in range(limit + 1):
        optima.common[genes], optima.local[genes] = now.common, now.local
        optima.converged[genes], optima.gradient_norm[genes] = converged, norm
        left = xp.flatnonzero(~(converged | stuck))
        if not len(left) or iteration == limit:
            return
        genes, sums, ridges, now = genes[left], sums[left], ridges.take(left), now.take(left)
        noise, slack = noise[left], slack[left]
        step = design.newton_step(now.means, ridges, now.residual, now.slope)
        after, found = _search(design, sums, ridges, now, step, slack)
        moved = xp.maximum(xp.abs(step[0]).max(axis=1), xp.abs(step[1]).max(axis=(1, 2)))
        optima.iterations[genes] += found
        now, norm, stuck = after, _largest_slope(after, ridges), ~found
        converged = found & ((norm <= noise) | (moved < tolerance))
