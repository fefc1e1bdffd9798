"""Sums, means and (co)variances of a tile's rows and columns.

Tiles are NumPy arrays or CSR rows, or CuPy arrays: then results are on the device too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import sparse

from stdist.kernels.array_module import array_module

Moments = dict[str, Any]


def dense_rows(values: Any) -> Any:
    """Rows as a dense float64 array, whatever they are stored as."""
    if sparse.issparse(values):
        return np.asarray(values.toarray(), dtype=np.float64)
    return array_module(values).asarray(values, dtype=np.float64)


def row_sums(values: Any) -> Any:
    """Sum of each row, float64.

    Examples
    --------
    >>> row_sums(sparse.csr_matrix([[1, 2], [0, 4]]))
    array([3., 4.])
    """
    total = values.sum(axis=1)
    return (np.asarray(total) if sparse.issparse(values) else total).astype(np.float64).ravel()


def column_sums(values: Any) -> Any:
    """Sum of each column, float64.

    Examples
    --------
    >>> column_sums(np.array([[1, 2], [0, 4]], np.uint8))
    array([1., 6.])
    """
    total = values.sum(axis=0)
    return (np.asarray(total) if sparse.issparse(values) else total).astype(np.float64).ravel()


def membership_sums(codes: Any, n_groups: int, values: Any) -> Any:
    """Sum rows by group as a product, float64: in a fixed order on a device too.

    Additions by index, as in ``bincount``, have no order there.

    Parameters
    ----------
    codes
        Group of each row, ``(n_rows,)`` integers; rows of negative codes are left out.
    n_groups
        Number of groups.
    values
        Numbers, ``(n_rows,)`` or ``(n_rows, n_columns)``, dense.

    Returns
    -------
    array of shape ``(n_groups,)`` or ``(n_groups, n_columns)``

    Examples
    --------
    >>> membership_sums(np.array([0, 1, 0]), 2, np.array([[1, 2], [3, 4], [5, 6]]))
    array([[6., 8.],
           [3., 4.]])
    """
    member = array_module(values).arange(n_groups)[:, None] == codes
    return member.astype(np.float64) @ values.astype(np.float64)


def column_moments(values: Any, *, covariance: bool = False) -> Moments:
    """Count, mean and sum of squared deviations of each column of a tile.

    Parameters
    ----------
    values
        Tile of shape ``(n_rows, n_columns)``, dense or CSR.
    covariance
        Return the matrix of products of deviations, ``(n_columns, n_columns)``, instead of its
        diagonal.

    Returns
    -------
    dict
        ``n`` (float64), ``mean`` ``(n_columns,)`` and ``deviations``.

    Examples
    --------
    >>> column_moments(np.array([[1.0], [3.0]]))["deviations"]
    array([2.])
    """
    dense = dense_rows(values)
    mean = dense.mean(axis=0)
    centred = dense - mean
    squares = centred.T @ centred if covariance else (centred * centred).sum(axis=0)
    return {"n": np.float64(len(dense)), "mean": mean, "deviations": squares}


def merge_moments(left: Mapping[str, Any], right: Mapping[str, Any]) -> Moments:
    """Merge the moments of two neighbours (Chan, Golub and LeVeque 1983, equation 2.1).

    Examples
    --------
    >>> tiles = [column_moments(np.array([[x]])) for x in (1.0, 3.0)]
    >>> merge_moments(*tiles)["deviations"]
    array([2.])
    """
    n = left["n"] + right["n"]
    shift = right["mean"] - left["mean"]
    product = np.outer(shift, shift) if left["deviations"].ndim == 2 else shift * shift
    return {
        "n": n,
        "mean": left["mean"] + shift * (right["n"] / n),
        "deviations": left["deviations"]
        + right["deviations"]
        + product * (left["n"] * right["n"] / n),
    }
