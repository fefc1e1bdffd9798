"""Split counts at random into two parts that are independent, if the counts are Poisson."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy import sparse

from stdist.kernels.keyed_random import row_hash, uniform_of_hash


@njit(nogil=True, cache=True)
def _thin(
    indptr: NDArray[np.integer],
    genes: NDArray[np.integer],
    counts: NDArray[np.int64],
    rows: NDArray[np.int64],
    keys: NDArray[np.uint64],
    share: float,
    kept: NDArray[np.int64],
) -> None:
    for i in range(rows.size):
        hashed = row_hash(np.uint64(rows[i]))
        for e in range(indptr[i], indptr[i + 1]):
            key = keys[genes[e]]
            for molecule in range(counts[e]):
                u = uniform_of_hash(key, row_hash(hashed + np.uint64(molecule)))
                kept[e] += u < share


def split_counts(
    counts: sparse.csr_array, rows: NDArray[np.int64], gene_keys: NDArray[np.uint64], share: float
) -> tuple[sparse.csr_array, sparse.csr_array]:
    """Give every molecule to one of two parts.

    A Poisson count with mean mu becomes two independent ones, with means ``share * mu`` and
    ``(1 - share) * mu``.

    Parameters
    ----------
    counts : (n_rows, n_genes) csr
    rows : (n_rows,) int64
        Global row of each row; the split depends on it, not on the block.
    gene_keys : (n_genes,) uint64
        `stdist.kernels.keyed_random.stream_key` of every gene.
    share
        Probability of the first part.

    Returns
    -------
    first, rest : (n_rows, n_genes) csr
        Of the dtype of `counts`, zeros left out.

    Examples
    --------
    >>> counts = sparse.csr_array(np.array([[3, 0], [0, 200]]))
    >>> first, rest = split_counts(counts, np.arange(2), np.array([1, 2], np.uint64), 0.8)
    >>> bool(((first + rest) != counts).nnz)
    False
    """
    kept = np.zeros(counts.nnz, np.int64)
    values = counts.data.astype(np.int64)
    _thin(counts.indptr, counts.indices, values, rows, gene_keys, share, kept)
    parts = []
    for part in (kept, values - kept):
        where = (part.astype(counts.dtype), counts.indices.copy(), counts.indptr.copy())
        parts.append(sparse.csr_array(where, shape=counts.shape))
        parts[-1].eliminate_zeros()
    return parts[0], parts[1]
