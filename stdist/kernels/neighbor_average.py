"""Averages over the nearest donors in an embedding, for genes that a cell's batch lacks."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def nearest_donors(points: ArrayLike, donors: ArrayLike, n_neighbors: int) -> NDArray[np.int64]:
    """Donors nearest to each point, exactly, nearest first.

    Parameters
    ----------
    points : (n_cells, n_dims) float
    donors : (n_donors, n_dims) float
    n_neighbors : int
        At most ``n_donors`` are returned.

    Returns
    -------
    (n_cells, n_neighbors) int64
        Equal distances are ordered by the number of the donor.

    Examples
    --------
    >>> nearest_donors([[0.0], [9.0]], [[8.0], [1.0], [2.0]], 2)
    array([[1, 2],
           [0, 2]])
    """
    points = np.asarray(points, dtype=np.float64)
    donors = np.asarray(donors, dtype=np.float64)
    n_neighbors = min(n_neighbors, len(donors))
    distance = (donors * donors).sum(axis=1) - 2.0 * points @ donors.T
    threshold = np.partition(distance, n_neighbors - 1, axis=1)[:, n_neighbors - 1]
    found = np.empty((len(points), n_neighbors), dtype=np.int64)
    for row, limit in enumerate(threshold):
        near = np.flatnonzero(distance[row] <= limit)
        found[row] = near[np.argsort(distance[row, near], kind="stable")[:n_neighbors]]
    return found


def donor_average(neighbors: NDArray[np.int64], rates: Floats) -> Floats:
    """Mean rate over the neighbours, summed in their order.

    Parameters
    ----------
    neighbors : (n_cells, n_neighbors) int
        Donors of each cell.
    rates : (n_donors, n_genes) float64
        Counts over depth of the donors.

    Returns
    -------
    (n_cells, n_genes) float64

    Examples
    --------
    >>> donor_average(np.array([[0, 1], [1, 2]]), np.array([[0.5], [0.0], [0.1]]))
    array([[0.25],
           [0.05]])
    """
    total = np.zeros((len(neighbors), rates.shape[1]))
    for column in neighbors.T:
        total += rates[column]
    return total / neighbors.shape[1]
