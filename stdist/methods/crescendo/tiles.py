"""What Crescendo computes on one tile of cells."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from stdist.kernels.keyed_random import stream_key, uniforms
from stdist.methods.checks import check_codes, check_counts, check_depth, check_weights

Arrays = dict[str, Any]


def cell_depth(counts: Any) -> np.ndarray:
    """Total count (nUMI) of each cell, ``(n_cells,)`` float64."""
    return np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()


def largest_rate(counts: Any, depth: np.ndarray) -> np.ndarray:
    """Largest count over depth of each gene, ``(n_genes,)``."""
    scale = np.divide(1.0, depth, out=np.zeros_like(depth), where=depth > 0)
    if sparse.issparse(counts):
        return sparse.diags(scale).dot(counts).max(axis=0).toarray().ravel()
    return (counts * scale[:, None]).max(axis=0)


def one_hot(codes: np.ndarray, n_codes: int) -> sparse.csr_matrix:
    """Membership of each code, ``(n_codes, n_cells)``."""
    n = len(codes)
    return sparse.csr_matrix((np.ones(n), (codes, np.arange(n))), shape=(n_codes, n))


def sum_by(codes: np.ndarray, n_codes: int, values: Any) -> np.ndarray:
    """Sum rows of `values` by code, ``(n_codes, n_columns)`` float64; exact for counts."""
    if not sparse.issparse(values):
        values = np.asarray(values, dtype=np.float64)
    total = one_hot(codes, n_codes) @ values
    return total.toarray() if sparse.issparse(total) else np.asarray(total)


def _depth(counts: Any, depth: np.ndarray | None) -> np.ndarray:
    return cell_depth(counts) if depth is None else np.asarray(depth, dtype=np.float64)


def _checked_depth(
    counts: Any, depth: np.ndarray | None, rows: tuple[int, int], key: str
) -> np.ndarray:
    found = _depth(counts, depth)
    if depth is not None:
        check_depth(found, counts, rows, key)
    return found


def sum_strata(
    rows: tuple[int, int],
    *,
    counts: Any,
    batch: np.ndarray,
    labels: np.ndarray,
    depth: np.ndarray | None = None,
    n_batches: int,
    n_labels: int,
    keys: tuple[str, str, str],
) -> Arrays:
    """Sums over (batch, label) strata: all that the fit of labelled cells needs."""
    check_counts(counts, rows)
    check_codes(batch, rows, keys[0])
    check_codes(labels, rows, keys[1])
    depth = _checked_depth(counts, depth, rows, keys[2])
    strata, shape = batch * n_labels + labels, (n_batches, n_labels)
    n_strata = n_batches * n_labels
    return {
        "counts": sum_by(strata, n_strata, counts).reshape(*shape, -1),
        "depth": np.bincount(strata, depth, n_strata).reshape(shape),
        "cells": np.bincount(strata, minlength=n_strata).reshape(shape),
        "largest_rate": largest_rate(counts, depth),
        "empty_cells": np.int64((depth <= 0).sum()),
    }


def sum_clusters(
    rows: tuple[int, int],
    *,
    counts: Any,
    batch: np.ndarray,
    weights: np.ndarray,
    depth: np.ndarray | None = None,
    n_batches: int,
    seed: int,
    keys: tuple[str, str, str],
) -> Arrays:
    """Sums that decide merging and sampling, and the counts of each gene in each batch."""
    check_counts(counts, rows)
    check_codes(batch, rows, keys[0])
    check_weights(weights, rows, keys[1])
    depth = _checked_depth(counts, depth, rows, keys[2])
    weights = weights.astype(np.float64)
    n_clusters = weights.shape[1]
    cells = np.where(depth > 0, 1.0, 0.0)
    strata = batch * n_clusters + drawn_labels(rows, weights, seed)
    return {
        "gene_counts": sum_by(batch, n_batches, counts),
        "mass": sum_by(batch, n_batches, weights),
        "gram": weights.T @ weights,
        "cells": np.bincount(strata, cells, n_batches * n_clusters).reshape(n_batches, n_clusters),
        "n": np.int64(len(batch)),
        "largest_rate": largest_rate(counts, depth),
        "empty_cells": np.int64((depth <= 0).sum()),
    }


def drawn_labels(rows: tuple[int, int], weights: np.ndarray, seed: int) -> np.ndarray:
    """Draw one label per cell from its soft clusters (spec 2.6), keyed by the cell."""
    u = uniforms(stream_key(seed, "crescendo label", 0), rows[0], len(weights))
    cumulative = np.cumsum(weights, axis=1)
    return (u[:, None] * cumulative[:, -1:] > cumulative).sum(axis=1)


def sample_cells(
    rows: tuple[int, int],
    *,
    counts: Any,
    batch: np.ndarray,
    weights: np.ndarray,
    depth: np.ndarray | None = None,
    groups: Arrays,
    seed: int,
) -> Arrays:
    """Cells whose priority is below the threshold of their stratum, with all the fit needs."""
    priority = uniforms(stream_key(seed, "crescendo sample", 0), rows[0], len(batch))
    depth = _depth(counts, depth)
    label = drawn_labels(rows, weights.astype(np.float64), seed)
    chosen = np.flatnonzero((priority < groups["threshold"][batch, label]) & (depth > 0))
    picked = sparse.csr_matrix(counts[chosen])
    return {
        "row": rows[0] + chosen,
        "priority": priority[chosen],
        "stratum": groups["stratum"][batch[chosen], label[chosen]],
        "batch": batch[chosen],
        "depth": depth[chosen],
        "weights": weights[chosen].astype(np.float64),
        "entries": np.diff(picked.indptr).astype(np.int64),
        "gene": picked.indices.astype(np.int32),
        "count": picked.data.astype(np.float64),
    }


def copy_counts(
    rows: tuple[int, int], *, counts: Any, batch: np.ndarray, key: str, dtype: str
) -> Arrays:
    """Counts as they are (one batch: nothing to correct)."""
    check_counts(counts, rows)
    check_codes(batch, rows, key)
    return {"corrected": counts.astype(dtype)}
