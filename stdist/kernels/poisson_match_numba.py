"""Numba kernels of :mod:`stdist.kernels.poisson_match` for tiles in host memory.

A tile is handled in panels of genes, so that coefficients and buffers stay in the nearest caches,
and in three vectorised sweeps and one scalar: means, uniforms, exponentials of the entries left
open, and their quantiles.  Sums over clusters run in a fixed order for every gene by itself: a
result does not depend on the other genes or cells of the tile.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from stdist.kernels.keyed_random import row_hash, uniform_of_hash
from stdist.kernels.poisson_quantile import matched_count
from stdist.kernels.portable_math import exp

MAXIMUM_MEAN = 2.0**31

_PANEL = 128  # genes
_UNROLL = 4  # clusters added per pass over a panel
BAD_MEAN, NEGATIVE_COUNT, OVERFLOW = 0, 1, 2  # positions in the status

FloatArray = NDArray[np.float64]
IntegerArray = NDArray[Any]
Workspace = tuple[
    FloatArray, FloatArray, NDArray[np.bool_], NDArray[np.int64], FloatArray, FloatArray
]


@njit(nogil=True, cache=True)
def _panel_width(n_genes: int) -> int:
    n_panels = max(1, (n_genes + _PANEL - 1) // _PANEL)
    return max(8, ((n_genes + n_panels - 1) // n_panels + 7) // 8 * 8)


@njit(nogil=True, cache=True)
def _workspace(width: int) -> Workspace:
    return (
        np.zeros(2 * width),
        np.empty(width),
        np.empty(width, np.bool_),
        np.empty(width, np.int64),
        np.empty(width),
        np.empty(width),
    )


@njit(nogil=True, cache=True)
def _record(status: NDArray[np.int64], problem: int, position: int) -> None:
    status[problem] = min(status[problem], position)


@njit(inline="always")
def _is_mean(value: float) -> bool:
    return (value >= 0.0) & (value <= MAXIMUM_MEAN)


@njit(nogil=True, cache=True)
def _match_panel(
    counts: IntegerArray,
    keys: NDArray[np.uint64],
    hashed_row: np.uint64,
    cap: bool,
    position: int,
    out: IntegerArray,
    status: NDArray[np.int64],
    workspace: Workspace,
) -> None:
    """Match up to width genes of one cell; workspace[0] holds source and then target means."""
    means, u, is_open, open_genes, source_zero, target_zero = workspace
    n = counts.size
    width = means.size // 2
    n_bad = 0
    for g in range(n):
        n_bad += not (_is_mean(means[g]) and _is_mean(means[width + g]))
    if n_bad:
        for g in range(n):
            if not (_is_mean(means[g]) and _is_mean(means[width + g])):
                _record(status, BAD_MEAN, position + g)
        return
    # F(0; target) >= u F(0; source) if u <= exp(source - target), of which 1 - (target - source)
    # is a lower bound: such zeros stay zero, among them all with target <= source.
    for g in range(n):
        u[g] = uniform_of_hash(keys[g], hashed_row)
        is_open[g] = (counts[g] != 0) | (u[g] > 1.0 - (means[width + g] - means[g]))
        out[g] = 0
    n_open = 0
    for g in range(n):
        open_genes[n_open] = g
        n_open += is_open[g]
    for j in range(n_open):
        g = open_genes[j]
        source_zero[j] = exp(-means[g])
        target_zero[j] = exp(-means[width + g])
    maximum = np.iinfo(out.dtype).max
    for j in range(n_open):
        g = open_genes[j]
        if counts[g] < 0:
            _record(status, NEGATIVE_COUNT, position + g)
            continue
        matched = matched_count(
            np.float64(counts[g]),
            means[g],
            means[width + g],
            source_zero[j],
            target_zero[j],
            u[g],
            cap,
        )
        if matched <= maximum:
            out[g] = np.int64(matched)
        else:
            _record(status, OVERFLOW, position + g)


@njit(inline="always")
def _add_clusters(
    one: FloatArray,
    two: FloatArray,
    weight: FloatArray,
    coefficients: FloatArray,
) -> None:
    """Add the clusters' terms to the predictors of two cells, in the order of the clusters."""
    n_lanes = coefficients.shape[1]
    for k in range(0, coefficients.shape[0], _UNROLL):
        a0, a1, a2, a3 = weight[0, k], weight[0, k + 1], weight[0, k + 2], weight[0, k + 3]
        b0, b1, b2, b3 = weight[1, k], weight[1, k + 1], weight[1, k + 2], weight[1, k + 3]
        for j in range(n_lanes):
            c0, c1 = coefficients[k, j], coefficients[k + 1, j]
            c2, c3 = coefficients[k + 2, j], coefficients[k + 3, j]
            one[j] = (((one[j] + a0 * c0) + a1 * c1) + a2 * c2) + a3 * c3
            two[j] = (((two[j] + b0 * c0) + b1 * c1) + b2 * c2) + b3 * c3


