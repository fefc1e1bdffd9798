"""k-means of rows in memory: greedy k-means++ and Lloyd's iterations.

As scikit-learn's `KMeans`, whose import takes as much memory as everything else together; SciPy's
`kmeans2` draws one candidate for a centre, ends higher and takes three times as long.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.floating[Any]]

TOLERANCE = 1e-4
"""Squared move of all centres, relative to the mean variance of a column, that ends the rounds."""
_CHUNK = 1024  # rows whose distances to the centres are held at a time


def kmeans(
    rows: Rows, n_clusters: int, *, seed: int, max_iterations: int = 25
) -> tuple[NDArray[np.float64], float]:
    """Find centres of clusters.

    Parameters
    ----------
    rows
        ``(n_rows, n_dims)``; distances are computed in their dtype.
    n_clusters
        Number of centres. Where there are fewer distinct rows, some centres coincide.
    seed
        Of the draws of the initial centres.
    max_iterations
        Largest number of Lloyd's iterations.

    Returns
    -------
    centres
        ``(n_clusters, n_dims)``.
    inertia
        Sum of the squared distances of the rows to the centres nearest to them, before the last
        move of the centres.

    References
    ----------
    Arthur and Vassilvitskii, k-means++: the advantages of careful seeding, SODA 2007; the greedy
    form, which draws several candidates for each centre, is theirs too (section 5).

    Examples
    --------
    >>> centres, inertia = kmeans(np.array([[0.0], [1.0], [9.0], [10.0]]), 2, seed=0)
    >>> sorted(centres.ravel().tolist()), round(inertia, 6)
    ([0.5, 9.5], 1.0)
    """
    norms = (rows * rows).sum(axis=1)
    centres = _initial_centres(rows, norms, n_clusters, np.random.default_rng(seed))
    tolerance = TOLERANCE * float(rows.var(axis=0, dtype=np.float64).mean())
    inertia = 0.0
    for _ in range(max_iterations):
        nearest, inertia = _nearest(rows, norms, centres)
        cells = np.bincount(nearest, minlength=n_clusters)[:, None]
        sums = np.stack([np.bincount(nearest, x, n_clusters) for x in rows.T], axis=1)
        moved = np.divide(sums, cells, out=centres.copy(), where=cells > 0)
        shift, centres = float(((moved - centres) ** 2).sum()), moved
        if shift <= tolerance:
            break
    return centres, inertia


def _distances(rows: Rows, norms: Rows, centres: Rows) -> Rows:
    """Squared distances, ``(n_rows, n_centres)``."""
    centres = centres.astype(rows.dtype, copy=False)
    found = rows @ centres.T
    found *= -2
    found += norms[:, None]
    found += (centres * centres).sum(axis=1)
    return np.maximum(found, 0, out=found)


def _nearest(rows: Rows, norms: Rows, centres: Rows) -> tuple[NDArray[np.intp], float]:
    """Nearest centre of each row, and the sum of their squared distances."""
    nearest, inertia = np.empty(len(rows), np.intp), 0.0
    for first in range(0, len(rows), _CHUNK):
        part = slice(first, first + _CHUNK)
        distances = _distances(rows[part], norms[part], centres)
        nearest[part] = distances.argmin(axis=1)
        inertia += float(distances.min(axis=1).sum(dtype=np.float64))
    return nearest, inertia


def _initial_centres(
    rows: Rows, norms: Rows, n_clusters: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Rows drawn by their squared distance to the centres so far; of some draws the best."""
    n_draws = 2 + int(np.log(n_clusters))
    chosen = [int(rng.integers(len(rows)))]
    closest = _distances(rows, norms, rows[chosen])[:, 0]
    while len(chosen) < n_clusters:
        sums = closest.cumsum(dtype=np.float64)
        drawn = np.searchsorted(sums, rng.random(n_draws) * sums[-1], side="right")
        drawn = np.minimum(drawn, len(rows) - 1)
        distances = np.minimum(_distances(rows, norms, rows[drawn]), closest[:, None])
        best = int(distances.sum(axis=0, dtype=np.float64).argmin())
        chosen.append(int(drawn[best]))
        closest = distances[:, best].copy()
    return rows[chosen].astype(np.float64)
