"""Penalised Poisson regression on all cells, in passes that need no counts and one sample.

Counts enter only through ``X^T y``, summed once. A pass gives ``X^T mu`` and with it the gradient
from all cells; the Hessian is that of a stratified sample whose cells are weighted to have the
same ``X^T mu``, and Anderson's mixing of the last steps makes up for its error. The optimum is
that of all cells, not of the sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stdist.kernels.array_module import array_module
from stdist.kernels.poisson_newton import Cells, Floats, Ridges
from stdist.kernels.poisson_ridge import RidgeFit

HISTORY = 3  # points mixed: two differences
LOCAL_STEP = 0.3  # on the log scale: longer steps are far from linear and are not mixed
LARGEST_PREDICTOR = 500.0  # exp stays finite; such a trial is refused by its objective
GENES = 32  # of one product: in matrices of another width BLAS sums in another order
SMALLEST_PREDICTOR = -1e4  # exp is zero, and zero times it too: not so of minus infinity


def pass_moments(weights: Any, batch: Any, depth: Any, coefficients: Any) -> Any:
    """Sums of fitted means over the cells of a tile, ``X_b^T mu``; NumPy or CuPy.

    Parameters
    ----------
    weights : (n_cells, n_clusters) float
    batch : (n_cells,) int
    depth : (n_cells,) float64
        Zero for cells that take no part.
    coefficients : (n_batches + 1, n_clusters + 1, n_genes) float64
        Common (intercept, beta), then (delta_b, gamma_b) of every batch.

    Returns
    -------
    (n_batches, n_clusters + 1, n_genes) float64
        In host memory the sums of a gene do not depend on the others, to the last bit.
    """
    xp = array_module(weights)
    columns = xp.column_stack([xp.ones(len(batch)), weights])
    shape = (len(coefficients) - 1, *coefficients.shape[1:])
    if xp is not np:
        # one product for all batches: a device waits longer for launches than for zeros
        member = batch[:, None] == xp.arange(shape[0])
        design = (member[:, :, None] * columns[:, None, :]).reshape(len(batch), -1)
        own = xp.maximum(coefficients[0] + coefficients[1:], SMALLEST_PREDICTOR)
        means = design @ own.reshape(-1, shape[2])
        means = depth[:, None] * xp.exp(xp.minimum(means, LARGEST_PREDICTOR))
        return (design.T @ means).reshape(shape)
    n_genes = shape[2]
    moments = np.zeros(shape)
    predictors = np.zeros((shape[1], -(-n_genes // GENES) * GENES))
    for b in np.unique(batch):
        rows = np.flatnonzero(batch == b)
        own, own_depth = columns[rows], depth[rows, None]
        np.add(coefficients[0], coefficients[b + 1], out=predictors[:, :n_genes])
        for first in range(0, n_genes, GENES):
            means = own @ predictors[:, first : first + GENES]
            np.minimum(means, LARGEST_PREDICTOR, out=means)
            np.exp(means, out=means)
            means *= own_depth
            panel = moments[b, :, first : first + GENES]
            panel[:] = (own.T @ means)[:, : panel.shape[1]]
    return moments


class Sample(Cells):
    """Sampled cells that stand for all in the Hessian.

    The first `n_clusters` columns are clusters, whose weights sum to one in every cell.
    """

    def __init__(
        self,
        weights: Floats,
        batch: NDArray[Any],
        depth: Floats,
        n_batches: int,
        n_clusters: int,
    ) -> None:
        super().__init__(weights, batch, depth, n_batches)
        self.clusters = slice(1, n_clusters + 1)

    def step(
        self, point: Floats, moments: Floats, ridge: Ridges, residual: Floats, slope: Floats
    ) -> Floats:
        """Newton step of one gene at a point; `moments` and `residual` are those of all cells."""
        means, (own,) = self.means((point[0] + point[1:])[None])
        ratio = np.divide(moments, own, out=np.zeros_like(own), where=own > 0)
        for block, of_batch in zip(self.blocks, ratio, strict=True):
            means[0, block] *= self.columns[block, self.clusters] @ of_batch[self.clusters]
        slopes = slope[None, 0], slope[None, 1:]
        common, local = self.newton_step(means, ridge, residual[None], slopes)
        return np.concatenate([common, local[0]])


@dataclass(frozen=True)
class Passes:
    """Where the fit of a panel of genes stands.

    Attributes
    ----------
    coefficients : (n_batches + 1, n_clusters + 1, n_genes) float64
        Point at which the next pass takes the gradient; the result once converged.
    points, steps : (HISTORY, n_batches + 1, n_clusters + 1, n_genes) float64
        Accepted points and their Newton steps, newest first.
    kept : (n_genes,) int64
        Valid entries of `points`.
    objective : (n_genes,) float64
        At the newest accepted point; infinite before the first.
    converged : (n_genes,) bool
    """

    coefficients: Floats
    points: Floats
    steps: Floats
    kept: NDArray[np.int64]
    objective: Floats
    converged: NDArray[np.bool_]

    @classmethod
    def begin(cls, start: RidgeFit, rate: Floats) -> Passes:
        """Start from the fit to the sample, or from counts over depth where it had no count."""
        with np.errstate(divide="ignore"):
            intercept = np.where(start.without_counts, np.log(rate), start.intercept)
        common = np.concatenate([intercept[None], start.cluster])[None]
        local = np.concatenate([start.batch[:, None], start.interaction], axis=1)
        point = np.concatenate([common, local])
        n_genes = point.shape[-1]
        empty = np.zeros((HISTORY, *point.shape))
        return cls(
            point,
            empty,
            empty.copy(),
            np.zeros(n_genes, np.int64),
            np.full(n_genes, np.inf),
            np.isneginf(intercept),
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Plain arrays by name, last axis genes."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]]) -> Passes:
        """Take them back from `arrays`."""
        return cls(**{field.name: np.array(arrays[field.name]) for field in fields(cls)})


def advance(
    passes: Passes,
    moments: Floats,
    sums: Floats,
    sample: Sample,
    ridges: Ridges,
    *,
    tolerance: float = 1e-6,
) -> Passes:
    """Use the sums of a pass: move every gene that has not converged.

    Parameters
    ----------
    passes : Passes
    moments : (n_batches, n_clusters + 1, n_genes) float64
        Sums over all cells of :func:`pass_moments` at ``passes.coefficients``.
    sums : (n_batches, n_clusters + 1, n_genes) float64
        ``X_b^T y`` over all cells.
    sample : Sample
    ridges : Ridges
    tolerance : float
        A gene has converged once no coefficient would move by more.

    Returns
    -------
    Passes

    Notes
    -----
    A point whose objective rose is refused: the step before is taken without mixing, then halved.
    """
    now = Passes.of(passes.arrays())
    for gene in np.flatnonzero(~passes.converged):
        _advance_gene(now, int(gene), moments, sums, sample, ridges.take([gene]), tolerance)
    return now


def _advance_gene(
    now: Passes,
    gene: int,
    moments: Floats,
    sums: Floats,
    sample: Sample,
    ridge: Ridges,
    tolerance: float,
) -> None:
    point, observed = now.coefficients[:, :, gene].copy(), sums[:, :, gene]
    fitted = moments[:, :, gene]
    slope = np.concatenate([ridge.common, ridge.local[0]]) * point
    objective = fitted[:, 0].sum() - np.vdot(observed, point[0] + point[1:])
    objective += 0.5 * np.vdot(slope, point)
    noise = 1e-12 * observed[:, 0].sum() * max(1.0, abs(point[0, 0]))
    points, steps = now.points[..., gene], now.steps[..., gene]
    if not objective <= now.objective[gene] + noise:
        mixed = now.kept[gene] > 1
        now.kept[gene] = 1
        now.coefficients[:, :, gene] = points[0] + steps[0] if mixed else (points[0] + point) / 2
        return
    step = sample.step(point, fitted, ridge, fitted - observed, slope)
    length = np.abs(step).max()
    if now.kept[gene] and np.abs(steps[0]).max() > LOCAL_STEP:
        now.kept[gene] = 0
    points[1:], steps[1:] = points[:-1].copy(), steps[:-1].copy()
    points[0], steps[0] = point, step
    kept = min(HISTORY, int(now.kept[gene]) + 1)
    now.kept[gene], now.objective[gene] = kept, objective
    now.converged[gene] = bool(length < tolerance)
    now.coefficients[:, :, gene] = _mixed(points[:kept], steps[:kept])


def _mixed(points: Floats, steps: Floats) -> Floats:
    """Anderson's mixing (type II) of the last points, newest first."""
    if len(points) == 1:
        return np.asarray(points[0] + steps[0])
    moved = (points[0] - points[1:]).reshape(len(points) - 1, -1)
    turned = (steps[0] - steps[1:]).reshape(len(points) - 1, -1)
    share, *_ = np.linalg.lstsq(turned.T, steps[0].ravel(), rcond=None)
    target = (points[0] + steps[0]).ravel() - share @ (moved + turned)
    return target.reshape(points[0].shape)
