"""A pass of the Poisson factorisation over a tile on a device (CuPy): twin of `tile_pass`.

Sums have a fixed order, that of the processor or one of their own: they agree to rounding, and
two runs on a device agree in every bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stdist.kernels.array_module import array_module
from stdist.kernels.poisson_factors_cuda import TOTALS, Groups, Matrix, Table, improve
from stdist.kernels.poisson_factors_rows import SMALLEST
from stdist.kernels.poisson_factors_spots import Options

Array = Any  # of CuPy


def device_pass(
    cells: Any,
    spots: Any,
    spot: Array,
    groups: tuple[NDArray[np.int64], ...],
    rows: Any,
    Q: Array,
    phi: Array,
    options: Options,
    gauge: Array | None = None,
) -> tuple[Table, dict[str, Any]]:
    """Improve the rows of a tile with the factors fixed, on the device that holds them.

    Parameters
    ----------
    cells, spots
        CSR rows on the device: ``indptr``, ``indices``, ``data`` and ``shape``.
    groups
        Order of cells, starts of groups in it, and their spots; in host memory.
    spot, rows, Q, phi, gauge
        As of `stdist.kernels.poisson_factors.tile_pass`, on the device.
    options
        How rows move.

    Returns
    -------
    rows, statistics
        As of `tile_pass`, on the device.
    """
    xp = array_module(rows.p)
    h, n_panel = Q.shape[0], cells.shape[1]
    tables = _padded(Q[:, :n_panel].T, xp), _padded((Q * phi).T, xp)
    begin = _begin(rows, gauge, xp)
    of_spot = xp.asarray(groups[2])
    passed = improve(
        _matrix(cells),
        _matrix(spots),
        Groups(*map(xp.asarray, groups)),
        begin,
        tables,
        h,
        options.rounds,
        options.exponent,
        (options.entropy, options.l2),
    )
    new, mapped = passed.rows, spot >= 0
    explained = tables[1] * passed.of_spots
    spot_counts = explained.sum(axis=1)
    explained[:n_panel] += tables[0] * passed.of_cells
    empty = xp.ones(spots.shape[0], dtype=bool)
    empty[of_spot[of_spot >= 0]] = False
    per_spot = xp.concatenate([xp.zeros(1), xp.cumsum(spots.data.astype(np.float64))])
    per_spot = per_spot[spots.indptr[1:]] - per_spot[spots.indptr[:-1]]
    losses = {name: passed.totals[:, at].sum() for at, name in enumerate(TOTALS[:5])}
    statistics = {
        "factor_counts": xp.ascontiguousarray(explained[:, :h].T),
        "cell_mass": (new.n[:, None] * new.p).sum(axis=0)[:h],
        "spot_mass": (xp.where(mapped, new.m, 0.0)[:, None] * new.p).sum(axis=0)[:h, None],
        "spot_counts": spot_counts,
        **losses,
        "n_cells": len(spot),
        "n_spots": (~empty).sum(),
        "empty_spots": empty.sum(),
        "empty_counts": per_spot[empty].sum(),
    }
    return Table(new.p[:, :h].copy(), new.n, xp.where(mapped, new.m, rows.m)), statistics


def _matrix(rows: Any) -> Matrix:
    return Matrix(
        rows.indptr.astype(np.int64), rows.indices.astype(np.int32), rows.data.astype(np.float32)
    )


def _padded(table: Array, xp: Any) -> Array:
    out = xp.zeros((len(table), -(-table.shape[1] // 8) * 8))
    out[:, : table.shape[1]] = table
    return out


def _begin(rows: Any, gauge: Array | None, xp: Any) -> Table:
    """A copy of the rows, padded; with a gauge their factors scaled, and rows normalised again."""
    p, n, m = _padded(rows.p, xp), rows.n.astype(np.float64), rows.m.astype(np.float64)
    if gauge is not None:
        own = rows.p * gauge
        scale = own.sum(axis=1)
        p[:, : own.shape[1]] = xp.maximum(own / scale[:, None], SMALLEST)
        n, m = n * scale, m * scale
    return Table(p, n, m)
