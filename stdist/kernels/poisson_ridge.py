"""Penalised Poisson regression of counts on clusters, batches and their interaction.

For one gene, with depth ``n_i``, batch ``b`` and cluster weights ``R_ik`` of row ``i``,

    log E[y_i] = log n_i + intercept + delta_b + sum_k R_ik (beta_k + gamma_bk)

minimises ``sum_i (mu_i - y_i log mu_i)`` plus a weighted ridge on ``beta``, ``delta`` and
``gamma``. Counts enter only through ``X^T y``. The result of a gene does not depend on the others
(:mod:`stdist.kernels.poisson_newton`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from stdist.kernels.array_module import host_array
from stdist.kernels.poisson_newton import (
    Booleans,
    Cells,
    Floats,
    Optima,
    Ridges,
    Strata,
    fit_genes,
)

PANEL = 8  # genes solved at once: their means, and no more, are held for all rows
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
    def standardized(
        cls, weights: ArrayLike, batch: ArrayLike, n_batches: int, cells: ArrayLike | None = None
    ) -> Penalty:
        """Ridge of glmnet at lambda 1: the number of cells times the variance of each column.

        Parameters
        ----------
        weights : (n_rows, n_clusters) float
        batch : (n_rows,) int
        n_batches : int
        cells : (n_rows,) int, optional
            Number of cells that each row stands for; one if not given.

        Notes
        -----
        glmnet averages the likelihood over cells and standardises columns (divisor: the number
        of cells); columns without variance get no coefficient.
        """
        weights = np.asarray(weights, dtype=np.float64)
        member = (np.asarray(batch)[:, None] == np.arange(n_batches)).astype(np.float64)
        times = np.ones(len(weights)) if cells is None else np.asarray(cells, dtype=np.float64)
        n_cells = times.sum()

        def weight(columns: Floats) -> Floats:
            variance = times @ (columns - times @ columns / n_cells) ** 2 / n_cells
            return np.where(variance < CONSTANT_COLUMN**2, np.inf, n_cells * variance)

        interaction = [weight(column[:, None] * weights) for column in member.T]
        return cls(weight(weights), weight(member), np.stack(interaction))

    def without_interactions(self, first: int) -> Penalty:
        """Return the penalty under which columns from `first` on have no effect per batch."""
        left_out = np.arange(len(self.cluster)) >= first
        return replace(self, interaction=np.where(left_out, np.inf, self.interaction))

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


def _collect(optima: list[Optima]) -> RidgeFit:
    common, local, converged, iterations, norm = (
        np.concatenate([host_array(part) for part in parts]) for parts in zip(*optima, strict=True)
    )
    return RidgeFit(
        intercept=common[:, 0],
        cluster=common[:, 1:].T,
        batch=local[:, :, 0].T,
        interaction=np.moveaxis(local[:, :, 1:], 0, -1),
        converged=converged,
        iterations=iterations,
        gradient_norm=norm,
    )


def require(condition: bool | np.bool_, message: str) -> None:
    """Raise ValueError unless a condition holds."""
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
    xp: Any = np,
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
    xp : module
        Library that solves: NumPy, or CuPy for its device. Arguments and results are on the host.

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
    require(by_gene.shape[0] == n_cells, f"counts has {by_gene.shape[0]} rows, depth {n_cells}")
    require(weights.shape == (n_cells, n_clusters), f"weights has shape {weights.shape}")
    require(batch.shape == (n_cells,) and batch.dtype.kind in "iu", "batch must be int codes")
    require(np.all((batch >= 0) & (batch < n_batches)), f"batch codes must be below {n_batches}")
    require(np.all((depth > 0) & np.isfinite(depth)), "depth must be positive and finite")
    require(np.all((weights >= 0) & np.isfinite(weights)), "weights must be non-negative, finite")
    stored = by_gene.data
    require(np.all((stored >= 0) & np.isfinite(stored)), "counts must be non-negative, finite")

    scales = _scales(penalty_scale, by_gene.shape[1])
    design = Cells(xp.asarray(weights), xp.asarray(batch), xp.asarray(depth), n_batches)
    if xp is np:
        observed, step = by_gene.tocsr(), PANEL
    else:
        observed, step = xp.asarray(by_gene.toarray()), max(1, len(scales))
    sums, ridges = design.count_sums(observed), Ridges.of(penalty, xp.asarray(scales))
    panels = [slice(first, first + step) for first in range(0, max(1, len(scales)), step)]
    return _collect(
        [fit_genes(design, sums[p], ridges.take(p), tolerance, max_iterations) for p in panels]
    )


def _scales(penalty_scale: ArrayLike, n_genes: int) -> Floats:
    return np.broadcast_to(np.asarray(penalty_scale, dtype=np.float64), (n_genes,))


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
    require(depth.shape == penalty.interaction.shape, f"depth has shape {depth.shape}")
    require(counts.ndim == 3 and counts.shape[:2] == depth.shape, f"counts is {counts.shape}")
    require(np.all((depth >= 0) & np.isfinite(depth)), "depth must be non-negative and finite")
    require(np.all((counts >= 0) & np.isfinite(counts)), "counts must be non-negative, finite")
    require(not counts[depth == 0].any(), "a stratum without depth has counts")

    by_gene = np.moveaxis(counts, 2, 0)
    sums = np.concatenate([by_gene.sum(axis=2, keepdims=True), by_gene], axis=2)
    ridges = Ridges.of(penalty, _scales(penalty_scale, len(sums)))
    return _collect([fit_genes(Strata(depth), sums, ridges, tolerance, max_iterations)])
