"""Rows of a CSR matrix on a device: dense, and sums of some of them (CuPy).

A matrix is ``(indptr, columns, values)``, without duplicates. Additions have a fixed order, which
CuPy's products of sparse matrices do not promise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stdist.kernels.array_module import array_module

Array = Any  # of CuPy
Ints = NDArray[np.integer]
Matrix = tuple[Array, Array, Array]


def dense_rows(rows: Ints, matrix: Matrix, n_columns: int) -> Array:
    """Rows of a matrix, ``(len(rows), n_columns)`` float64.

    Examples
    --------
    >>> matrix = np.array([0, 1, 1, 3]), np.array([1, 0, 2]), np.array([5.0, 6.0, 7.0])
    >>> dense_rows(np.array([2, 1, 0]), matrix, 3)
    array([[6., 0., 7.],
           [0., 0., 0.],
           [0., 5., 0.]])
    """
    indptr, columns, values = matrix
    xp = array_module(values)
    chosen = xp.asarray(rows)
    last = indptr[chosen + 1]
    ends = xp.cumsum(last - indptr[chosen])
    number = xp.arange(int(ends[-1]))
    row = xp.searchsorted(ends, number, side="right")
    entry = number + (last - ends)[row]
    dense = xp.zeros((len(rows), n_columns))
    dense[row, columns[entry]] = values[entry]
    return dense


def sum_rows(first: Ints, length: Ints, listed: Ints, matrix: Matrix, n_columns: int) -> Array:
    """Sums of the rows ``listed[first[i] : first[i] + length[i]]`` for every `i`, in this order.

    Parameters
    ----------
    first, length, listed
        Lists of rows, in host memory.
    matrix, n_columns
        As in `dense_rows`.

    Examples
    --------
    >>> matrix = np.array([0, 1, 1, 3]), np.array([1, 0, 2]), np.array([5.0, 6.0, 7.0])
    >>> sum_rows(np.array([0, 2]), np.array([2, 0]), np.array([2, 0]), matrix, 3)
    array([[6., 5., 7.],
           [0., 0., 0.]])
    """
    xp = array_module(matrix[2])
    total = xp.zeros((len(first), n_columns))
    for place in range(length.max(initial=0)):
        longer = np.flatnonzero(length > place)
        total[xp.asarray(longer)] += dense_rows(listed[first[longer] + place], matrix, n_columns)
    return total
