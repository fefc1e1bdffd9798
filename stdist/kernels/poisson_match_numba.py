"""Numba kernels of :mod:`stdist.kernels.poisson_match` for tiles in host memory.

A tile is handled in panels of genes, so that coefficients and buffers stay in the nearest caches,
and in vectorised sweeps: means, uniforms, and for the entries left open exponentials and the
quantiles below 4.  Only the other quantiles are found one by one.  Sums over clusters run in a
fixed order for every gene by itself: a result does not depend on the other genes or cells.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from stdist.kernels.keyed_random import row_hash, uniform_of_hash
from stdist.kernels.poisson_quantile import BULK, LARGE_MEAN, matched_count
from stdist.kernels.portable_math import exp

MAXIMUM_MEAN = 2.0**31

_PANEL = 128  # genes
_UNROLL = 4  # clusters added per pass over a panel
BAD_MEAN, NEGATIVE_COUNT, OVERFLOW = 0, 1, 2  # positions in the status

FloatArray = NDArray[np.float64]
IntegerArray = NDArray[Any]
Workspace = tuple[FloatArray, FloatArray, NDArray[np.bool_], NDArray[np.int64], FloatArray]


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
        np.empty((7, width)),
    )


@njit(nogil=True, cache=True)
def _record(status: NDArray[np.int64], problem: int, position: int) -> None:
    status[problem] = min(status[problem], position)


@njit(inline="always")
def _is_mean(value: float) -> bool:
    return (value >= 0.0) & (value <= MAXIMUM_MEAN)


@njit(nogil=True, cache=True)
def _match_small(entries: FloatArray, n: int) -> None:
    """Quantiles of entries with counts and results below 4 (row 6), -1 for all others.

    Rows 0 to 5 are counts, uniforms, means and probabilities of zero of the source and the target.
    The sums are those of :func:`stdist.kernels.poisson_quantile.matched_count`, bit for bit.
    """
    count, u, source, target = entries[0], entries[1], entries[2], entries[3]
    source_zero, target_zero, matched = entries[4], entries[5], entries[6]
    for j in range(n):
        c, s, t = count[j], source[j], target[j]
        p0 = source_zero[j]
        p1 = p0 * s
        p2 = p1 * (s / 2.0)
        p3 = p2 * (s / 3.0)
        below = (p0 + p1) + p2 if c > 2.0 else (p0 + p1 if c > 1.0 else (p0 if c > 0.0 else 0.0))
        probability = p3 if c > 2.0 else (p2 if c > 1.0 else (p1 if c > 0.0 else p0))
        q = below + u[j] * probability
        t0 = target_zero[j]
        t1 = t0 * t
        t2 = t1 * (t / 2.0)
        f1 = t0 + t1
        f2 = f1 + t2
        f3 = f2 + t2 * (t / 3.0)
        small = (c >= 0.0) & (c < 4.0) & (q <= BULK) & (q <= f3) & (s != t)
        small &= (s <= LARGE_MEAN) & (t <= LARGE_MEAN)
        x = 3.0 if f2 < q else (2.0 if f1 < q else (1.0 if t0 < q else 0.0))
        matched[j] = x if small else -1.0


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
    means, u, is_open, open_genes, entries = workspace
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
        entries[0, j], entries[1, j] = counts[g], u[g]
        entries[2, j], entries[3, j] = means[g], means[width + g]
    for j in range(n_open):
        entries[4, j] = exp(-entries[2, j])
        entries[5, j] = exp(-entries[3, j])
    _match_small(entries, n_open)
    maximum = np.iinfo(out.dtype).max
    for j in range(n_open):
        g = open_genes[j]
        count, uniform, source, target, source_zero, target_zero, matched = entries[:, j]
        if count < 0.0:
            _record(status, NEGATIVE_COUNT, position + g)
            continue
        if matched < 0.0:
            matched = matched_count(count, source, target, source_zero, target_zero, uniform, cap)
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
