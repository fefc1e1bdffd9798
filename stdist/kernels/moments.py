"""Means and (co)variances of columns, mergeable between tiles without losing digits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Moments = dict[str, Any]


def dense_rows(values: Any) -> NDArray[np.float64]:
    """Rows as a dense float64 array, whatever they are stored as."""
    if sparse.issparse(values):
        return np.asarray(values.toarray(), dtype=np.float64)
    return np.asarray(values, dtype=np.float64)


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
