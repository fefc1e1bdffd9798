"""Sums, by label, from which moments of residuals follow without a second pass over the cells."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy import sparse

from stdist.kernels.array_module import array_module

Floats = NDArray[np.float64]

COUNT_POWERS = ((2, 0), (1, 1), (4, 0), (3, 1), (2, 2), (1, 3))
"""Powers of count and depth whose products are summed."""
DEPTH_POWERS = (2, 4)


def power_sums(
    labels: NDArray[Any], n_labels: int, counts: Any, depth: Floats
) -> tuple[Floats, Floats]:
    """Sum products of powers of count and depth over the cells of each label.

    Parameters
    ----------
    labels : (n_cells,) int
        Codes ``0 .. n_labels - 1``.
    n_labels : int
    counts : (n_cells, n_genes) array or CSR matrix
        On a device the other arguments are there too, and so are the sums.
    depth : (n_cells,) float64

    Returns
    -------
    powers : (6, n_labels, n_genes) float64
        Sums of ``y**p * n**q`` for every ``(p, q)`` of ``COUNT_POWERS``.
    depth_powers : (2, n_labels) float64
        Sums of ``n**2`` and ``n**4``.

    Examples
    --------
    >>> powers, depth_powers = power_sums(np.zeros(2, int), 1, np.array([[1], [2]]), np.ones(2))
    >>> powers[:, 0, 0], depth_powers[:, 0]
    (array([ 5.,  3., 17.,  9.,  5.,  3.]), array([2., 2.]))
    """
    if array_module(counts) is not np:
        return _products(labels, n_labels, counts, depth)
    depth = np.asarray(depth, dtype=np.float64)
    total = np.zeros((n_labels, counts.shape[1], len(COUNT_POWERS)))
    if sparse.issparse(counts):
        _add_entries(labels, counts.indptr, counts.indices, counts.data, depth, total)
    else:
        _add_rows(labels, np.asarray(counts), depth, total)
    of_depth = np.zeros((len(DEPTH_POWERS), n_labels))
    for total_of_power, q in zip(of_depth, DEPTH_POWERS, strict=True):
        total_of_power[:] = np.bincount(labels, depth**q, n_labels)
    return np.ascontiguousarray(np.moveaxis(total, 2, 0)), of_depth


def _products(labels: Any, n_labels: int, counts: Any, depth: Any) -> tuple[Any, Any]:
    """Sum on a device."""
    xp = array_module(counts)
    member = (xp.arange(n_labels)[:, None] == labels).astype(np.float64)
    values = counts.astype(np.float64)
    powers = [(member * depth**q) @ values**p for p, q in COUNT_POWERS]
    return xp.stack(powers), xp.stack([member @ depth**q for q in DEPTH_POWERS])


def residual_moments(rate: Floats, powers: Floats, depth_powers: Floats) -> tuple[Floats, Floats]:
    """Sums of squares and of fourth powers of ``y - n * rate``, ``(n_labels, n_genes)`` each.

    Parameters
    ----------
    rate : (n_labels, n_genes) float64
    powers, depth_powers
        Of :func:`power_sums`.
    """
    two, one_one, four, three_one, two_two, one_three = powers
    n_two, n_four = depth_powers[:, :, None]
    second = two - rate * (2.0 * one_one - rate * n_two)
    fourth = four - rate * (
        4.0 * three_one - rate * (6.0 * two_two - rate * (4.0 * one_three - rate * n_four))
    )
    return np.maximum(second, 0.0), np.maximum(fourth, 0.0)


@njit(inline="always")
def _add(count: float, depth: float, total: Floats) -> None:
    product = count * depth
    square = count * count
    total[0] += square
    total[1] += product
    total[2] += square * square
    total[3] += square * product
    total[4] += product * product
    total[5] += product * depth * depth


@njit(nogil=True, cache=True)
def _add_rows(labels: NDArray[Any], counts: NDArray[Any], depth: Floats, total: Floats) -> None:
    for row in range(counts.shape[0]):
        for gene in range(counts.shape[1]):
            if counts[row, gene] != 0:
                _add(np.float64(counts[row, gene]), depth[row], total[labels[row], gene])


@njit(nogil=True, cache=True)
def _add_entries(
    labels: NDArray[Any],
    offsets: NDArray[Any],
    genes: NDArray[Any],
    counts: NDArray[Any],
    depth: Floats,
    total: Floats,
) -> None:
    for row in range(len(offsets) - 1):
        for entry in range(offsets[row], offsets[row + 1]):
            _add(np.float64(counts[entry]), depth[row], total[labels[row], genes[entry]])
