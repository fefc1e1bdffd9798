"""Harmony's passes over cells: soft clusters of a tile, their sums, and the correction.

Soft clusters are a function of a row and of small tables: ``softmax(2 <z, y_k> / sigma + p_bk)``
with the row's unit vector z, the centroids y and the logarithm p of the penalty of its stratum.
So they need not be kept between passes. Rows and products are float32, sums over rows float64.
The type of the rows chooses the processor: NumPy arrays run in Numba, CuPy arrays on their device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stdist.kernels import harmony_device as device
from stdist.kernels import harmony_numba as compiled
from stdist.kernels.array_module import array_module
from stdist.kernels.harmony_numba import Codes, Double, Single


@dataclass(frozen=True)
class Assignment:
    """The tables that turn unit rows into soft clusters.

    Attributes
    ----------
    directions
        ``2 / sigma`` times the centroids, ``(n_dims, n_clusters)`` float32.
    penalty
        Logarithm of the penalty, ``(n_strata, n_clusters)`` float32.
    """

    directions: Single
    penalty: Single

    @classmethod
    def of(cls, centroids: Double, log_penalty: Double, sigma: float) -> Assignment:
        """Make them from centroids ``(n_clusters, n_dims)`` and penalties of strata."""
        xp = array_module(centroids)
        directions = xp.ascontiguousarray((2 / sigma) * centroids.T, np.float32)
        return cls(directions, xp.ascontiguousarray(log_penalty, np.float32))


def soft_clusters(unit: Single, strata: Codes, tables: Assignment) -> Single:
    """Soft clusters of unit rows (or rows of zeros), ``(n_rows, n_clusters)`` float32."""
    if array_module(unit) is not np:
        return device.assign_rows(unit, strata, tables.directions, tables.penalty)[0]
    weights = np.empty((len(unit), tables.penalty.shape[1]), np.float32)
    compiled.assign_rows(unit, strata, tables.directions, tables.penalty, weights)
    return weights


def mass_sums(unit: Single, strata: Codes, tables: Assignment) -> dict[str, Any]:
    """Sums of the soft clusters of unit rows.

    Returns
    -------
    observed
        Masses of the strata, ``(n_strata, n_clusters)``.
    log_sum
        Sum over rows of the logarithm of the normaliser, with the distance ``-2 <z, y>`` (its
        constant 2 left out): with it the objective needs no weights.
    """
    if array_module(unit) is not np:
        return _masses_on_device(unit, strata, tables)[0]
    return _sums(unit, strata, tables, unit[:0], np.empty((0, 0), np.int32), 0)[0]


def row_sums(
    unit: Single, strata: Codes, tables: Assignment, values: Single, levels: NDArray[np.integer]
) -> tuple[dict[str, Any], Double]:
    """`mass_sums`, and weighted sums of `values` by level of the strata.

    Parameters
    ----------
    values
        ``(n_rows, n_dims)`` float32.
    levels
        Levels of each stratum, ``(n_strata, n_variables)``.

    Returns
    -------
    dict
        As `mass_sums`.
    sums
        ``(n_levels, n_dims, n_clusters)``.
    """
    n_levels = int(levels.max()) + 1
    xp = array_module(unit)
    if xp is not np:
        masses, weights = _masses_on_device(unit, strata, tables)
        return masses, device.sum_rows(strata, weights, values, xp.asarray(levels), n_levels)
    order = np.argsort(strata, kind="stable")
    strata = strata[order]
    codes = np.ascontiguousarray(levels[strata].T, np.int32)
    return _sums(unit[order], strata, tables, values[order], codes, n_levels)


def _masses_on_device(unit: Any, strata: Any, tables: Assignment) -> tuple[dict[str, Any], Any]:
    weights, log_sum = device.assign_rows(unit, strata, tables.directions, tables.penalty)
    observed = device.sum_weights(strata, weights, len(tables.penalty))
    return {"observed": observed, "log_sum": log_sum}, weights


def _sums(
    unit: Single, strata: Codes, tables: Assignment, values: Single, codes: Codes, n_codes: int
) -> tuple[dict[str, Any], Double]:
    n_strata, n_clusters = tables.penalty.shape
    observed = np.zeros((n_strata, n_clusters))
    sums = np.zeros((n_codes, values.shape[1], n_clusters))
    log_sum = compiled.sum_rows_of_round(
        unit, strata, tables.directions, tables.penalty, observed, values, codes, sums
    )
    return {"observed": observed, "log_sum": np.float64(log_sum)}, sums


def corrected_rows(
    values: Single, unit: Single, strata: Codes, tables: Assignment, shift: Single
) -> Single:
    """Rows without their batch effects.

    Parameters
    ----------
    values, unit
        Uncorrected rows, and the unit rows that decide their soft clusters.
    shift
        What a cluster subtracts in a stratum, ``(n_strata, n_dims, n_clusters)`` float32.
    """
    if array_module(unit) is not np:
        return device.correct_rows(values, strata, soft_clusters(unit, strata, tables), shift)
    out = np.empty_like(values)
    compiled.correct_rows(values, unit, strata, tables.directions, tables.penalty, shift, out)
    return out


def scale_rows(rows: Single) -> Single:
    """Scale rows to length one, in place where they can be; rows of zeros stay."""
    if array_module(rows) is not np:
        return device.scale_rows(rows)
    compiled.scale_rows(rows)
    return rows
