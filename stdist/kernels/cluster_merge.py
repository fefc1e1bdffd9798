"""Merge clusters whose weights are nearly the same in every cell.

The correlation of two clusters over all cells needs only sums, which add over chunks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components

Labels = NDArray[np.int64]

# the reference compares in single precision
MERGE_THRESHOLD = float(np.float32(0.99))
EMPTY_SHARE = 1e-8
DROPPED = -1


def weight_sums(weights: ArrayLike) -> tuple[int, NDArray[np.float64], NDArray[np.float64]]:
    """Sums from which cluster correlations follow; those of several chunks are added.

    Parameters
    ----------
    weights : (n_cells, n_clusters) float

    Returns
    -------
    n_cells : int
    sums : (n_clusters,) float64
    gram : (n_clusters, n_clusters) float64
        Sums of products of weights.
    """
    weights = np.asarray(weights, dtype=np.float64)
    return len(weights), weights.sum(axis=0), weights.T @ weights


def _similar(n_cells: int, sums: ArrayLike, gram: ArrayLike, threshold: float) -> NDArray[np.bool_]:
    mean = np.asarray(sums, dtype=np.float64) / n_cells
    moment = np.asarray(gram, dtype=np.float64) / n_cells
    covariance = moment - np.outer(mean, mean)
    variance = covariance.diagonal()
    # a constant cluster has no correlation: what is left of its variance is rounding
    rounding = n_cells * np.finfo(np.float64).eps * moment.diagonal()
    scale = np.where(variance > rounding, np.sqrt(np.maximum(variance, 0.0)), np.inf)
    return covariance / scale / scale[:, None] > threshold


def merge_groups(
    n_cells: int, sums: ArrayLike, gram: ArrayLike, threshold: float = MERGE_THRESHOLD
) -> Labels:
    """Group clusters whose correlation over cells exceeds a threshold.

    Parameters
    ----------
    n_cells : int
    sums : (n_clusters,) float
    gram : (n_clusters, n_clusters) float
        As of ``weight_sums``.
    threshold : float

    Returns
    -------
    (n_clusters,) int64
        Group of each cluster, numbered in the order of its first label.

    Notes
    -----
    The scan of the released Crescendo (Millard et al. 2025, doi 10.1186/s13059-025-03479-9):
    each similar pair takes the smaller of its two labels, but earlier members do not follow,
    so groups can differ from ``connected_groups``.

    Examples
    --------
    >>> weights = np.array([[0.2, 0.4, 0.4], [0.1, 0.2, 0.7], [0.3, 0.6, 0.1]])
    >>> groups = merge_groups(*weight_sums(weights))
    >>> groups
    array([0, 0, 1])
    >>> apply_merge(weights, groups).round(1)
    array([[0.6, 0.4],
           [0.3, 0.7],
           [0.9, 0.1]])
    """
    similar = np.triu(_similar(n_cells, sums, gram, threshold), k=1)
    labels = np.arange(len(similar))
    for first, second in np.argwhere(similar):
        labels[first] = labels[second] = min(labels[first], labels[second])
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)


def connected_groups(
    n_cells: int, sums: ArrayLike, gram: ArrayLike, threshold: float = MERGE_THRESHOLD
) -> Labels:
    """Group clusters linked by any chain of similar pairs; arguments as ``merge_groups``."""
    similar = sparse.csr_array(_similar(n_cells, sums, gram, threshold))
    return connected_components(similar, directed=False)[1].astype(np.int64)


def drop_empty_groups(groups: Labels, sums: ArrayLike, n_cells: int) -> Labels:
    """Mark the members of groups with almost no mass as dropped and renumber the others.

    Parameters
    ----------
    groups : (n_clusters,) int64
    sums : (n_clusters,) float
        Mass of each cluster.
    n_cells : int

    Returns
    -------
    (n_clusters,) int64
        ``DROPPED`` for groups below ``EMPTY_SHARE * n_cells``.

    Raises
    ------
    ValueError
        If every group is empty.

    Examples
    --------
    >>> drop_empty_groups(np.array([0, 1, 2, 0]), [3.0, 0.0, 5.0, 2.0], n_cells=10)
    array([ 0, -1,  1,  0])
    """
    mass = np.bincount(groups, weights=np.asarray(sums, dtype=np.float64))
    kept = mass >= EMPTY_SHARE * n_cells
    if not kept.any():
        message = "every cluster is empty"
        raise ValueError(message)
    return np.where(kept, np.cumsum(kept) - 1, DROPPED)[groups]


def apply_merge(weights: ArrayLike, groups: Labels) -> NDArray[np.floating]:
    """Sum the weights of each group.

    Parameters
    ----------
    weights : (n_cells, n_clusters) float
    groups : (n_clusters,) int64

    Returns
    -------
    (n_cells, n_groups) float
        Of the dtype of ``weights``; each cell is summed in cluster order, so a row does not
        depend on the other rows. Dropped clusters are left out.
    """
    weights = np.asarray(weights)
    merged = np.zeros((len(weights), groups.max() + 1), dtype=weights.dtype)
    for column, group in enumerate(groups):
        if group != DROPPED:
            merged[:, group] += weights[:, column]
    return merged
