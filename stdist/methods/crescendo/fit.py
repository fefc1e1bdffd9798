"""Crescendo's fit: from sums or sampled cells to source and target coefficients of each gene."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from stdist.kernels.cluster_merge import drop_empty_groups, merge_groups
from stdist.kernels.poisson_marginal import exceeding_marginals, marginal
from stdist.kernels.poisson_ridge import (
    Penalty,
    RidgeFit,
    fit,
    fit_strata,
)
from stdist.store import InputError

Arrays = dict[str, Any]
PANEL = 32
"""Genes of one fitting task."""
SAFETY = 6.0
"""Standard deviations by which the sampling threshold exceeds the wanted share."""


def group_clusters(
    total: Arrays, *, merge_threshold: float, fit_cells: int, min_cells: int
) -> Arrays:
    """Merge correlated clusters and set the sampling threshold of each (batch, cluster).

    A stratum of `n` cells keeps all of them if ``n <= min_cells``, else
    ``max(min_cells, ceil(share * n))``, where the share brings the sample to `fit_cells`
    (Millard et al. 2025, downsampling).
    """
    n = int(total["n"])
    sums = total["mass"].sum(axis=0)
    labels = drop_empty_groups(merge_groups(n, sums, total["gram"], merge_threshold), sums, n)
    n_groups = int(labels.max()) + 1
    n_batches = len(total["mass"])
    kept = labels >= 0
    cells = np.zeros((n_batches, n_groups))
    mass = np.zeros((n_batches, n_groups))
    for cluster in np.flatnonzero(kept):
        cells[:, labels[cluster]] += total["cells"][:, cluster]
        mass[:, labels[cluster]] += total["mass"][:, cluster]
    share = min(1.0, fit_cells / max(1.0, cells.sum()))
    wanted = np.minimum(cells, np.maximum(min_cells, np.ceil(share * cells)))
    loose = (wanted + SAFETY * np.sqrt(wanted) + SAFETY**2) / np.maximum(cells, 1)
    threshold = np.where(wanted >= cells, 1.0, np.minimum(1.0, loose))
    stratum = np.arange(n_batches)[:, None] * n_groups + np.maximum(labels, 0)
    return {
        "labels": labels,
        "threshold": threshold[:, np.maximum(labels, 0)] * kept,
        "stratum": stratum,
        "wanted": wanted.ravel(),
        "mass": mass,
        "gene_counts": total["gene_counts"],
        "largest_rate": total["largest_rate"],
        "empty_cells": total["empty_cells"],
    }


def trim_sample(total: Arrays, *, groups: Arrays) -> Arrays:
    """Keep the wanted number of cells of each stratum: those of smallest priority."""
    order = np.lexsort((total["row"], total["priority"], total["stratum"]))
    stratum = total["stratum"][order]
    first = np.searchsorted(stratum, np.arange(len(groups["wanted"])))
    rank = np.arange(len(order)) - first[stratum]
    kept = np.sort(order[rank < groups["wanted"][stratum]])
    offsets = np.concatenate([[0], np.cumsum(total["entries"])])
    shape = (len(order), len(groups["largest_rate"]))
    counts = sparse.csr_matrix((total["count"], total["gene"], offsets), shape=shape)[kept]
    n_groups = int(groups["labels"].max()) + 1
    weights = np.zeros((len(kept), n_groups))
    for cluster in np.flatnonzero(groups["labels"] >= 0):
        weights[:, groups["labels"][cluster]] += total["weights"][kept, cluster]
    by_gene = counts.tocsc()
    return {
        "weights": weights,
        "batch": total["batch"][kept],
        "depth": total["depth"][kept],
        "data": by_gene.data,
        "indices": by_gene.indices.astype(np.int64),
        "indptr": by_gene.indptr.astype(np.int64),
    }


def fit_panel_of_sample(
    item: int,
    *,
    sample: Arrays,
    groups: Arrays,
    genes: np.ndarray,
    prior_sd: float,
    cluster_penalty: float,
    var_names: np.ndarray,
) -> Arrays:
    """Fit a panel of genes to the sampled cells."""
    chosen = genes[item * PANEL : (item + 1) * PANEL]
    shape = (len(sample["depth"]), len(groups["largest_rate"]))
    arrays = (sample["data"], sample["indices"], sample["indptr"])
    counts = sparse.csc_matrix(arrays, shape=shape)[:, chosen]
    n_batches, n_groups = groups["mass"].shape
    penalty = Penalty.random_effects(n_groups, n_batches, prior_sd, cluster_penalty)
    result = fit(counts, sample["weights"], sample["batch"], sample["depth"], penalty)
    rate = groups["largest_rate"][chosen]
    solution = _solution(result, groups["mass"], sample["weights"], rate, var_names[chosen])
    # members of a merged cluster share its coefficients; dropped clusters have none
    labels = groups["labels"]
    for name in ("cluster", "interaction", "source_coefficients", "target_coefficients"):
        axis = solution[name].ndim - 2
        spread = np.take(solution[name], np.maximum(labels, 0), axis=axis)
        member = (labels >= 0).reshape((-1, 1))
        solution[name] = np.where(member, spread, 0.0)
    return solution


def fit_panel_of_strata(
    item: int,
    *,
    strata: Arrays,
    genes: np.ndarray,
    prior_sd: float,
    cluster_penalty: float,
    var_names: np.ndarray,
) -> Arrays:
    """Fit a panel of genes to the sums of labelled cells (exactly the fit to all cells)."""
    chosen = genes[item * PANEL : (item + 1) * PANEL]
    n_batches, n_labels = strata["depth"].shape
    penalty = Penalty.random_effects(n_labels, n_batches, prior_sd, cluster_penalty)
    result = fit_strata(strata["counts"][:, :, chosen], strata["depth"], penalty)
    present = np.eye(n_labels)[strata["cells"].sum(axis=0) > 0]
    rate = strata["largest_rate"][chosen]
    return _solution(result, strata["cells"], present, rate, var_names[chosen])


def _solution(
    result: RidgeFit,
    mass: np.ndarray,
    weights: np.ndarray,
    largest_rate: np.ndarray,
    names: np.ndarray,
) -> Arrays:
    intercept, coefficients = marginal(result, mass)
    counted = ~result.without_counts
    beyond = exceeding_marginals(intercept, coefficients, weights, largest_rate)
    beyond = beyond[counted[beyond[:, 0]] & result.converged[beyond[:, 0]]]
    if len(beyond):
        gene, cluster = beyond[0]
        raise InputError(
            "marginal-unsupported",
            f"the batch-free rate of gene {names[gene]!r} exceeds 10,000 times its largest "
            f"observed rate ({len(beyond)} genes)",
            place=f"gene {names[gene]!r}, cluster {cluster}",
            remedy="use fewer clusters or a smaller prior_sd",
        )
    return {
        "converged": result.converged,
        "intercept": result.intercept,
        "cluster": result.cluster,
        "batch": result.batch,
        "interaction": result.interaction,
        "source_intercept": result.source_intercept,
        "source_coefficients": result.source_coefficients,
        "target_intercept": intercept,
        "target_coefficients": coefficients,
    }


def join_panels(parts: list[Arrays]) -> Arrays:
    """Join the panels along genes, the last axis of every array."""
    return {name: np.concatenate([part[name] for part in parts], axis=-1) for name in parts[0]}
