"""Keyed Poisson draws: the same for any blocks, workers and order."""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from stdist.kernels.keyed_random import row_hash, uniform_of_hash
from stdist.kernels.poisson_quantile import matched_count


@njit(nogil=True, cache=True)
def poisson_draws(
    means: NDArray[np.float64], gene_keys: NDArray[np.uint64], rows: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Draw a count for every mean.

    Parameters
    ----------
    means : (n_cells, n_genes) float64
        Not negative.
    gene_keys : (n_genes,) uint64
        :func:`stdist.kernels.keyed_random.stream_key` of every gene.
    rows : (n_cells,) int64
        Global rows of the cells.

    Returns
    -------
    (n_cells, n_genes) int64

    Examples
    --------
    >>> poisson_draws(np.zeros((1, 2)), np.array([1, 2], np.uint64), np.array([7])).tolist()
    [[0, 0]]
    """
    counts = np.zeros(means.shape, np.int64)
    for i in range(means.shape[0]):
        hashed = row_hash(np.uint64(rows[i]))
        for g in range(means.shape[1]):
            u = uniform_of_hash(gene_keys[g], hashed)
            zero = math.exp(-means[i, g])
            if u > zero:
                # the quantile at u is the transform of a count 0 of mean 0
                counts[i, g] = np.int64(matched_count(0.0, 0.0, means[i, g], 1.0, zero, u, False))
    return counts
