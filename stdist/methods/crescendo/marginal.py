"""From a fit to the coefficients of source and target, and whether they are to be used."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from stdist.kernels.poisson_marginal import exceeding_marginals, marginal, reference_marginal
from stdist.kernels.poisson_ridge import RidgeFit
from stdist.methods.crescendo.spec import CrescendoSpec
from stdist.store import InputError


def target_coefficients(
    result: RidgeFit, mass: np.ndarray, spec: CrescendoSpec
) -> tuple[np.ndarray, np.ndarray]:
    """Intercept and coefficients without batches; those of kept columns are as fitted.

    With ``main_effects="fold"`` the effect of a batch is part of its effect on each cluster (the
    clusters of a cell sum to one); with ``"drop"`` it is left out.
    """
    n_clusters = mass.shape[1]
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
    else:
        intercept, coefficients = marginal(of_clusters, mass[present])
    return intercept, np.concatenate([coefficients, result.cluster[n_clusters:]])


def absent_genes(counts: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """Find genes without a count in some batch that has cells.

    Parameters
    ----------
    counts : (n_batches, n_genes) array
    mass : (n_batches, n_clusters) array

    Returns
    -------
    (n_genes,) bool
    """
    return (counts[mass.sum(axis=1) > 0] == 0).any(axis=0)


def solution(
    result: RidgeFit,
    lam: np.ndarray | None,
    mass: np.ndarray,
    weights: np.ndarray,
    largest_rate: np.ndarray,
    kept: np.ndarray,
    names: np.ndarray,
    spec: CrescendoSpec,
) -> dict[str, Any]:
    """Everything that the correction of a panel of genes needs.

    Genes that are not to be corrected are marked: those whose fit did not converge, those to be
    `kept` as they are, and those whose rate without batches is far above all that
    was observed, if this is a fault of the released marginal.

    Raises
    ------
    InputError
        If another marginal has such a rate.
    """
    intercept, coefficients = target_coefficients(result, mass, spec)
    corrected = result.converged & ~kept
    beyond = exceeding_marginals(intercept, coefficients, weights, largest_rate)
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
        "source_intercept": result.source_intercept,
        "source_coefficients": result.source_coefficients,
        "target_intercept": intercept,
        "target_coefficients": coefficients,
    }
