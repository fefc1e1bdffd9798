"""What Crescendo's genes are fitted to: sampled cells, or sums of labelled cells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from scipy import sparse

from stdist.kernels.array_module import host_array
from stdist.kernels.lambda_path import FitSums
from stdist.kernels.poisson_ridge import Penalty, RidgeFit, fit, fit_strata
from stdist.methods.crescendo.design import columns
from stdist.methods.crescendo.spec import CrescendoSpec
from stdist.methods.crescendo.tiles import saturated

Arrays = dict[str, Any]


@dataclass(frozen=True)
class Rows:
    """What a panel of genes is fitted to: cells, or sums of cells that share their columns.

    Attributes
    ----------
    counts : (n_rows, n_genes) sparse or array
    weights : (n_rows, n_columns) array
        Clusters first, then what is kept.
    batch, depth : (n_rows,) array
    mass : (n_batches, n_clusters) array
        Mass of each cluster in each batch, over all cells.
    saturated : callable
        Gives the sums over cells to which deviances are measured, ``(n_genes,)``.
    cells : (n_rows,) array or None
        Cells of each row; one each if not given.
    strata : tuple or None
        Counts and depths by batch and label, where the rows are these strata and nothing else.
    sampling_weight : (n_rows,) array, or 1
        Cells of the data for which each sampled one stands.
    xp : module
        Library that solves for coefficients of cells: NumPy, or CuPy for its device.
    """

    counts: Any
    weights: np.ndarray
    batch: np.ndarray
    depth: np.ndarray
    mass: np.ndarray
    saturated: Callable[[], np.ndarray]
    cells: np.ndarray | None = None
    strata: tuple[np.ndarray, np.ndarray] | None = None
    sampling_weight: np.ndarray | float = 1.0
    xp: Any = np

    def of_batches(self, chosen: np.ndarray) -> Rows:
        """Rows of some batches, `chosen` by mask; the others have no mass."""
        if chosen.all():
            return self
        own, depth = chosen[self.batch], chosen[:, None]
        return replace(
            self,
            counts=self.counts[own],
            weights=self.weights[own],
            batch=self.batch[own],
            depth=self.depth[own],
            sampling_weight=np.broadcast_to(self.sampling_weight, own.shape)[own],
            mass=self.mass * chosen[:, None],
            cells=None if self.cells is None else self.cells[own],
            strata=None if self.strata is None else (self.strata[0], self.strata[1] * depth),
        )

    @property
    def n_batches(self) -> int:
        """Number of batches."""
        return len(self.mass)

    @property
    def n_clusters(self) -> int:
        """Number of clusters."""
        return self.mass.shape[1]

    @property
    def n_cells(self) -> int:
        """Number of fitted cells."""
        return len(self.depth) if self.cells is None else int(self.cells.sum())

    def fit(self, penalty: Penalty, scale: Any = 1.0, genes: Any = slice(None)) -> RidgeFit:
        """Fit some genes."""
        if self.strata is not None:
            counts, depth = self.strata
            return fit_strata(counts[:, :, genes], depth, penalty, scale)
        counts = self.counts[:, genes]
        return fit(counts, self.weights, self.batch, self.depth, penalty, scale, xp=self.xp)

    def random_effects(self, prior_sd: float, cluster_penalty: float) -> Penalty:
        """Penalty of the normal prior; kept columns are penalised as clusters are."""
        n_columns = self.weights.shape[1]
        penalty = Penalty.random_effects(n_columns, self.n_batches, prior_sd, cluster_penalty)
        return self._keeping(penalty)

    def standardized(self) -> Penalty:
        """Penalty of glmnet at lambda 1."""
        return self._keeping(
            Penalty.standardized(self.weights, self.batch, self.n_batches, self.cells)
        )

    def _keeping(self, penalty: Penalty) -> Penalty:
        if self.n_clusters == self.weights.shape[1]:
            return penalty
        return penalty.without_interactions(self.n_clusters)

    @cached_property
    def sums(self) -> FitSums:
        """Sums that decide lambda and deviance."""
        counts, depth = [], []
        for b in range(self.n_batches):
            own = np.flatnonzero(self.batch == b)
            design = np.column_stack([np.ones(len(own)), self.weights[own]])
            counts.append(np.asarray(self.counts[own].T @ design).T)
            depth.append(self.depth[own] @ design)
        return FitSums(self.n_cells, np.stack(counts), np.stack(depth))


def on_host(values: Arrays) -> Arrays:
    """Arrays in host memory."""
    return {name: host_array(value) for name, value in values.items()}


def rows_of_sample(
    sample: Arrays, groups: Arrays, chosen: np.ndarray, spec: CrescendoSpec, xp: Any = np
) -> Rows:
    """Sampled cells with the counts of some genes."""
    shape = (len(sample["depth"]), len(groups["largest_rate"]))
    arrays = (sample["data"], sample["indices"], sample["indptr"])
    counts = sparse.csc_matrix(arrays, shape=shape)[:, chosen]
    stratum = sample["batch"].astype(np.int64) * groups["cells"].shape[1] + sample["cluster"]
    sampled = np.bincount(stratum, minlength=groups["cells"].size)
    return Rows(
        counts,
        columns(sample["weights"], sample.get("kept"), spec.keep_interactions),
        sample["batch"],
        sample["depth"],
        groups["mass"],
        saturated=lambda: saturated(counts, sample["depth"]),
        sampling_weight=(groups["cells"].ravel() / np.maximum(sampled, 1))[stratum],
        xp=xp,
    )


def rows_of_strata(
    strata: Arrays, chosen: np.ndarray, weights: np.ndarray, levels: np.ndarray | None
) -> Rows:
    """Strata with the counts of some genes, each a row with the columns of its label."""
    counts, depth = strata["counts"][:, :, chosen], strata["depth"]
    n_batches, n_rows = depth.shape
    n_labels = n_rows if levels is None else n_rows // len(levels)
    present = depth.ravel() > 0
    return Rows(
        counts.reshape(-1, len(chosen))[present],
        np.tile(weights, (n_batches, 1))[present],
        np.repeat(np.arange(n_batches), n_rows)[present],
        depth.ravel()[present],
        strata["fitted"].reshape(n_batches, n_labels, -1).sum(axis=2),
        saturated=lambda: strata["saturated"][chosen],
        cells=strata["fitted"].ravel()[present],
        strata=(counts, depth) if levels is None else None,
    )


def stratum_columns(n_rows: int, levels: np.ndarray | None, interactions: bool) -> np.ndarray:
    """Design columns of every combination of a label and kept levels, labels slowest."""
    if levels is None:
        return np.eye(n_rows)
    n_labels = n_rows // len(levels)
    labels = np.repeat(np.eye(n_labels), len(levels), axis=0)
    return columns(labels, np.tile(levels, (n_labels, 1)), interactions)
