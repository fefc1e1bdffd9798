"""Moran's I with row-standardised weights, from sums that add up over blocks of cells.

With m the mean of a gene over n cells and w_ij = 1 / (number of neighbours of i) for its
neighbours j::

    I = n / W * sum_ij w_ij (x_i - m)(x_j - m) / sum_i (x_i - m)^2,    W = sum_ij w_ij

(Moran 1950). Under independent normal values (Cliff and Ord 1981) I has mean -1 / (n - 1) and

    var = (n^2 S1 - n S2 + 3 W^2) / ((n - 1)(n + 1) W^2) - 1 / (n - 1)^2
    S1 = sum_ij (w_ij + w_ji)^2 / 2,    S2 = sum_i (sum_j w_ij + sum_j w_ji)^2
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.special import ndtr

from stdist.kernels.array_module import array_module
from stdist.kernels.device_rows import dense_rows, sum_rows

Ints = NDArray[np.int64]
Rows = NDArray[np.int32]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

_FLAT = 1e-12
_DENSE_ROWS = 4096  # on a device at once


def moran_sums(
    own: Mask,
    graph: tuple[Ints, Rows],
    expression: tuple[Any, Any, Any],
    n_genes: int,
) -> dict[str, Any]:
    """Sums over the own cells of a block.

    Parameters
    ----------
    own
        bool ``(n_cells,)``: cells that are summed over.
    graph
        Neighbours (CSR) of the own cells, of their neighbours, and of all whose neighbour an own
        cell is.
    expression
        CSR rows of all cells: ``indptr`` int64, ``genes`` int32, ``values`` float64. Where they
        are on a device, genes are summed there.
    n_genes
        Number of columns.

    Returns
    -------
    dict
        ``(n_genes,)`` float64: ``x``, ``xx``, ``xwx``, ``wx`` (sum of w_ij x_i) and ``xw`` (sum
        of w_ij x_j); scalars ``n`` (cells), ``w``, ``s1``, ``s2``. They add up over blocks.

    Examples
    --------
    >>> graph = np.array([0, 1, 2]), np.array([1, 0], np.int32)
    >>> rows = np.array([0, 0, 1]), np.array([0], np.int32), np.array([1.0])
    >>> moran_sums(np.ones(2, bool), graph, rows, 1)["s1"]
    np.float64(4.0)
    """
    genes: Any
    if array_module(expression[2]) is np:
        genes, weights = _moran_sums(own, *graph, *expression, n_genes)
    else:
        genes = _genes_on_device(own, graph, expression, n_genes)
        start, no_genes, no_values = (
            np.zeros(len(own) + 1, np.int64),
            np.empty(0, np.int32),
            np.empty(0),
        )
        weights = _moran_sums(own, *graph, start, no_genes, no_values, 0)[1]
    total: dict[str, Any] = dict(zip(("x", "xx", "xwx", "wx", "xw"), genes, strict=True))
    return total | dict(zip(("n", "w", "s1", "s2"), weights, strict=True))


def _genes_on_device(
    own: Mask, graph: tuple[Ints, Rows], expression: tuple[Any, Any, Any], n_genes: int
) -> Any:
    xp = array_module(expression[2])
    (start, neighbours), cells = graph, np.flatnonzero(own)
    sums = xp.zeros((5, n_genes))
    for first in range(0, len(cells), _DENSE_ROWS):
        chunk = cells[first : first + _DENSE_ROWS]
        degree = start[chunk + 1] - start[chunk]
        x = dense_rows(chunk, expression, n_genes)
        around = sum_rows(start[chunk], degree, neighbours, expression, n_genes)
        around /= xp.asarray(np.maximum(degree, 1))[:, None]
        given = xp.asarray(degree > 0)[:, None]
        sums += xp.stack([part.sum(axis=0) for part in (x, x * x, x * around, given * x, around)])
    return sums


@njit(nogil=True, cache=True)
def _moran_sums(
    own: Mask,
    start: Ints,
    neighbours: Rows,
    indptr: Ints,
    genes: Rows,
    values: Floats,
    n_genes: int,
) -> tuple[Floats, Floats]:
    n_cells = len(own)
    sums, weights = np.zeros((5, n_genes)), np.zeros(4)
    around = np.zeros(n_genes)
    received = np.zeros(n_cells)
    for j in range(n_cells):
        degree = start[j + 1] - start[j]
        for at in range(start[j], start[j + 1]):
            received[neighbours[at]] += 1.0 / degree
    for i in range(n_cells):
        if not own[i]:
            continue
        degree = start[i + 1] - start[i]
        given = 1.0 if degree else 0.0
        weights[0] += 1.0
        weights[1] += given
        weights[3] += (given + received[i]) ** 2
        for entry in range(indptr[i], indptr[i + 1]):
            x = values[entry]
            sums[0, genes[entry]] += x
            sums[1, genes[entry]] += x * x
            sums[3, genes[entry]] += given * x
        if not degree:
            continue
        around[:] = 0.0
        for at in range(start[i], start[i + 1]):
            j = neighbours[at]
            back = 0.0
            for other in range(start[j], start[j + 1]):
                if neighbours[other] == i:
                    back = 1.0 / (start[j + 1] - start[j])
            weights[2] += (1.0 / degree + back) / degree
            for entry in range(indptr[j], indptr[j + 1]):
                around[genes[entry]] += values[entry] / degree
        for entry in range(indptr[i], indptr[i + 1]):
            sums[2, genes[entry]] += values[entry] * around[genes[entry]]
        sums[4] += around
    return sums, weights


def morans_i(sums: Mapping[str, Any]) -> dict[str, Floats]:
    """Moran's I and its test from `moran_sums`, added up.

    Returns
    -------
    dict
        ``morans_i``, ``z`` and ``p_value`` (of I being no larger than under independence),
        ``(n_genes,)``; NaN where a gene does not vary or no cell has a neighbour. Scalars
        ``expected`` and ``variance``.

    Examples
    --------
    >>> graph = np.array([0, 1, 2]), np.array([1, 0], np.int32)
    >>> rows = np.array([0, 0, 1]), np.array([0], np.int32), np.array([1.0])
    >>> morans_i(moran_sums(np.ones(2, bool), graph, rows, 1))["morans_i"]
    array([-1.])
    """
    n, w = float(sums["n"]), float(sums["w"])
    mean = sums["x"] / max(n, 1.0)
    spread = sums["xx"] - mean * sums["x"]
    product = sums["xwx"] - mean * (sums["wx"] + sums["xw"]) + mean * mean * w
    varies = (spread > _FLAT * sums["xx"]) & (w > 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        index = np.where(varies, n / np.float64(w) * product / spread, np.nan)
        expected = -1.0 / np.float64(n - 1.0)
        variance = n * n * sums["s1"] - n * sums["s2"] + 3.0 * w * w
        variance = variance / ((n - 1.0) * (n + 1.0) * np.float64(w * w)) - expected**2
        z = (index - expected) / np.sqrt(variance)
    return {
        "morans_i": index,
        "z": z,
        "p_value": ndtr(-z),
        "expected": expected,
        "variance": variance,
    }
