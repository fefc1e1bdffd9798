"""Profiles of clusters of cells, from which a Poisson factorisation starts.

Counts of a cell are multinomial with the profile of its cluster. Clusters are seeded as greedy
k-means++ does it, with the deviance for the squared distance (Ackermann and Bloemer, SODA 2009,
for Bregman divergences), but a seed is the sum of many cells: one alone has too few counts. A few
of Lloyd's steps follow. Swaps find better clusters, but those of all seeds alike, and the mean of
imputations that start from them is worse.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import xlogy

from stdist.kernels.keyed_random import stream_key, uniforms
from stdist.kernels.poisson_factors_rows import Floats

_SHORT, _LONG = (4, 1), (12, 4)
"""Cells drawn for a seed, and those of them, most like others, that it is grown from in turn, with
the best kept: in a search without swaps, and with."""
_SHARE, _LEAST = 0.25, 20
"""Cells that grow a seed: a share of an even cluster, and at least."""
_LENGTH = 0.75
"""Power of a cell's total by which its gain is divided when a seed grows."""
_PRIOR = 20.0
"""Counts of the overall profile that every profile is smoothed with."""
_STEPS, _SWAP_STEPS = 4, 3
"""Lloyd's steps after all seeds, and after a swap."""


def cluster_profiles(
    counts: sparse.csr_array, n_clusters: int, seed: int, n_swaps: int = 0
) -> Floats:
    """Profiles of clusters of cells.

    Parameters
    ----------
    counts : (n_cells, n_genes) csr, counts
        At least one cell.
    n_clusters
        Number of profiles; where there are fewer clusters some are alike.
    seed
        Of the draws; each leads to clusters of its own.
    n_swaps
        Clusters that are seeded anew, the one that is missed least each time, where all gain by it.

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
    clusters = _Clusters(counts.astype(np.float64), n_clusters, seed, n_swaps)
    profiles, likelihood = clusters.improved(clusters.seeds(), _STEPS)
    for number in range(n_swaps if n_clusters > 1 else 0):
        profiles, likelihood = clusters.swapped(profiles, likelihood, number)
    return profiles


class _Clusters:
    def __init__(self, counts: sparse.csr_array, n_clusters: int, key: int, n_swaps: int) -> None:
        self.counts, self.n_clusters, self.key, self.n_swaps = counts, n_clusters, key, n_swaps
        self.everyone = np.arange(counts.shape[0])
        overall = np.asarray(counts.sum(axis=0)).ravel() + 0.5
        self.prior = _PRIOR * overall / overall.sum()
        self.total = np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1.0)
        pattern = counts.indices, counts.indptr
        entries = sparse.csr_array((xlogy(counts.data, counts.data), *pattern), shape=counts.shape)
        saturated = np.asarray(entries.sum(axis=1)).ravel()
        self.saturated = saturated - xlogy(self.total, self.total)

    def profiles(self, cells: NDArray[np.int64], labels: NDArray[np.int64], n: int) -> Floats:
        """Of the cells with each of n labels."""
        sums = np.tile(self.prior, (n, 1))
        arrays = self.counts.indptr, self.counts.indices, self.counts.data
        _add_rows(*arrays, cells, labels, sums)
        return sums / sums.sum(axis=1, keepdims=True)

    def likelihood(self, profiles: Floats) -> Floats:
        """Of each cell under each profile, in logarithms; ``(n_cells, n_profiles)``."""
        return np.asarray(self.counts @ np.log(profiles).T)

    def seed(self, best: Floats, number: int) -> tuple[Floats, Floats]:
        """A profile, drawn where the likelihoods `best` explain least, and its own likelihoods."""
        n_drawn, n_tried = _LONG if self.n_swaps else _SHORT
        deviance = np.cumsum(np.maximum(self.saturated - best, 0.0) + 1e-9)
        draws = uniforms(stream_key(self.key, "cluster", number), 0, n_drawn)
        drawn = np.searchsorted(deviance, draws * deviance[-1])
        gain = self.likelihood(self.profiles(drawn, np.arange(n_drawn), n_drawn)) - best[:, None]
        tried = np.argsort(-np.maximum(gain, 0.0).sum(axis=0), kind="stable")[:n_tried]
        ranks = -gain[:, tried] / self.total[:, None] ** _LENGTH
        n_cells = len(self.total)
        n_grown = min(n_cells, max(_LEAST, int(_SHARE * n_cells / self.n_clusters)))
        grown = np.argpartition(ranks, n_grown - 1, axis=0)[:n_grown]
        labels = np.tile(np.arange(n_tried), n_grown)
        profiles = self.profiles(grown.ravel(), labels, n_tried)
        likelihood = self.likelihood(profiles)
        chosen = int(np.maximum(likelihood, best[:, None]).sum(axis=0).argmax())
        return profiles[chosen], likelihood[:, chosen]

    def seeds(self) -> Floats:
        """Profiles, one after the other."""
        best = self.likelihood(self.prior[None] / self.prior.sum())[:, 0]
        found = []
        for number in range(self.n_clusters):
            profile, likelihood = self.seed(best, number)
            found.append(profile)
            best = np.maximum(best, likelihood)
        return np.array(found)

    def improved(self, profiles: Floats, n_steps: int) -> tuple[Floats, Floats]:
        """Profiles after so many of Lloyd's steps, and their likelihoods."""
        likelihood = self.likelihood(profiles)
        for _ in range(n_steps):
            labels = likelihood.argmax(axis=1)
            profiles = self.profiles(self.everyone, labels, self.n_clusters)
            likelihood = self.likelihood(profiles)
        return profiles, likelihood

    def swapped(self, profiles: Floats, likelihood: Floats, number: int) -> tuple[Floats, Floats]:
        """The cluster that is missed least is seeded anew, where this raises the likelihood."""
        others = np.partition(likelihood, self.n_clusters - 2, axis=1)
        missed = others[:, -1] - others[:, -2]
        least = int(np.bincount(likelihood.argmax(axis=1), missed, self.n_clusters).argmin())
        without = np.delete(likelihood, least, axis=1).max(axis=1)
        moved = profiles.copy()
        moved[least], _ = self.seed(without, self.n_clusters + number)
        moved, theirs = self.improved(moved, _SWAP_STEPS)
        better = theirs.max(axis=1).sum() > others[:, -1].sum()
        return (moved, theirs) if better else (profiles, likelihood)


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
