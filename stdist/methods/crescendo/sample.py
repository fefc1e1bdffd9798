"""Crescendo's sample: merged clusters, and the cells of each batch and cluster to fit to."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from stdist.kernels.cluster_merge import connected_groups, drop_empty_groups, merge_groups

Arrays = dict[str, Any]
SAFETY = 6.0
"""Standard deviations by which the sampling threshold exceeds the wanted share."""


def group_clusters(
    total: Arrays,
    *,
    merge_threshold: float,
    fit_cells: int | None,
    min_cells: int,
    share: float | None = None,
) -> Arrays:
    """Merge correlated clusters and set the sampling threshold of each (batch, cluster).

    A stratum of `n` cells keeps all of them if ``n <= min_cells``, else
    ``max(min_cells, ceil(share * n))``, where the share, if it is not given, brings the sample to
    `fit_cells` (Millard et al. 2025, downsampling). `chained` tells that clusters linked by a
    chain of correlated pairs were not all merged.
    """
    n = int(total["n"])
    similarity = n, total["sums"], total["gram"], merge_threshold
    merged = merge_groups(*similarity)
    labels = drop_empty_groups(merged, total["sums"], n)
    n_groups = int(labels.max()) + 1
    n_batches = len(total["mass"])
    kept = labels >= 0
    cells = np.zeros((n_batches, n_groups))
    mass = np.zeros((n_batches, n_groups))
    for cluster in np.flatnonzero(kept):
        cells[:, labels[cluster]] += total["cells"][:, cluster]
        mass[:, labels[cluster]] += total["mass"][:, cluster]
    if share is None:
        assert fit_cells is not None
        share = min(1.0, fit_cells / max(1.0, cells.sum()))
    wanted = np.minimum(cells, np.maximum(min_cells, np.ceil(share * cells)))
    loose = (wanted + SAFETY * np.sqrt(wanted) + SAFETY**2) / np.maximum(cells, 1)
    threshold = np.where(wanted >= cells, 1.0, np.minimum(1.0, loose))
    stratum = np.arange(n_batches)[:, None] * n_groups + np.maximum(labels, 0)
    return {
        "labels": labels,
        "membership": (labels[:, None] == np.arange(n_groups)).astype(np.float64),
        "threshold": threshold[:, np.maximum(labels, 0)] * kept,
        "stratum": stratum,
        "wanted": wanted.ravel(),
        "mass": mass,
        "cells": cells,
        "chained": (merged != connected_groups(*similarity)).any(),
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
    by_gene = counts.tocsc()
    covariates = {"kept": total["kept"][kept]} if "kept" in total else {}
    return {
        **covariates,
        "weights": total["weights"][kept] @ groups["membership"],
        "batch": total["batch"][kept],
        "cluster": total["stratum"][kept] % groups["mass"].shape[1],
        "depth": total["depth"][kept],
        "data": by_gene.data,
        "indices": by_gene.indices.astype(np.int64),
        "indptr": by_gene.indptr.astype(np.int64),
    }
