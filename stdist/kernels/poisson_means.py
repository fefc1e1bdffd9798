"""Means of a tile of counts, for the rules that need them whole.

The exact matching (:mod:`stdist.kernels.poisson_match`) computes its means on the way; these are
the same numbers, bit for bit, as an array.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from stdist.kernels.portable_math import exp

Floats = NDArray[np.float64]


@njit(nogil=True, cache=True)
def _fill(
    weights: NDArray[Any],
    batch: NDArray[Any],
    depth: Floats,
    intercept: Floats,
    coefficients: Floats,
    out: Floats,
) -> None:
    n_cells, n_genes = out.shape
    for i in range(n_cells):
        b = batch[i]
        for g in range(n_genes):
            out[i, g] = intercept[b, g]
        for k in range(weights.shape[1]):
            weight = np.float64(weights[i, k])
            for g in range(n_genes):
                out[i, g] += weight * coefficients[b, k, g]
        for g in range(n_genes):
            out[i, g] = depth[i] * exp(out[i, g])


def soft_means(
    weights: NDArray[Any],
    batch: NDArray[Any],
    depth: Floats,
    intercept: Floats,
    coefficients: Floats,
) -> Floats:
    """Poisson means from soft cluster assignments.

    Parameters
    ----------
    weights : (n_cells, n_clusters) float32 or float64
    batch : (n_cells,) int
        Codes into the first axis of the coefficients.
    depth : (n_cells,) float
    intercept : (n_batches, n_genes) float64
    coefficients : (n_batches, n_clusters, n_genes) float64

    Returns
    -------
    (n_cells, n_genes) float64
        ``depth * exp(intercept + weights @ coefficients)``. Clusters are added one by one, so
        that a mean does not depend on the other cells and genes of the tile.

    Examples
    --------
    >>> soft_means(np.ones((1, 1)), [0], [2.0], np.zeros((1, 1)), np.full((1, 1, 1), np.log(3)))
    array([[6.]])
    """
    out = np.empty((len(weights), intercept.shape[1]))
    _fill(
        np.ascontiguousarray(weights),
        np.asarray(batch),
        np.asarray(depth, dtype=np.float64),
        np.ascontiguousarray(intercept, dtype=np.float64),
        np.ascontiguousarray(coefficients, dtype=np.float64),
        out,
    )
    return out
