"""Rounds of the Poisson factorisation on a device (CuPy): twin of `improve_rows` on a tile.

Sums have a fixed order, that of the processor or one of their own: they agree to rounding, and
two runs on a device agree in every bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stdist.kernels.array_module import array_module
from stdist.kernels.poisson_factors_cuda import TOTALS, Groups, Matrix, Table, improve
from stdist.kernels.poisson_factors_spots import Factors, Options, Rows, Sums


def improve_on_device(
    cells: Any,
    spots: Any,
    groups: tuple[NDArray[np.int64], ...],
    begin: Rows,
    factors: Factors,
    options: Options,
) -> tuple[Rows, Sums]:
    """Improve the rows of all groups, and add up the statistics of the last round.

    Parameters
    ----------
    cells, spots
        CSR rows on the device: ``indptr``, ``indices``, ``data`` and ``shape``.
    groups
        Order of cells, starts of groups in it, and their spots; in host memory.
    begin, factors
        On the device; rows are overwritten.
    options
        How rows move.

    Raises
    ------
    NotImplementedError
        With tied scales or dispersions.
    """
    if len(factors.dispersion) or options.tied:
        raise NotImplementedError("dispersions and tied scales are for the host's processor")
    xp = array_module(begin.p)
    found = improve(
        _matrix(cells),
        _matrix(spots),
        Groups(*map(xp.asarray, groups)),
        Table(*begin),
        (factors.cells, factors.spots),
        options.n_factors,
        options.rounds,
        options.exponent,
        (options.entropy, options.l2),
    )
    p, n, m = found.rows
    order, starts, spot_of_group = groups
    mapped = np.empty(len(order))
    mapped[order] = np.repeat(spot_of_group >= 0, np.diff(starts))
    in_spots = m * xp.asarray(mapped)
    sums = Sums(
        found.of_cells,
        found.of_spots,
        (n[:, None] * p).sum(axis=0),
        (in_spots[:, None] * p).sum(axis=0)[None],
        xp.zeros(0),
        found.totals.sum(axis=0)[: TOTALS.index("rejected") + 1],
    )
    return Rows(p, n, m), sums


def _matrix(rows: Any) -> Matrix:
    return Matrix(
        rows.indptr.astype(np.int64), rows.indices.astype(np.int32), rows.data.astype(np.float32)
    )
