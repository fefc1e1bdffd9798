"""Harmony's correction: one small ridge regression per cluster, from sums over the cells."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stdist.kernels.harmony_settings import Floats, Settings, Strata, unit_rows

DYNAMIC_RIDGE = 0.2
"""Default penalty of harmony2 as a share of the expected mass (alpha of the R package)."""


def regress(settings: Settings, observed: Floats, sums: Floats) -> Floats:
    """Regress the embedding on intercept and levels, weighted by each cluster.

    Parameters
    ----------
    observed
        Soft number of cells of each stratum in each cluster, ``(n_strata, n_clusters)``.
    sums
        Weighted sums of the uncorrected rows of each level, ``(n_levels, n_clusters, n_dims)``.

    Returns
    -------
    ndarray
        Coefficients, ``(n_clusters, 1 + n_levels, n_dims)``; the intercept comes first and has no
        penalty. Levels that a cluster hardly holds are left out, and then variables with fewer
        than two levels: their coefficients are 0, as are those of a cluster with nothing left,
        whose intercept is NaN.
    """
    strata = settings.strata
    levels, expected = strata.by_level(observed), strata.expected(observed)
    kept = levels > settings.flavour.sparse_level * strata.level_cells[:, None]
    if settings.flavour.sparse_level >= 0:
        for variable in range(strata.n_variables):
            mine = strata.variables == variable
            kept[mine] &= kept[mine].sum(axis=0) >= 2
    penalty = DYNAMIC_RIDGE * expected
    if settings.ridge is not None:
        penalty = np.repeat(settings.ridge[:, None], expected.shape[1], axis=1)
    solve = _solve_arrowhead if strata.n_variables == 1 else _solve_dense
    return solve(strata, observed, sums, penalty, kept)


def _solve_arrowhead(
    strata: Strata, observed: Floats, sums: Floats, penalty: Floats, kept: NDArray[np.bool_]
) -> Floats:
    """One variable: the levels meet only in the intercept, so they are eliminated first."""
    mass = np.where(kept, strata.by_level(observed), 0.0)
    sums = np.where(kept[:, :, None], sums, 0.0)
    weight = np.divide(1.0, mass + penalty, out=np.zeros_like(mass), where=mass > 0)
    free = 1 - mass * weight
    pivot = (mass * free).sum(axis=0)
    right = (free[:, :, None] * sums).sum(axis=0)
    intercept = np.full(right.shape, np.nan)
    np.divide(right, pivot[:, None], out=intercept, where=pivot[:, None] > 0)
    known = np.where(pivot[:, None] > 0, intercept, 0.0)
    effects = weight[:, :, None] * (sums - mass[:, :, None] * known)
    return np.concatenate([intercept[None], effects]).transpose(1, 0, 2)


def _solve_dense(
    strata: Strata, observed: Floats, sums: Floats, penalty: Floats, kept: NDArray[np.bool_]
) -> Floats:
    """Several variables: the normal equations of each cluster, from the masses of the strata."""
    design = np.zeros((len(strata.cells), 1 + strata.n_levels))
    design[:, 0] = 1
    np.put_along_axis(design, 1 + strata.levels, 1.0, axis=1)
    totals = sums[strata.variables == 0].sum(axis=0)
    n_clusters, n_dims = totals.shape
    coefficients = np.zeros((n_clusters, 1 + strata.n_levels, n_dims))
    for cluster in range(n_clusters):
        chosen = np.flatnonzero(kept[:, cluster])
        if len(chosen) == 0 or observed[:, cluster].sum() <= 0:
            coefficients[cluster, 0] = np.nan
            continue
        columns = np.concatenate([[0], 1 + chosen])
        part = design[:, columns]
        gram = part.T @ (observed[:, cluster, None] * part)
        gram[np.diag_indices(len(columns))] += np.concatenate([[0], penalty[chosen, cluster]])
        right = np.concatenate([totals[cluster][None], sums[chosen, cluster]])
        coefficients[cluster, columns] = np.linalg.solve(gram, right)
    return coefficients


def level_shift(strata: Strata, coefficients: Floats) -> Floats:
    """What is subtracted from the rows of each stratum, ``(n_strata, n_clusters, n_dims)``."""
    return strata.by_stratum(coefficients[:, 1:].transpose(1, 0, 2))


def intercept_centroids(centroids: Floats, coefficients: Floats) -> Floats:
    """Unit intercepts as the next centroids; clusters without a regression keep theirs."""
    intercept = coefficients[:, 0]
    return np.where(np.isnan(intercept), centroids, unit_rows(np.nan_to_num(intercept)))
