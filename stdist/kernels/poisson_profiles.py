"""Profiles of clusters of cells, from which a Poisson factorisation starts.

Counts of a cell are multinomial with the profile of its cluster. Clusters are seeded as greedy
k-means++ does it, with the deviance for the squared distance (Ackermann and Bloemer, SODA 2009,
for Bregman divergences), but a seed is the sum of many cells: one alone has too few counts. A few
of Lloyd's steps follow. A longer search makes the clusters of all seeds alike, and the mean of
imputations that start from them worse.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import xlogy

from stdist.kernels.keyed_random import stream_key, uniforms
from stdist.kernels.poisson_factors_rows import Floats

_DRAWN = 4
"""Cells drawn for a seed; it is grown from that which most others are like."""
_SHARE, _LEAST = 0.25, 20
"""Cells that grow a seed: a share of an even cluster, and at least."""
_LENGTH = 0.75
"""Power of a cell's total by which its gain is divided when a seed grows."""
_PRIOR = 20.0
"""Counts of the overall profile that every profile is smoothed with."""
_STEPS = 4
"""Lloyd's steps."""


def cluster_profiles(counts: sparse.csr_array, n_clusters: int, seed: int) -> Floats:
    """Profiles of clusters of cells.

    Parameters
    ----------
    counts : (n_cells, n_genes) csr, counts
        At least one cell.
    n_clusters
        Number of profiles; where there are fewer clusters some are alike.
    seed
        Of the draws; each leads to clusters of its own.

    Returns
    -------
    (n_clusters, n_genes) float64
        Rows are positive and sum up to 1.

    Examples
    --------
    >>> counts = sparse.csr_array(np.repeat([[90, 10], [10, 90]], 30, axis=0))
    >>> np.sort(cluster_profiles(counts, 2, seed=0)[:, 0]).round(1)
    array([0.1, 0.9])
    """
    clusters = _Clusters(counts.astype(np.float64))
    profiles = clusters.seeds(n_clusters, seed)
    for _ in range(_STEPS):
        labels = clusters.likelihood(profiles).argmax(axis=1)
        profiles = clusters.profiles(clusters.everyone, labels, n_clusters)
    return profiles


class _Clusters:
    def __init__(self, counts: sparse.csr_array) -> None:
        self.counts, self.everyone = counts, np.arange(counts.shape[0])
        overall = np.asarray(counts.sum(axis=0)).ravel() + 0.5
        self.prior = _PRIOR * overall / overall.sum()
        self.total = np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1.0)

    def profiles(self, cells: NDArray[np.int64], labels: NDArray[np.int64], n: int) -> Floats:
        """Of the cells with each of n labels."""
        sums = np.tile(self.prior, (n, 1))
        arrays = self.counts.indptr, self.counts.indices, self.counts.data
        _add_rows(*arrays, cells, labels, sums)
        return sums / sums.sum(axis=1, keepdims=True)

    def likelihood(self, profiles: Floats) -> Floats:
        """Of each cell under each profile, in logarithms; ``(n_cells, n_profiles)``."""
        return np.asarray(self.counts @ np.log(profiles).T)

    def seeds(self, n_clusters: int, seed: int) -> Floats:
        """Profiles, each drawn where those before it explain least."""
        n_cells, found = len(self.total), []
        logs = xlogy(self.counts.data, self.counts.data)
        pattern = self.counts.indices, self.counts.indptr
        entries = sparse.csr_array((logs, *pattern), shape=self.counts.shape)
        saturated = np.asarray(entries.sum(axis=1)).ravel() - xlogy(self.total, self.total)
        best = self.likelihood(self.prior[None] / self.prior.sum())[:, 0]
        n_grown = min(n_cells, max(_LEAST, int(_SHARE * n_cells / n_clusters)))
        for number in range(n_clusters):
            deviance = np.cumsum(np.maximum(saturated - best, 0.0) + 1e-9)
            draws = uniforms(stream_key(seed, "cluster", number), 0, _DRAWN)
            drawn = np.searchsorted(deviance, draws * deviance[-1])
            own = self.likelihood(self.profiles(drawn, np.arange(_DRAWN), _DRAWN))
            gain = own - best[:, None]
            like = gain[:, np.maximum(gain, 0.0).sum(axis=0).argmax()]
            grown = np.argpartition(-like / self.total**_LENGTH, n_grown - 1)[:n_grown]
            profile = self.profiles(grown, np.zeros(n_grown, np.int64), 1)
            found.append(profile[0])
            best = np.maximum(best, self.likelihood(profile)[:, 0])
        return np.array(found)


@njit(nogil=True, cache=True)
def _add_rows(
    indptr: NDArray[np.integer],
    genes: NDArray[np.integer],
    values: Floats,
    rows: NDArray[np.int64],
    labels: NDArray[np.int64],
    out: Floats,
) -> None:
    """Add rows of counts to those of their labels."""
    for i in range(rows.size):
        sums = out[labels[i]]
        for e in range(indptr[rows[i]], indptr[rows[i] + 1]):
            sums[genes[e]] += values[e]
