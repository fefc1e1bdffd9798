"""Crescendo's fit of a panel of genes, from sampled cells or from sums of labelled cells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from scipy import sparse

from stdist.kernels.lambda_path import FitSums, exact_lambda, fit_reference
from stdist.kernels.poisson_ridge import Penalty, RidgeFit, fit, fit_strata
from stdist.methods.crescendo.design import columns, spread
from stdist.methods.crescendo.margin import dispersion_of_cells, dispersion_of_strata
from stdist.methods.crescendo.marginal import absent_genes, solution
from stdist.methods.crescendo.spec import CrescendoSpec
from stdist.methods.crescendo.tiles import saturated

Arrays = dict[str, Any]
PANEL = 8
"""Genes of one fitting task."""


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
    """

    counts: Any
    weights: np.ndarray
    batch: np.ndarray
    depth: np.ndarray
    mass: np.ndarray
    saturated: Callable[[], np.ndarray]
    cells: np.ndarray | None = None
    strata: tuple[np.ndarray, np.ndarray] | None = None

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
        return fit(self.counts[:, genes], self.weights, self.batch, self.depth, penalty, scale)

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


def estimate(
    rows: Rows, spec: CrescendoSpec, dispersion: np.ndarray
) -> tuple[RidgeFit, np.ndarray | None]:
    """Fit with the penalty that the parameters ask for; also lambda per gene, where there is one.

    Without `lam` and `lam_rule`, the prior on the original scale; else the standardised ridge of
    glmnet, its lambda a number, proportional to the mean count, or the released rule. The prior
    weighs more in genes whose counts scatter more than Poisson (`dispersion`, ``(n_genes,)``).
    """
    if spec.lam is None and spec.lam_rule is None:
        penalty = rows.random_effects(spec.prior_sd, spec.cluster_penalty)
        return rows.fit(penalty, dispersion), None
    penalty = rows.standardized()
    if spec.lam_rule == "reference":

        def fit_at(genes: np.ndarray, lam: np.ndarray) -> RidgeFit:
            return rows.fit(penalty, lam, genes)

        return fit_reference(fit_at, rows.sums, rows.saturated(), penalty)
    if spec.lam_rule == "exact":
        lam = exact_lambda(rows.sums, penalty)
        return rows.fit(penalty, lam), lam
    lam = _given_lambda(rows, spec)
    if spec.penalize == "all":
        return rows.fit(penalty, lam), lam
    return _fit_batch_penalty(rows, penalty, lam, spec.cluster_penalty), lam


def dispersion_of(effects: Arrays | None, genes: np.ndarray, spec: CrescendoSpec) -> np.ndarray:
    """Dispersion by which the prior of each gene is weighed; ones where it is not."""
    if effects is None or not spec.quasi_poisson:
        return np.ones(len(genes))
    return np.asarray(effects["dispersion"][genes])


def unaffected(effects: Arrays | None, genes: np.ndarray, spec: CrescendoSpec) -> np.ndarray:
    """Whether each gene is left as it is, because it shows no batch effect."""
    if effects is None or not spec.skip_unaffected:
        return np.zeros(len(genes), dtype=bool)
    return ~effects["affected"][genes]


def _given_lambda(rows: Rows, spec: CrescendoSpec) -> np.ndarray:
    n_genes = rows.counts.shape[1]
    if spec.mean_factor is None:
        return np.full(n_genes, float(spec.lam))  # type: ignore[arg-type]
    mean = np.asarray(rows.counts.sum(axis=0), dtype=np.float64).ravel() / rows.n_cells
    return np.where(mean > 0, spec.mean_factor * mean, 1.0)  # without counts nothing is fitted


def _fit_batch_penalty(
    rows: Rows, penalty: Penalty, lam: np.ndarray, cluster_penalty: float
) -> RidgeFit:
    """Scale the penalty of batches by lambda; clusters keep their weak one."""
    weak = np.where(np.isfinite(penalty.cluster), cluster_penalty, np.inf)
    parts = [
        rows.fit(replace(penalty.scaled(value), cluster=weak), 1.0, np.array([gene]))
        for gene, value in enumerate(lam)
    ]
    names = RidgeFit.__dataclass_fields__
    return RidgeFit(
        **{name: np.concatenate([getattr(p, name) for p in parts], axis=-1) for name in names}
    )


def rows_of_sample(sample: Arrays, groups: Arrays, chosen: np.ndarray, spec: CrescendoSpec) -> Rows:
    """Sampled cells with the counts of some genes."""
    shape = (len(sample["depth"]), len(groups["largest_rate"]))
    arrays = (sample["data"], sample["indices"], sample["indptr"])
    counts = sparse.csc_matrix(arrays, shape=shape)[:, chosen]
    return Rows(
        counts,
        columns(sample["weights"], sample.get("kept"), spec.keep_interactions),
        sample["batch"],
        sample["depth"],
        groups["mass"],
        saturated=lambda: saturated(counts, sample["depth"]),
    )


