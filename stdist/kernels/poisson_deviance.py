"""How well means in factorised form explain counts: the Poisson deviance, row by row."""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy import sparse

from stdist.kernels.poisson_factors_rows import EPSILON, Counts, Floats


@njit(nogil=True, cache=True)
def _deviances(counts: Counts, weights: Floats, table: Floats, rates: Floats, out: Floats) -> None:
    for row in range(out.size):
        total = 0.0
        for k in range(rates.size):
            total += weights[row, k] * rates[k]
        for e in range(counts.indptr[row], counts.indptr[row + 1]):
            mean, count = EPSILON, np.float64(counts.values[e])
            for k in range(rates.size):
                mean += weights[row, k] * table[counts.genes[e], k]
            total += count * (math.log(count / mean) - 1.0)
        out[row] = 2.0 * total


def poisson_deviances(
    counts: sparse.csr_array, weights: Floats, factors: Floats
) -> NDArray[np.float64]:
    """Poisson deviance of each row, ``2 sum_g (y_g log(y_g / mean_g) - y_g + mean_g)``.

    Parameters
    ----------
    counts : (n_rows, n_genes) csr, counts without explicit zeros
    weights : (n_rows, n_factors) float64
    factors : (n_factors, n_genes) float64
        Means are ``weights @ factors``.

    Returns
    -------
    (n_rows,) float64
        0 or more; its expectation is about 1 for each count with a mean well above 1.

    Examples
    --------
    >>> counts = sparse.csr_array(np.array([[3.0, 0.0]]))
    >>> poisson_deviances(counts, np.array([[3.0]]), np.array([[1.0, 0.5]])).round(6)
    array([3.])
    """
    out = np.empty(counts.shape[0])
    table = np.ascontiguousarray(factors.T, np.float64)
    rows = np.ascontiguousarray(weights, np.float64)
    _deviances(Counts.of(counts), rows, table, table.sum(axis=0), out)
    return out