@njit(nogil=True, cache=True)
def soft(
    counts: IntegerArray,
    weights: NDArray[Any],
    batch: NDArray[np.int32],
    source_depth: FloatArray,
    target_depth: FloatArray,
    source_intercept: FloatArray,
    source_coefficients: FloatArray,
    target_intercept: FloatArray,
    target_coefficients: FloatArray,
    keys: NDArray[np.uint64],
    row_start: int,
    cap: bool,
    out: IntegerArray,
    status: NDArray[np.int64],
) -> None:
    """Match a tile whose means follow from soft cluster assignments."""
    n_cells, n_genes = counts.shape
    n_clusters = weights.shape[1]
    n_padded = (n_clusters + _UNROLL - 1) // _UNROLL * _UNROLL
    width = _panel_width(n_genes)
    coefficients = np.zeros((n_padded, 2 * width))
    intercept = np.zeros(2 * width)
    weight = np.zeros((2, n_padded))
    predictors = np.zeros((2, 2 * width))
    workspace = _workspace(width)
    means = workspace[0]
    order = np.argsort(batch, kind="mergesort")  # neighbours share their coefficients
    for start in range(0, n_genes, width):
        stop = min(start + width, n_genes)
        n = stop - start
        current = -1
        first = 0
        while first < n_cells:
            if batch[order[first]] != current:
                current = batch[order[first]]
                intercept[:n] = source_intercept[current, start:stop]
                intercept[width : width + n] = target_intercept[start:stop]
                for k in range(n_clusters):
                    coefficients[k, :n] = source_coefficients[current, k, start:stop]
                    coefficients[k, width : width + n] = target_coefficients[k, start:stop]
            last = first
            while last < min(first + 2, n_cells) and batch[order[last]] == current:
                for k in range(n_clusters):
                    weight[last - first, k] = weights[order[last], k]
                predictors[last - first] = intercept
                last += 1
            _add_clusters(predictors[0], predictors[1], weight, coefficients)
            for r in range(last - first):
                i = order[first + r]
                for j in range(width):
                    means[j] = source_depth[i] * exp(predictors[r, j])
                    means[width + j] = target_depth[i] * exp(predictors[r, width + j])
                _match_panel(
                    counts[i, start:stop], keys[start:stop], row_hash(np.uint64(row_start + i)),
                    cap, i * n_genes + start, out[i, start:stop], status, workspace,
                )  # fmt: skip
            first = last


@njit(nogil=True, cache=True)
def labelled(
    counts: IntegerArray,
    labels: NDArray[np.int32],
    batch: NDArray[np.int32],
    source_depth: FloatArray,
    target_depth: FloatArray,
    source_rate: FloatArray,
    target_rate: FloatArray,
    keys: NDArray[np.uint64],
    row_start: int,
    cap: bool,
    out: IntegerArray,
    status: NDArray[np.int64],
) -> None:
    """Match a tile whose means follow from one label per cell."""
    n_cells, n_genes = counts.shape
    width = _panel_width(n_genes)
    workspace = _workspace(width)
    means = workspace[0]
    for i in range(n_cells):
        for start in range(0, n_genes, width):
            stop = min(start + width, n_genes)
            source = source_rate[batch[i], labels[i], start:stop]
            target = target_rate[labels[i], start:stop]
            for g in range(stop - start):
                means[g] = source_depth[i] * source[g]
                means[width + g] = target_depth[i] * target[g]
            _match_panel(
                counts[i, start:stop], keys[start:stop], row_hash(np.uint64(row_start + i)), cap,
                i * n_genes + start, out[i, start:stop], status, workspace,
            )  # fmt: skip