def fit_panel_of_sample(
    item: int,
    *,
    sample: Arrays,
    groups: Arrays,
    genes: np.ndarray,
    spec: CrescendoSpec,
    var_names: np.ndarray,
    effects: Arrays | None = None,
) -> Arrays:
    """Fit a panel of genes to the sampled cells."""
    chosen = genes[item * PANEL : (item + 1) * PANEL]
    rows = rows_of_sample(sample, groups, chosen, spec)
    result, lam = estimate(rows, spec, dispersion_of(effects, chosen, spec))
    return finished(result, lam, rows, groups, chosen, var_names, spec, effects)


def finished(
    result: RidgeFit,
    lam: np.ndarray | None,
    rows: Rows,
    groups: Arrays,
    chosen: np.ndarray,
    var_names: np.ndarray,
    spec: CrescendoSpec,
    effects: Arrays | None,
) -> Arrays:
    """Everything that matching needs, for the clusters as they were given."""
    absent = absent_genes(groups["gene_counts"][:, chosen], groups["mass"])
    kept = absent & spec.skip_absent | unaffected(effects, chosen, spec)
    rate = groups["largest_rate"][chosen]
    found = solution(result, lam, rows.mass, rows.weights, rate, kept, var_names[chosen], spec)
    # members of a merged cluster share its coefficients; dropped clusters have none
    n_kept = rows.weights.shape[1] - rows.n_clusters
    if spec.keep_interactions:
        n_kept //= 1 + rows.n_clusters
    if spec.margin == "negative_binomial":
        found["dispersion"] = dispersion_of_cells(rows, result)
    place = spread(groups["labels"], n_kept, spec.keep_interactions)
    for name in ("cluster", "interaction", "source_coefficients", "target_coefficients"):
        axis = found[name].ndim - 2
        values = np.take(found[name], np.maximum(place, 0), axis=axis)
        found[name] = np.where((place >= 0).reshape((-1, 1)), values, 0.0)
    return found


def fit_panel_of_strata(
    item: int,
    *,
    strata: Arrays,
    genes: np.ndarray,
    spec: CrescendoSpec,
    var_names: np.ndarray,
    levels: np.ndarray | None = None,
    effects: Arrays | None = None,
) -> Arrays:
    """Fit a panel of genes to the sums of labelled cells (exactly the fit to all cells).

    With kept covariates a stratum is a batch, a label and one of their combinations, whose design
    columns are `levels`.
    """
    chosen = genes[item * PANEL : (item + 1) * PANEL]
    counts, depth = strata["counts"][:, :, chosen], strata["depth"]
    n_batches, n_rows = depth.shape
    weights = stratum_columns(n_rows, levels, spec.keep_interactions)
    n_labels = n_rows if levels is None else n_rows // len(levels)
    mass = strata["cells"].reshape(n_batches, n_labels, -1).sum(axis=2)
    present = depth.ravel() > 0
    rows = Rows(
        counts.reshape(-1, len(chosen))[present],
        np.tile(weights, (n_batches, 1))[present],
        np.repeat(np.arange(n_batches), n_rows)[present],
        depth.ravel()[present],
        mass,
        saturated=lambda: strata["saturated"][chosen],
        cells=strata["fitted"].ravel()[present],
        strata=(counts, depth) if levels is None else None,
    )
    result, lam = estimate(rows, spec, dispersion_of(effects, chosen, spec))
    absent = absent_genes(counts.sum(axis=1), mass)
    kept = absent & spec.skip_absent | unaffected(effects, chosen, spec)
    rate = strata["largest_rate"][chosen]
    shown = weights[strata["cells"].sum(axis=0) > 0]
    found = solution(result, lam, mass, shown, rate, kept, var_names[chosen], spec)
    if spec.margin == "negative_binomial":
        found["dispersion"] = dispersion_of_strata(strata, chosen, weights, result)
    return found


def stratum_columns(n_rows: int, levels: np.ndarray | None, interactions: bool) -> np.ndarray:
    """Design columns of every combination of a label and kept levels, labels slowest."""
    if levels is None:
        return np.eye(n_rows)
    n_labels = n_rows // len(levels)
    labels = np.repeat(np.eye(n_labels), len(levels), axis=0)
    return columns(labels, np.tile(levels, (n_labels, 1)), interactions)


def join_panels(parts: list[Arrays]) -> Arrays:
    """Join the panels along genes, the last axis of every array."""
    return {name: np.concatenate([part[name] for part in parts], axis=-1) for name in parts[0]}
