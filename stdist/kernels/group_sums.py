"""Sums of rows by group: dense rows of any dtype or CSR, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy import sparse

from stdist.kernels.array_module import array_module
from stdist.kernels.moments import membership_sums

Floats = NDArray[np.float64]


def sum_by_group(
    codes: NDArray[Any], n_groups: int, values: Any, *, squares: bool = False
) -> Floats:
    """Sum the rows of each group, or their squares.

    Parameters
    ----------
    codes
        Group of each row, ``(n_rows,)`` integers; rows of negative codes are left out.
    n_groups
        Number of groups.
    values
        Rows, ``(n_rows, n_columns)``, dense or CSR.
    squares
        Sum the squares of the values.

    Returns
    -------
    ndarray
        ``(n_groups, n_columns)`` float64; exact for counts.

    Examples
    --------
    >>> sum_by_group(np.array([1, 0, 1]), 2, np.array([[1, 2], [3, 4], [5, 6]]))
    array([[3., 4.],
           [6., 8.]])
    """
    if array_module(values) is not np:
        power = values.astype(np.float64) ** (2 if squares else 1)
        return membership_sums(codes, n_groups, power)
    total = np.zeros((n_groups, values.shape[1]))
    if sparse.issparse(values):
        _add_entries(codes, values.indptr, values.indices, values.data, squares, total)
    else:
        _add_rows(codes, values, squares, total)
    return total


@njit(nogil=True, cache=True)
def _add_rows(codes: NDArray[Any], values: NDArray[Any], squares: bool, total: Floats) -> None:
    for row in range(values.shape[0]):
        if codes[row] < 0:
            continue
        sums = total[codes[row]]
        if squares:
            for column in range(values.shape[1]):
                sums[column] += np.float64(values[row, column]) * values[row, column]
        else:
            for column in range(values.shape[1]):
                sums[column] += values[row, column]


@njit(nogil=True, cache=True)
def _add_entries(
    codes: NDArray[Any],
    indptr: NDArray[Any],
    indices: NDArray[Any],
    data: NDArray[Any],
    squares: bool,
    total: Floats,
) -> None:
    for row in range(len(indptr) - 1):
        if codes[row] < 0:
            continue
        sums = total[codes[row]]
        for entry in range(indptr[row], indptr[row + 1]):
            value = np.float64(data[entry])
            sums[indices[entry]] += value * value if squares else value
