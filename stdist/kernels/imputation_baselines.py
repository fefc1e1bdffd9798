"""Imputations that every method must beat: the counts of the spot, and averages of neighbours.

With S(i) the spot of cell i, y the counts of a spot, T its total over the training genes and t
the total of the cell over the training genes, the mean of a held-out gene g is::

    A      y[S(i), g]                                    0 for a cell without a spot
    B      y[S(i), g] t_i / T[S(i)]
    C, D   mean of A, of B over the k nearest cells
    total  t_i

A, B, C and D are the baselines of the SIID article, which does not say how neighbours are found.
What reproduces the recorded scores: the cell itself is one of its k = 10 (or 30) neighbours;
neighbours in expression have the smallest Euclidean distance between ``log1p(100 count / t)`` of
the training genes (no centring, no components), neighbours in space between positions; totals are
those of the training genes alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.spatial import cKDTree

Ints = NDArray[np.int64]
Rows = NDArray[np.int32]
Floats = NDArray[np.float64]
Csr = tuple[Ints, Rows, Floats]

_TARGET = 100.0
_LANES = 8  # cells that share one reading of the others


def nearest_in_space(queries: ArrayLike, cells: ArrayLike, n_neighbors: int) -> Ints:
    """Cells nearest in space, the queried cell among them, nearest first.

    Of cells at the same distance the tree's first are taken: the same ones for the same cells,
    whatever is asked.

    Parameters
    ----------
    queries, cells
        Coordinates, ``(n_queries, 2)`` and ``(n_cells, 2)``.
    n_neighbors
        At most ``n_cells`` are returned.

    Returns
    -------
    ndarray
        int64 ``(n_queries, n_neighbors)``.

    Examples
    --------
    >>> nearest_in_space([[0, 0]], [[5, 0], [0, 0], [1, 0]], 2)
    array([[1, 2]])
    """
    points = np.asarray(cells, np.float64)
    ranks = list(range(1, min(n_neighbors, len(points)) + 1))
    return cKDTree(points).query(np.asarray(queries, np.float64), k=ranks)[1]


def nearest_in_expression(queries: Any, cells: Any, n_neighbors: int) -> Ints:
    """Cells nearest in expression of the training genes, the queried cell among them.

    All pairs of cells are compared over the non-zeros, so take a sample of `cells` where there are
    many: time grows with ``n_queries`` times their stored counts.

    Parameters
    ----------
    queries, cells
        Counts of the training genes, ``(n_queries, n_genes)`` and ``(n_cells, n_genes)``, dense or
        CSR.
    n_neighbors
        At most ``n_cells`` are returned.

    Returns
    -------
    ndarray
        int64 ``(n_queries, n_neighbors)``, nearest first, equal distances by row. The result for a
        cell does not depend on the other queries.

    Examples
    --------
    >>> nearest_in_expression([[4, 0]], [[0, 9], [2, 0], [9, 1]], 2)
    array([[1, 2]])
    """
    near, far = _log_rates(queries), _log_rates(cells)
    n_neighbors = min(n_neighbors, far.shape[0])
    return _nearest(_parts(near), _parts(far), far.shape[1], n_neighbors)


def depth_ratios(cell_total: ArrayLike, spot_total: ArrayLike, spot: ArrayLike) -> Floats:
    """Total of each cell over the total of its spot, 0 without a spot or its counts.

    Parameters
    ----------
    cell_total, spot_total
        Totals over the training genes, ``(n_cells,)`` and ``(n_spots,)``.
    spot
        Spot of each cell, ``(n_cells,)``, -1 for none.

    Examples
    --------
    >>> depth_ratios([6, 6], [12], [0, -1])
    array([0.5, 0. ])
    """
    number = np.asarray(spot)
    total = np.where(number >= 0, np.asarray(spot_total, np.float64)[number], 0.0)
    return np.divide(cell_total, total, out=np.zeros(len(number)), where=total > 0)


def neighbor_means(spot_counts: Any, spot: ArrayLike, weight: ArrayLike, neighbors: Ints) -> Floats:
    """Mean over neighbouring cells of the weighted counts of their spots.

    Baselines A and C have weights 1, B and D the `depth_ratios`; A and B have the cell itself for
    its only neighbour.

    Parameters
    ----------
    spot_counts
        Counts of the held-out genes, ``(n_spots, n_genes)``, dense or CSR.
    spot, weight
        Spot (-1 for none) and weight of every cell, ``(n_cells,)``.
    neighbors
        ``(n_rows, n_neighbors)``, rows of `spot`.

    Returns
    -------
    ndarray
        float64 ``(n_rows, n_genes)``.

    Examples
    --------
    >>> neighbor_means(np.array([[4.0], [8.0]]), [0, 1, -1], np.ones(3), np.array([[0, 1], [2, 1]]))
    array([[6.],
           [4.]])
    """
    of_neighbor = np.asarray(spot)[neighbors]
    share = np.where(of_neighbor >= 0, np.asarray(weight)[neighbors], 0.0) / neighbors.shape[1]
    start = np.arange(len(neighbors) + 1) * neighbors.shape[1]
    shape = (len(neighbors), spot_counts.shape[0])
    average = sparse.csr_matrix((share.ravel(), of_neighbor.clip(0).ravel(), start), shape)
    means = average @ spot_counts
    return np.asarray(means.toarray() if sparse.issparse(means) else means, np.float64)


def baseline_means(
    rows: tuple[int, int],
    spot_counts: Any,
    spot: ArrayLike,
    cell_total: ArrayLike,
    spot_total: ArrayLike,
    neighbors: Mapping[str, Ints],
) -> dict[str, Floats]:
    """All baselines for the held-out genes of a range of cells.

    Parameters
    ----------
    rows
        First cell and the one after the last.
    spot_counts
        Counts of the held-out genes, ``(n_spots, n_genes)``, dense or CSR.
    spot, cell_total
        Spot (-1 for none) and total over the training genes of all cells, ``(n_cells,)``.
    spot_total
        Totals of the spots over the training genes, ``(n_spots,)``.
    neighbors
        Neighbours of the cells of `rows` by name, as of `nearest_in_space` and
        `nearest_in_expression`.

    Returns
    -------
    dict
        ``A``, ``B``, ``total``, and ``C_<name>`` and ``D_<name>`` for each kind of neighbours;
        float64 ``(stop - start, n_genes)`` each.

    Examples
    --------
    >>> counts, near = np.array([[8.0]]), {"sp": np.array([[0, 1], [1, 0]])}
    >>> means = baseline_means((0, 2), counts, [0, -1], [3, 5], [4], near)
    >>> {name: mean.ravel().tolist() for name, mean in means.items()}
    {'A': [8.0, 0.0], 'B': [6.0, 0.0], 'C_sp': [4.0, 4.0], 'D_sp': [3.0, 3.0], 'total': [3.0, 5.0]}
    """
    ratio = depth_ratios(cell_total, spot_total, spot)
    one, itself = np.ones(len(ratio)), np.arange(*rows)[:, None]
    found = {
        "A": neighbor_means(spot_counts, spot, one, itself),
        "B": neighbor_means(spot_counts, spot, ratio, itself),
    }
    for name, near in neighbors.items():
        found[f"C_{name}"] = neighbor_means(spot_counts, spot, one, near)
        found[f"D_{name}"] = neighbor_means(spot_counts, spot, ratio, near)
    total = np.asarray(cell_total, np.float64)[slice(*rows), None]
    return found | {"total": np.repeat(total, spot_counts.shape[1], axis=1)}


def _log_rates(counts: Any) -> sparse.csr_matrix:
    """Logarithms of 1 + counts per 100 of a cell, CSR; a cell without counts keeps zeros."""
    rates = sparse.csr_matrix(counts, dtype=np.float64, copy=True)
    rates.sum_duplicates()
    rates.eliminate_zeros()
    total = np.asarray(rates.sum(axis=1)).ravel()
    rates.data = np.log1p(_TARGET * rates.data / np.repeat(total, np.diff(rates.indptr)))
    return rates


def _parts(rates: sparse.csr_matrix) -> Csr:
    return rates.indptr.astype(np.int64), rates.indices.astype(np.int32), rates.data


@njit(nogil=True, cache=True)
def _nearest(near: Csr, far: Csr, n_genes: int, n_neighbors: int) -> Ints:
    """Rows of `far` nearest to each row of `near`, some rows of `near` at a time."""
    near_start, near_gene, near_value = near
    start, gene, value = far
    n_near, n_far = len(near_start) - 1, len(start) - 1
    length = np.zeros(n_far)
    for j in range(n_far):
        for at in range(start[j], start[j + 1]):
            length[j] += value[at] * value[at]
    found = np.zeros((n_near, n_neighbors), np.int64)
    product = np.empty(_LANES)
    for first in range(0, n_near, _LANES):
        lanes = min(_LANES, n_near - first)
        tile, own = np.zeros((n_genes, _LANES)), np.zeros(_LANES)
        best = np.full((_LANES, n_neighbors), np.inf)
        for lane in range(lanes):
            for at in range(near_start[first + lane], near_start[first + lane + 1]):
                tile[near_gene[at], lane] = near_value[at]
                own[lane] += near_value[at] * near_value[at]
        for j in range(n_far):
            product[:] = 0.0
            for at in range(start[j], start[j + 1]):
                row, v = tile[gene[at]], value[at]
                for lane in range(_LANES):
                    product[lane] += v * row[lane]
            for lane in range(lanes):
                distance = (own[lane] + length[j]) - 2.0 * product[lane]
                if distance < best[lane, -1]:
                    _insert(distance, j, best[lane], found[first + lane])
    return found


@njit(nogil=True, cache=True)
def _insert(distance: float, j: int, best: Floats, found: Ints) -> None:
    """Put `j` into the ascending list in place of the last, behind equal distances."""
    at = len(best) - 1
    while at and best[at - 1] > distance:
        best[at], found[at] = best[at - 1], found[at - 1]
        at -= 1
    best[at], found[at] = distance, j
