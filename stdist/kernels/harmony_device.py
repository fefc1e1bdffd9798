"""Harmony's passes over cells on a device: the loops of `harmony_numba` as products (CuPy)."""

from __future__ import annotations

from typing import Any

import numpy as np

from stdist.kernels.array_module import array_module
from stdist.kernels.moments import membership_sums

Array = Any  # of CuPy


def assign_rows(
    unit: Array, strata: Array, directions: Array, penalty: Array
) -> tuple[Array, Array]:
    """Soft clusters, ``(n_rows, n_clusters)`` float32, and the sum of the log normalisers."""
    xp = array_module(unit)
    logits = unit @ directions + penalty[strata]
    top = logits.max(axis=1, keepdims=True)
    weights = xp.exp(logits - top)
    total = weights.sum(axis=1, keepdims=True)
    log_sum = (top + xp.log(total)).astype(np.float64).sum()
    return weights / total, log_sum


def sum_rows(strata: Array, weights: Array, values: Array, levels: Array, n_levels: int) -> Array:
    """Sum ``values_i weights_i`` by level, ``(n_levels, n_dims, n_clusters)`` float64."""
    xp = array_module(weights)
    rows = values.astype(np.float64)
    sums = xp.zeros((n_levels * rows.shape[1], weights.shape[1]))
    for variable in range(levels.shape[1]):
        member = levels[:, variable][strata][:, None] == xp.arange(n_levels)
        design = member[:, :, None].astype(np.float64) * rows[:, None, :]
        sums = sums + design.reshape(len(rows), -1).T @ weights.astype(np.float64)
    return sums.reshape(n_levels, rows.shape[1], -1)


def sum_weights(strata: Array, weights: Array, n_strata: int) -> Array:
    """Masses of the strata, ``(n_strata, n_clusters)`` float64."""
    return membership_sums(strata, n_strata, weights)


def correct_rows(values: Array, strata: Array, weights: Array, shift: Array) -> Array:
    """Subtract what each cluster shifts in the stratum of a row."""
    return values - (shift[strata] @ weights[:, :, None])[:, :, 0]


def scale_rows(rows: Array) -> Array:
    """Rows of length one; rows of zeros stay."""
    xp = array_module(rows)
    length = xp.sqrt((rows * rows).sum(axis=1, keepdims=True))
    return rows / xp.where(length > 0, length, 1)
