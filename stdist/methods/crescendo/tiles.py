"""What Crescendo computes on one tile of cells."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from stdist.kernels.array_module import array_module
from stdist.kernels.group_sums import sum_by_group
from stdist.kernels.keyed_random import stream_key, uniforms
from stdist.kernels.moments import row_sums
from stdist.kernels.power_sums import power_sums
from stdist.methods.checks import check_codes, check_counts, check_depth, check_weights
from stdist.store import InputError

Arrays = dict[str, Any]


class Keys(NamedTuple):
    """Names in messages; `labelled` where soft clusters are labels in another form."""

    batch: str
    clusters: str
    depth: str = ""
    target: str = ""
    kept: str = ""
    labelled: bool = False


def cell_depth(counts: Any) -> np.ndarray:
    """Total count (nUMI) of each cell, ``(n_cells,)`` float64."""
    return row_sums(counts)


def largest_rate(counts: Any, depth: np.ndarray) -> np.ndarray:
    """Largest count over depth of each gene, ``(n_genes,)``."""
    counted = depth > 0
    scale = np.where(counted, 1.0 / np.where(counted, depth, 1.0), 0.0)
    if sparse.issparse(counts):
        return sparse.diags(scale).dot(counts).max(axis=0).toarray().ravel()
    return (counts * scale[:, None]).max(axis=0)


def one_hot(codes: np.ndarray, n_codes: int) -> sparse.csr_matrix:
    """Membership of each code, ``(n_codes, n_cells)``."""
    n = len(codes)
    return sparse.csr_matrix((np.ones(n), (codes, np.arange(n))), shape=(n_codes, n))


def _depth(counts: Any, depth: np.ndarray | None) -> np.ndarray:
    return cell_depth(counts) if depth is None else depth.astype(np.float64)


def _checked_depth(
    counts: Any, depth: np.ndarray | None, rows: tuple[int, int], key: str
) -> np.ndarray:
    found = _depth(counts, depth)
    if depth is not None:
        check_depth(found, counts, rows, key)
    return found


def _check_target(target: np.ndarray | None, rows: tuple[int, int], key: str) -> None:
    if target is None:
        return
    wrong = np.flatnonzero(~((target > 0) & (target < np.inf)))
    if len(wrong):
        raise InputError(
            "target-depth",
            f"the depth to correct a cell to is {target[wrong[0]]}",
            place=f"obs column {key!r}, row {rows[0] + int(wrong[0])}",
            remedy="give positive depths in UMI; the logarithm is taken here",
        )


def saturated(counts: Any, depth: np.ndarray) -> np.ndarray:
    """``sum_i y_i log(y_i / n_i)`` of each gene, ``(n_genes,)``: what deviances are measured to."""
    entries = sparse.coo_matrix(counts)
    stored = entries.data > 0
    values = entries.data[stored].astype(np.float64)
    terms = values * np.log(values / depth[entries.row[stored]])
    return np.bincount(entries.col[stored], terms, minlength=counts.shape[1])


def sum_strata(
    rows: tuple[int, int],
    *,
    counts: Any,
    batch: np.ndarray,
    labels: np.ndarray,
    depth: np.ndarray | None = None,
    target: np.ndarray | None = None,
    n_batches: int,
    n_labels: int,
    keys: Keys,
    deviance: bool = False,
    dispersion: bool = False,
    effects: bool = False,
) -> Arrays:
    """Sums over (batch, label) strata: all that the fit of labelled cells needs."""
    check_counts(counts, rows)
    check_codes(batch, rows, keys.batch)
    check_codes(labels, rows, keys.clusters)
    depth = _checked_depth(counts, depth, rows, keys.depth)
    _check_target(target, rows, keys.target)
    strata, shape = batch * n_labels + labels, (n_batches, n_labels)
    n_strata = n_batches * n_labels
    more = {"saturated": saturated(counts, depth)} if deviance else {}
    if effects:
        powers, depth_powers = power_sums(labels, n_labels, counts, depth)
        more |= {"powers": powers, "depth_powers": depth_powers}
    if dispersion:
        squares = counts.astype(np.float64)
        squares = squares.multiply(squares).tocsr() if sparse.issparse(counts) else squares**2
        weighted = one_hot(strata, n_strata).multiply(depth).tocsr() @ counts
        weighted = weighted.toarray() if sparse.issparse(weighted) else weighted
        more |= {
            "squares": sum_by_group(strata, n_strata, squares).reshape(*shape, -1),
            "depth_counts": weighted.reshape(*shape, -1),
        }
    if effects or dispersion:
        squared = np.bincount(strata, depth**2, n_strata).reshape(shape)
        more |= {"depth_squares": squared}
    return {
        **more,
        "counts": sum_by_group(strata, n_strata, counts).reshape(*shape, -1),
        "depth": np.bincount(strata, depth, n_strata).reshape(shape),
        "fitted": np.bincount(strata, depth > 0, n_strata).reshape(shape),
        "largest_rate": largest_rate(counts, depth),
        "empty_cells": (depth <= 0).sum(),
    }


def sum_clusters(
    rows: tuple[int, int],
    *,
    counts: Any,
    batch: np.ndarray,
    weights: np.ndarray,
    kept: np.ndarray | None = None,
    depth: np.ndarray | None = None,
    target: np.ndarray | None = None,
    n_batches: int,
    seed: int,
    keys: Keys,
) -> Arrays:
    """Sums that decide merging and sampling, and the counts of each gene in each batch."""
    check_counts(counts, rows)
    check_codes(batch, rows, keys.batch)
    if keys.labelled:  # one-hot labels, NaN where missing
        check_codes(np.where(np.isnan(weights[:, 0]), -1, 0), rows, keys.clusters)
    check_weights(weights, rows, keys.clusters)
    depth = _checked_depth(counts, depth, rows, keys.depth)
    _check_target(target, rows, keys.target)
    if kept is not None:
        check_codes(np.where(np.isnan(kept).any(axis=1), -1, 0), rows, keys.kept)
    weights = weights.astype(np.float64)
    n_clusters = weights.shape[1]
    cells = np.where(depth > 0, 1.0, 0.0)
    strata = batch * n_clusters + drawn_labels(rows, weights, seed)
    return {
        "gene_counts": sum_by_group(batch, n_batches, counts),
        "mass": sum_by_group(batch, n_batches, weights * cells[:, None]),
        "sums": weights.sum(axis=0),
        "gram": weights.T @ weights,
        "cells": np.bincount(strata, cells, n_batches * n_clusters).reshape(n_batches, n_clusters),
        "n": np.int64(len(batch)),
        "largest_rate": largest_rate(counts, depth),
        "empty_cells": (depth <= 0).sum(),
    }


def drawn_labels(rows: tuple[int, int], weights: np.ndarray, seed: int) -> np.ndarray:
    """Draw one label per cell from its soft clusters (spec 2.6), keyed by the cell."""
    key = stream_key(seed, "crescendo label", 0)
    u = array_module(weights).asarray(uniforms(key, rows[0], len(weights)))
    cumulative = np.cumsum(weights, axis=1)
    return (u[:, None] * cumulative[:, -1:] > cumulative).sum(axis=1)


def sample_cells(
    rows: tuple[int, int],
    *,
    counts: Any,
    batch: np.ndarray,
    weights: np.ndarray,
    kept: np.ndarray | None = None,
    depth: np.ndarray | None = None,
    target: np.ndarray | None = None,
    groups: Arrays,
    seed: int,
) -> Arrays:
    """Cells whose priority is below the threshold of their stratum, with all the fit needs."""
    priority = uniforms(stream_key(seed, "crescendo sample", 0), rows[0], len(batch))
    depth = _depth(counts, depth)
    label = drawn_labels(rows, weights.astype(np.float64), seed)
    chosen = np.flatnonzero((priority < groups["threshold"][batch, label]) & (depth > 0))
    picked = sparse.csr_matrix(counts[chosen])
    covariates = {} if kept is None else {"kept": kept[chosen]}
    return {
        **covariates,
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
    rows: tuple[int, int],
    *,
    counts: Any,
    batch: np.ndarray,
    key: str,
    dtype: str,
    outputs: tuple[str, ...],
) -> Arrays:
    """Counts as they are (one batch: nothing to correct)."""
    check_counts(counts, rows)
    check_codes(batch, rows, key)
    copied = counts.astype(dtype)
    return dict.fromkeys(outputs, copied)
