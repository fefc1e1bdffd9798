"""From a fit to the coefficients of source and target, and whether they are to be used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from stdist.kernels.poisson_marginal import (
    exceeding_marginals,
    interquartile_marginal,
    log_factor_to_keep_totals,
    marginal,
    reference_marginal,
)
from stdist.kernels.poisson_ridge import RidgeFit
from stdist.methods.crescendo.rows import Rows
from stdist.methods.crescendo.spec import CrescendoSpec
from stdist.store import InputError

MOST_LOST = 0.3
"""Of an even share of one batch in a gene's total, that the interquartile mean may take."""


def target_coefficients(
    result: RidgeFit, rows: Rows, spec: CrescendoSpec
) -> tuple[np.ndarray, np.ndarray]:
    """Intercept and coefficients without batches; those of kept columns are as fitted.

    With ``main_effects="fold"`` the effect of a batch is part of its effect on each cluster (the
    clusters of a cell sum to one); with ``"drop"`` it is left out.
    """
    mass, n_clusters = rows.mass, rows.n_clusters
    interaction = result.interaction[:, :n_clusters]
    if spec.main_effects == "fold":
        interaction = interaction + result.batch[:, None]
    present = mass.sum(axis=1) > 0
    of_clusters = replace(
        result,
        cluster=result.cluster[:n_clusters],
        batch=result.batch[present],
        interaction=interaction[present],
    )
    if spec.marginal == "reference":
        intercept, coefficients = reference_marginal(of_clusters)
    elif spec.marginal == "arithmetic":
        intercept, coefficients = marginal(of_clusters, mass[present])
    else:
        intercept, coefficients = interquartile_marginal(of_clusters, mass[present])
    coefficients = np.concatenate([coefficients, result.cluster[n_clusters:]])
    if spec.marginal == "interquartile":
        depth, least = rows.depth * rows.sampling_weight, 1 - MOST_LOST / present.sum()
        # the clusters of a cell sum to one
        coefficients[:n_clusters] += log_factor_to_keep_totals(
            intercept, coefficients, result, rows.weights, rows.batch, depth, least
        )
    return intercept, coefficients


def gene_counts(sums: Mapping[str, Any], genes: Any = slice(None)) -> np.ndarray:
    """Counts of genes in each batch, ``(n_batches, n_genes)``, from sums over strata or groups."""
    if "strata" in sums:
        return sums["strata"]["counts"][:, :, genes].sum(axis=1)
    return sums["groups"]["gene_counts"][:, genes]


def counted_cells(sums: Mapping[str, Any]) -> np.ndarray:
    """Cells with counts in each batch and stratum, ``(n_batches, n_strata)``."""
    return sums["strata"]["fitted"] if "strata" in sums else sums["groups"]["cells"]


def absent_genes(sums: Mapping[str, Any], genes: np.ndarray) -> np.ndarray:
    """Find the batches without a count of some genes, though other batches have one.

    Batches whose cells have no counts at all lack no gene.

    Parameters
    ----------
    sums
        Over strata or over groups.
    genes : (n_genes,) array
        Columns of the data.

    Returns
    -------
    (n_batches, n_genes) bool
    """
    counts, cells = gene_counts(sums, genes), counted_cells(sums).sum(axis=1)
    return (counts == 0) & (counts.sum(axis=0) > 0) & (cells > 0)[:, None]


def measured_genes(sums: Mapping[str, Any], genes: np.ndarray, spec: CrescendoSpec) -> np.ndarray:
    """Which batches are fitted for each gene, ``(n_batches, n_genes)``.

    All, but for those without a count of a gene that is to be imputed there: zeros that nobody
    measured.
    """
    return ~(absent_genes(sums, genes) & spec.impute_missing)


def solution(
    result: RidgeFit,
    lam: np.ndarray | None,
    rows: Rows,
    largest_rate: np.ndarray,
    kept: np.ndarray,
    unaffected: np.ndarray,
    names: np.ndarray,
    spec: CrescendoSpec,
) -> dict[str, Any]:
    """Everything that the correction of a panel of genes needs.

    Genes that are not to be corrected are marked: those whose fit did not converge, those to be
    `kept` as they are, those `unaffected` by batches, and those whose rate without batches is far
    above all that was observed, if this is a fault of the released marginal. Where cells get
    another depth, unaffected genes get it too: from the rate without batches to itself.

    Raises
    ------
    InputError
        If another marginal has such a rate.
    """
    intercept, coefficients = target_coefficients(result, rows, spec)
    source = result.source_intercept, result.source_coefficients
    if spec.changes_depth:
        source = (
            np.where(unaffected, intercept, source[0]),
            np.where(unaffected, coefficients, source[1]),
        )
    else:
        kept = kept | unaffected
    corrected = result.converged & ~kept
    beyond = exceeding_marginals(intercept, coefficients, rows.weights, largest_rate)
    judged = corrected & ~result.without_counts
    beyond = beyond[judged[beyond[:, 0]]]
    unsupported = np.isin(np.arange(len(names)), beyond[:, 0])
    if unsupported.any() and spec.marginal != "reference":
        gene, cluster = beyond[0]
        raise InputError(
            "marginal-unsupported",
            f"the batch-free rate of gene {names[gene]!r} exceeds 10,000 times its largest "
            f"observed rate ({len(beyond)} genes)",
            place=f"gene {names[gene]!r}, cluster {cluster}",
            remedy="use fewer clusters or a smaller prior_sd",
        )
    return {
        **({} if lam is None else {"lam": lam}),
        "converged": result.converged,
        "unsupported": unsupported,
        "corrected": corrected & ~unsupported,
        "intercept": result.intercept,
        "cluster": result.cluster,
        "batch": result.batch,
        "interaction": result.interaction,
        "source_intercept": source[0],
        "source_coefficients": source[1],
        "target_intercept": intercept,
        "target_coefficients": coefficients,
    }
