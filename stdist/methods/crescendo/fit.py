"""Crescendo's fit of a panel of genes, from sampled cells or from sums of labelled cells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from stdist.kernels.array_module import array_module, host_array
from stdist.kernels.lambda_path import exact_lambda, fit_reference
from stdist.kernels.poisson_ridge import Penalty, RidgeFit
from stdist.methods.crescendo.design import spread
from stdist.methods.crescendo.margin import dispersion_of_cells, dispersion_of_strata
from stdist.methods.crescendo.marginal import absent_genes, measured_genes, solution
from stdist.methods.crescendo.panels import PANEL, by_batches
from stdist.methods.crescendo.rows import (
    Rows,
    on_host,
    rows_of_sample,
    rows_of_strata,
    stratum_columns,
)
from stdist.methods.crescendo.spec import CrescendoSpec

Arrays = dict[str, Any]


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
    """Whether each gene shows no batch effect and is to be treated so."""
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
    """Fit a panel of genes to the sampled cells; the systems are solved where these are."""
    groups = on_host(groups)
    effects = None if effects is None else on_host(effects)

    def finish(result: RidgeFit, lam: np.ndarray | None, rows: Rows, chosen: np.ndarray) -> Arrays:
        return finished(result, lam, rows, groups, chosen, var_names, spec, effects)

    return estimate_sample(item, sample, groups, genes, spec, effects, finish)


def estimate_sample(
    item: int,
    sample: Arrays,
    groups: Arrays,
    genes: np.ndarray,
    spec: CrescendoSpec,
    effects: Arrays | None,
    finish: Callable[[RidgeFit, np.ndarray | None, Rows, np.ndarray], Arrays],
) -> Arrays:
    """Estimate a panel of genes on the sampled cells; ``finish(result, lam, rows, genes)``."""
    xp, genes = array_module(genes), host_array(genes)
    sample, groups = on_host(sample), on_host(groups)
    effects = None if effects is None else on_host(effects)
    panel = genes[item * PANEL : (item + 1) * PANEL]

    def solve(places: np.ndarray, batches: np.ndarray) -> Arrays:
        chosen = panel[places]
        rows = rows_of_sample(sample, groups, chosen, spec, xp).of_batches(batches)
        result, lam = estimate(rows, spec, dispersion_of(effects, chosen, spec))
        return finish(result, lam, rows, chosen)

    return by_batches(measured_genes({"groups": groups}, panel, spec), solve)


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
    found = solution(
        result,
        lam,
        rows,
        groups["largest_rate"][chosen],
        absent_genes({"groups": groups}, chosen).any(axis=0) & spec.skip_absent,
        unaffected(effects, chosen, spec),
        var_names[chosen],
        spec,
    )
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
    panel = genes[item * PANEL : (item + 1) * PANEL]
    weights = stratum_columns(strata["depth"].shape[1], levels, spec.keep_interactions)

    def solve(places: np.ndarray, batches: np.ndarray) -> Arrays:
        chosen = panel[places]
        rows = rows_of_strata(strata, chosen, weights, levels).of_batches(batches)
        result, lam = estimate(rows, spec, dispersion_of(effects, chosen, spec))
        found = solution(
            result,
            lam,
            rows,
            strata["largest_rate"][chosen],
            absent_genes({"strata": strata}, chosen).any(axis=0) & spec.skip_absent,
            unaffected(effects, chosen, spec),
            var_names[chosen],
            spec,
        )
        if spec.margin == "negative_binomial":
            found["dispersion"] = dispersion_of_strata(strata, chosen, weights, result, batches)
        return found

    return by_batches(measured_genes({"strata": strata}, panel, spec), solve)
