"""Starts of the Poisson factorisation: of factors, drawn or from clusters, and of rows, drawn.

Draws are keyed: those of a cell do not depend on its tile.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import ndtri

from stdist.kernels.keyed_random import stream_key, uniform, uniforms
from stdist.kernels.poisson_factors_rows import Floats
from stdist.kernels.poisson_factors_spots import Rows
from stdist.kernels.poisson_profiles import cluster_profiles

_NOISE = 0.5  # standard deviation of log profiles, and half the range of logits of P
_LEAST = 0.5  # counts


@njit(nogil=True, cache=True)
def keyed_draws(keys: NDArray[np.uint64], numbers: NDArray[np.int64]) -> Floats:
    """Uniforms of rows by key, ``(n_numbers, n_keys)``."""
    out = np.empty((numbers.size, keys.size))
    for i in range(numbers.size):
        for k in range(keys.size):
            out[i, k] = uniform(keys[k], np.uint64(numbers[i]))
    return out


def start_factors(spot_profile: Floats, n_factors: int, seed: int) -> Floats:
    """The overall profile of the spots, times lognormal noise.

    Parameters
    ----------
    spot_profile : (n_genes,) float64
        Sum of the counts of all spots.
    n_factors
        Number of factors.
    seed
        Of the draws.

    Returns
    -------
    (n_factors, n_genes) float64
        Rows sum up to 1.
    """
    profile = spot_profile + _LEAST
    draws = [
        uniforms(stream_key(seed, "factor profile", k), 0, len(profile)) for k in range(n_factors)
    ]
    factors: Floats = profile * np.exp(_NOISE * ndtri(np.array(draws)))
    return factors / factors.sum(axis=1, keepdims=True)


def clustered_factors(
    cells: sparse.csr_array, spot_profile: Floats, n_factors: int, seed: int, n_swaps: int = 0
) -> Floats:
    """Profiles of clusters of cells; genes outside the panel have their share of the spots in all.

    Parameters
    ----------
    cells : (n_cells, n_panel) csr, counts
    spot_profile : (n_genes,) float64
        Sum of the counts of all spots, genes of the panel first.
    n_factors
        Number of factors.
    seed
        Of the draws.
    n_swaps
        See `stdist.kernels.poisson_profiles.cluster_profiles`.

    Returns
    -------
    (n_factors, n_genes) float64
        Rows sum up to 1.
    """
    profile, n_panel = spot_profile + _LEAST, cells.shape[1]
    panel = cluster_profiles(cells, n_factors, seed, n_swaps)
    other = np.tile(profile[n_panel:] / profile[:n_panel].sum(), (n_factors, 1))
    factors: Floats = np.concatenate([panel, other], axis=1)
    return factors / factors.sum(axis=1, keepdims=True)


def start_rows(
    cells: sparse.csr_array,
    spots: sparse.csr_array,
    spot: NDArray[np.integer],
    numbers: NDArray[np.int64],
    n_factors: int,
    seed: int,
) -> Rows:
    """Rows of a tile: probabilities nearly even, sizes from totals.

    Parameters
    ----------
    cells, spots, spot
        As of `stdist.kernels.poisson_factors.tile_pass`.
    numbers : (n_cells,) int64
        Global rows of the cells.
    n_factors
        Number of factors.
    seed
        Of the draws.

    Returns
    -------
    Rows
        ``n`` is the cell's total; ``m`` the spot's, divided by the number of its cells, and 1
        without a spot.
    """
    keys = [stream_key(seed, "factor probability", k) for k in range(n_factors)]
    p = np.exp(2 * _NOISE * (keyed_draws(np.array(keys), numbers) - 0.5))
    p /= p.sum(axis=1, keepdims=True)
    n = np.maximum(np.asarray(cells.sum(axis=1), np.float64).ravel(), _LEAST)
    totals = np.maximum(np.asarray(spots.sum(axis=1), np.float64).ravel(), _LEAST)
    mapped = spot >= 0
    of_spot = totals / np.maximum(np.bincount(spot[mapped], minlength=len(totals)), 1)
    return Rows(p, n, np.where(mapped, of_spot[spot], 1.0))
