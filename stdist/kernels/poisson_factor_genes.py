"""Factor profiles of genes that were counted in spots only, by Poisson regression.

With the cells fixed each gene is a convex problem of its own: counts of spots have the means
``B q`` with the loadings B of the spots and q of the gene not negative. Multiplicative steps keep
the signs; a bound of what is left to gain tells when to stop. A gamma prior of q is as good as one
more count for each factor, and stays within both.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy import sparse

from stdist.kernels.poisson_factors_rows import SMALLEST, Counts, Floats, explain, padded

_GROWTH = 1.5  # of the exponent, after each step that lowered the loss


@njit(nogil=True, cache=True, error_model="numpy")
def _regress(
    counts: Counts,
    loadings: Floats,
    mass: Floats,
    shape: float,
    tolerance: float,
    max_rounds: int,
    out: Floats,
    gaps: Floats,
) -> None:
    width, in_use = mass.size, (mass > 0.0).sum()
    longest = 0
    for gene in range(gaps.size):
        longest = max(longest, counts.indptr[gene + 1] - counts.indptr[gene])
    ratios, sums = np.empty(longest), np.empty(width)
    plain = np.zeros(width)  # where there is no mass it stays so
    for gene in range(gaps.size):
        total = 0.0
        for e in range(counts.indptr[gene], counts.indptr[gene + 1]):
            spot = counts.genes[e]
            if loadings[spot].sum() > 0.0:
                total += counts.values[e]
        profile, mean = out[gene], total / max(mass.sum(), SMALLEST)
        for k in range(width):
            profile[k] = mean if mass[k] > 0.0 else 0.0
        best, exponent = -math.inf, 1.0
        rounds = max_rounds if mean > 0.0 else 0
        total += shape * in_use
        for _ in range(rounds):
            log_sum = explain(counts, gene, profile, loadings, sums, ratios)
            log_sum += _log_prior(profile, mass, shape)
            if log_sum < best:
                profile[:] = plain
                exponent = 1.0
                log_sum = explain(counts, gene, profile, loadings, sums, ratios)
                log_sum += _log_prior(profile, mass, shape)
            best = log_sum
            largest = scale = 0.0
            for k in range(width):
                if mass[k] > 0.0:
                    rate = mass[k] + shape / mean
                    ratio = (sums[k] + shape / profile[k]) / rate if shape > 0.0 else sums[k] / rate
                    largest = max(largest, ratio)
                    plain[k] = profile[k] * ratio
                    profile[k] = plain[k] * ratio ** (exponent - 1.0)
                    scale += profile[k] * rate
            gaps[gene] = total * (largest - 1.0)
            if gaps[gene] <= tolerance:
                profile[:] = plain
                break
            for k in range(width):
                profile[k] *= total / scale
            exponent *= _GROWTH


@njit(nogil=True, cache=True)
def _log_prior(profile: Floats, mass: Floats, shape: float) -> float:
    found = 0.0
    if shape > 0.0:
        for k in range(mass.size):
            if mass[k] > 0.0:
                found += shape * math.log(profile[k])
    return found


def gene_profiles(
    spots: sparse.csc_array,
    loadings: Floats,
    shape: float = 0.0,
    tolerance: float = 1e-2,
    max_rounds: int = 1000,
) -> tuple[Floats, NDArray[np.float64]]:
    """Profiles of genes, each on its own.

    Parameters
    ----------
    spots : (n_spots, n_genes) csc, counts
        Of genes outside the panel.
    loadings : (n_spots, n_factors) float64
        Of `stdist.kernels.poisson_factors.spot_loadings`; spots without cells take no part.
    shape
        Of a gamma prior around the mean profile of the gene (see `profile_prior` of
        `stdist.kernels.poisson_factors_global`); without by default.
    tolerance
        Nats of likelihood that may be left to gain for a gene.
    max_rounds
        At most so many steps for a gene.

    Returns
    -------
    profiles : (n_factors, n_genes) float64
        Means of spots are ``loadings @ profiles``: on the scale of the spots, where genes of the
        panel are on that of the cells.
    gaps : (n_genes,) float64
        Bound of the nats left to gain; above `tolerance` only where the rounds ran out.

    Examples
    --------
    >>> counts = sparse.csc_array(np.array([[4.0], [2.0]]))
    >>> gene_profiles(counts, np.array([[2.0, 0.0], [0.0, 2.0]]))[0].ravel()
    array([2., 1.])
    """
    table = padded(np.ascontiguousarray(loadings, np.float64))
    profiles = np.zeros((spots.shape[1], table.shape[1]))
    gaps = np.zeros(spots.shape[1])
    columns = Counts.of(spots)
    mass = table.sum(axis=0)
    _regress(columns, table, mass, float(shape), tolerance, max_rounds, profiles, gaps)
    return profiles[:, : loadings.shape[1]].T.copy(), gaps
