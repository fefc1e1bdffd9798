"""Exact nearest neighbours within a radius, by a grid of squares as wide as the radius.

Distances are float64; cells at the same distance are taken in the order of their rows. Two
questions are answered: the nearest of all cells, and (for cross-correlations between cell types)
the nearest among the cells of one's own type and one other type, for every other type at once.
Graphs are CSR: the neighbours of cell `i` are ``neighbours[indptr[i]:indptr[i + 1]]``.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

Ints = NDArray[np.int64]
Rows = NDArray[np.int32]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Grid = tuple[Ints, Ints, Ints, Ints]

_WIDER = 1.0 + 1e-9  # so that rounding cannot put neighbours two squares apart
_SMALL = 48  # up to here insertion sort is fastest


def nearest_within(
    points: ArrayLike, radius: float, n_neighbors: int, query: Mask | None = None
) -> tuple[Ints, Rows]:
    """Nearest other cells within a radius.

    Parameters
    ----------
    points
        Coordinates, ``(n_cells, 2)``, finite.
    radius
        Largest distance, in the unit of the coordinates; a neighbour at exactly this distance
        counts.
    n_neighbors
        Largest number of neighbours of a cell.
    query
        bool ``(n_cells,)``: cells whose neighbours are wanted; the others get none. Default: all.

    Returns
    -------
    tuple
        ``indptr`` int64 ``(n_cells + 1,)`` and ``neighbours`` int32, nearest first.

    Raises
    ------
    ValueError
        If the radius or the number is not positive, or coordinates are not ``(n_cells, 2)``.

    Examples
    --------
    >>> indptr, neighbours = nearest_within([[0, 0], [0, 1], [0, 3]], 2.0, 5)
    >>> indptr, neighbours
    (array([0, 1, 3, 4]), array([1, 0, 2, 1], dtype=int32))
    """
    coordinates, chosen = _checked(points, radius, n_neighbors, query)
    types = np.zeros(len(coordinates), np.int32)
    return _search(coordinates, types, 0, radius, n_neighbors, chosen, _grid(coordinates, radius))


def nearest_of_other_types(
    points: ArrayLike,
    types: ArrayLike,
    radius: float,
    n_neighbors: int,
    query: Mask | None = None,
) -> tuple[Ints, Rows]:
    """Neighbours of every other type: among the nearest cells of one's own and that type.

    For a cell of type `a` and each other type `b`: of its `n_neighbors` nearest cells among those
    of the types `a` and `b`, the ones of type `b` within the radius (Millard et al. 2025, spatial
    cross-correlation).

    Parameters
    ----------
    points, radius, n_neighbors, query
        As in `nearest_within`; the number holds for each pair of types.
    types
        Codes of the types, ``(n_cells,)`` integers from 0.

    Returns
    -------
    tuple
        ``indptr`` int64 ``(n_cells + 1,)`` and ``neighbours`` int32, by type, nearest first.

    Examples
    --------
    >>> indptr, neighbours = nearest_of_other_types([[0, 0], [0, 1], [0, 2]], [0, 0, 1], 2.0, 2)
    >>> indptr, neighbours
    (array([0, 1, 2, 4]), array([2, 2, 1, 0], dtype=int32))
    """
    coordinates, chosen = _checked(points, radius, n_neighbors, query)
    codes = np.asarray(types, np.int32)
    n_types = int(codes.max(initial=0)) + 1
    grid = _grid(coordinates, radius)
    return _search(coordinates, codes, n_types, radius, n_neighbors, chosen, grid)


def _checked(
    points: ArrayLike, radius: float, n_neighbors: int, query: Mask | None
) -> tuple[Floats, Mask]:
    coordinates = np.ascontiguousarray(points, np.float64)
    if coordinates.ndim != 2 or coordinates.shape[1] != 2:
        message = f"points must be (n_cells, 2), not {coordinates.shape}"
        raise ValueError(message)
    if not radius > 0 or n_neighbors < 1:
        message = f"radius and n_neighbors must be positive, not {radius} and {n_neighbors}"
        raise ValueError(message)
    return coordinates, np.ones(len(coordinates), np.bool_) if query is None else query


def _grid(points: Floats, radius: float) -> Grid:
    """Cells sorted by square: column and row of each cell, starts of the squares, the order."""
    n = max(1, len(points))
    low = points.min(axis=0, initial=np.inf) if len(points) else np.zeros(2)
    extent = points.max(axis=0, initial=-np.inf) - low if len(points) else np.zeros(2)
    most = 2 * int(np.ceil(np.sqrt(n)))  # squares along an edge: no more than 4 per cell in all
    width = max(radius * _WIDER, float(extent.max()) / most)
    column, row = np.floor((points - low) / width).astype(np.int64).T
    n_columns = int(column.max(initial=0)) + 1
    square = row * n_columns + column
    n_squares = n_columns * (int(row.max(initial=0)) + 1)
    starts = np.concatenate([[0], np.cumsum(np.bincount(square, minlength=n_squares))])
    shape = np.array([n_columns, n_squares // n_columns], np.int64)
    return square, starts.astype(np.int64), np.argsort(square, kind="stable"), shape


@njit(nogil=True, cache=True)
def _sort(distance: Floats, cell: Rows, n: int) -> None:
    """Sort the first `n` candidates by distance, then by row."""
    if n > _SMALL:
        by_cell = np.argsort(cell[:n])
        order = by_cell[np.argsort(distance[:n][by_cell], kind="mergesort")]
        distance[:n] = distance[:n][order]
        cell[:n] = cell[:n][order]
        return
    for last in range(1, n):
        d, c, at = distance[last], cell[last], last
        while at and (distance[at - 1] > d or (distance[at - 1] == d and cell[at - 1] > c)):
            distance[at], cell[at] = distance[at - 1], cell[at - 1]
            at -= 1
        distance[at], cell[at] = d, c


@njit(nogil=True, cache=True)
def _candidates(i: int, points: Floats, limit: float, grid: Grid, d: Floats, c: Rows) -> int:
    """Collect the other cells within the radius in the nine squares around cell `i`."""
    square, starts, order, shape = grid
    column, row = square[i] % shape[0], square[i] // shape[0]
    n = 0
    for near in range(max(0, row - 1), min(shape[1], row + 2)):
        first = starts[near * shape[0] + max(0, column - 1)]
        last = starts[near * shape[0] + min(shape[0], column + 2)]
        for at in range(first, last):
            j = order[at]
            x, y = points[j, 0] - points[i, 0], points[j, 1] - points[i, 1]
            squared = x * x + y * y
            if squared <= limit and j != i:
                d[n], c[n] = squared, j
                n += 1
    return n


@njit(nogil=True, cache=True)
def _search(
    points: Floats,
    types: Rows,
    n_types: int,
    radius: float,
    n_neighbors: int,
    query: Mask,
    grid: Grid,
) -> tuple[Ints, Rows]:
    """Neighbours of the queried cells; `n_types` 0 asks for the nearest of all cells."""
    n_cells, starts = len(points), grid[1]
    crowd = 1
    for square in range(len(starts) - 1):
        crowd = max(crowd, starts[square + 1] - starts[square])
    distance, cell = np.empty(9 * crowd), np.empty(9 * crowd, np.int32)
    seen, kept = np.zeros(n_types, np.int64), np.zeros(n_types + 1, np.int64)
    indptr, found, filled = np.zeros(n_cells + 1, np.int64), np.empty(1024, np.int32), 0
    for i in range(n_cells):
        if query[i]:
            n = _candidates(i, points, radius * radius, grid, distance, cell)
            _sort(distance, cell, n)
            if filled + n > len(found):
                longer = np.empty(max(2 * len(found), filled + n), np.int32)
                longer[:filled] = found[:filled]
                found = longer
            if n_types == 0:
                n = min(n, n_neighbors)
                found[filled : filled + n] = cell[:n]
                filled += n
            else:
                out = found[filled:]
                filled += _others(types, types[i], n_neighbors, cell[:n], seen, kept, out)
        indptr[i + 1] = filled
    return indptr, found[:filled].copy()


@njit(nogil=True, cache=True)
def _others(
    types: Rows, own: int, n_neighbors: int, cell: Rows, seen: Ints, kept: Ints, out: Rows
) -> int:
    """Write those of the sorted candidates that are neighbours of another type, by type."""
    seen[:] = 0
    kept[:] = 0
    for j in cell:
        kind = types[j]
        if kind != own and seen[own] + seen[kind] < n_neighbors:
            kept[kind + 1] += 1
        seen[kind] += 1
    total = kept.sum()
    for kind in range(1, len(kept)):
        kept[kind] += kept[kind - 1]
    seen[:] = 0
    for j in cell:
        kind = types[j]
        if kind != own and seen[own] + seen[kind] < n_neighbors:
            out[kept[kind]] = j
            kept[kind] += 1
        seen[kind] += 1
    return int(total)
