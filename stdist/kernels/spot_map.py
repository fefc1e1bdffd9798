"""Which spot each cell lies under: the nearest, or the few nearest, if they are near enough.

The nearest spot within 100 um is the gamma of SIID (Genome Research 2025). Distances are float64
and compared as they are: a cell at exactly the largest distance has the spot.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

Ints = NDArray[np.int64]
Rows = NDArray[np.int32]
Floats = NDArray[np.float64]

MAX_DISTANCE = 100.0  # um, the pitch of a Visium slide


class SpotMap(NamedTuple):
    """Spot of each cell.

    ``spot`` int32 ``(n_cells,)``: the nearest spot, or -1 if it is too far; ``nearest`` int32
    ``(n_cells,)``: the nearest spot at any distance; ``distance`` float64 ``(n_cells,)`` to it.
    """

    spot: Rows
    nearest: Rows
    distance: Floats


class SpotEdges(NamedTuple):
    """Spots of each cell, nearest first: those of cell `i` are ``indptr[i]:indptr[i + 1]``.

    ``indptr`` int64 ``(n_cells + 1,)``, ``spot`` int32 and ``distance`` float64 ``(n_edges,)``.
    """

    indptr: Ints
    spot: Rows
    distance: Floats


def transformed(points: ArrayLike, matrix: ArrayLike) -> Floats:
    """Apply a homogeneous 3 x 3 matrix: the first two components of ``matrix @ (x, y, 1)``.

    There is no perspective division. Every point is a product of its own, because the last bit
    of one product of all points would depend on their number.

    Parameters
    ----------
    points
        Coordinates, ``(n_points, 2)``.
    matrix
        ``(3, 3)``.

    Returns
    -------
    ndarray
        float64 ``(n_points, 2)``.

    Raises
    ------
    ValueError
        If an argument does not have its shape.

    Examples
    --------
    >>> transformed([[1.0, 2.0]], [[0, -1, 10], [1, 0, 0], [0, 0, 1]])
    array([[8., 1.]])
    """
    coordinates, homography = _points(points), np.asarray(matrix, np.float64)
    if homography.shape != (3, 3):
        message = f"the matrix must be (3, 3), not {homography.shape}"
        raise ValueError(message)
    homogeneous = np.column_stack([coordinates, np.ones(len(coordinates))])
    return np.matmul(homography, homogeneous[:, :, None])[:, :2, 0]


def nearest_spots(
    cells: ArrayLike, spots: ArrayLike, max_distance: float = MAX_DISTANCE
) -> SpotMap:
    """Map every cell to its nearest spot, by one query of a KD-tree.

    Of spots at exactly the same distance the tree's first is taken: the same one for the same
    spots, whatever other cells are asked for.

    Parameters
    ----------
    cells, spots
        Coordinates in one frame, ``(n_cells, 2)`` and ``(n_spots, 2)``, finite, in micrometres.
    max_distance
        Largest distance of a spot, in micrometres; a spot at exactly this distance counts.

    Returns
    -------
    SpotMap

    Raises
    ------
    ValueError
        If coordinates are not ``(n, 2)``, there is no spot or the distance is not positive.

    Examples
    --------
    >>> nearest_spots([[0, 0], [100, 0], [150, 0]], [[0, 0]]).spot
    array([ 0,  0, -1], dtype=int32)
    """
    distance, spot = _query(cells, spots, 1, max_distance)
    nearest, apart = spot[:, 0].astype(np.int32), distance[:, 0]
    return SpotMap(np.where(apart <= max_distance, nearest, np.int32(-1)), nearest, apart)


def spots_within(
    cells: ArrayLike, spots: ArrayLike, n_spots: int, max_distance: float = MAX_DISTANCE
) -> SpotEdges:
    """Map every cell to its few nearest spots within a distance.

    Parameters
    ----------
    cells, spots, max_distance
        As in `nearest_spots`.
    n_spots
        Largest number of spots of a cell.

    Returns
    -------
    SpotEdges

    Raises
    ------
    ValueError
        As `nearest_spots`, or if `n_spots` is not positive.

    Examples
    --------
    >>> edges = spots_within([[40, 0], [300, 0]], [[0, 0], [100, 0], [0, 90]], 4)
    >>> edges.indptr, edges.spot
    (array([0, 3, 3]), array([0, 1, 2], dtype=int32))
    """
    distance, spot = _query(cells, spots, n_spots, max_distance)
    near = distance <= max_distance
    indptr = np.concatenate([[0], np.cumsum(near.sum(axis=1))]).astype(np.int64)
    return SpotEdges(indptr, spot[near].astype(np.int32), distance[near])


def _query(
    cells: ArrayLike, spots: ArrayLike, n_spots: int, max_distance: float
) -> tuple[Floats, Ints]:
    """Distances and numbers of the nearest spots, nearest first, ``(n_cells, k)``."""
    queries, donors = _points(cells), _points(spots)
    if not len(donors):
        message = "there are no spots"
        raise ValueError(message)
    if not max_distance > 0 or n_spots < 1:
        message = f"distance and n_spots must be positive, not {max_distance} and {n_spots}"
        raise ValueError(message)
    ranks = list(range(1, min(n_spots, len(donors)) + 1))
    distance, spot = cKDTree(donors).query(queries, k=ranks)
    return distance, spot


def _points(points: ArrayLike) -> Floats:
    coordinates = np.asarray(points, np.float64)
    if coordinates.ndim != 2 or coordinates.shape[1] != 2:
        message = f"coordinates must be (n, 2), not {coordinates.shape}"
        raise ValueError(message)
    return coordinates
