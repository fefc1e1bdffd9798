"""SIID's published objective with its exact gradient, from tiles of spots with all their cells.

All parameters are free real numbers: softmax makes rows of P and Q, exp makes sizes and platform
factors. The objective is::

    sum(mean - count log(mean + 1e-8)) over both slides + l2 (sum of all squared parameters)
    + weight (sum of the entropies of the rows of P)

with the means of `stdist.kernels.poisson_factors`. `tile_gradient` gives the derivatives by the
parameters of cells, and statistics; those of all tiles, added, are what `factor_gradient` needs
for Q and phi. Ratios are taken at non-zeros only, so memory and time follow these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import softmax

from stdist.kernels.poisson_factors_rows import SMALLEST, Counts, Floats, padded, ratio_sums
from stdist.kernels.poisson_factors_spots import Rows

Statistics = dict[str, Any]


class Losses(NamedTuple):
    """Parts of the objective, `l2` and `entropy` with their weights."""

    total: float
    x: float
    v: float
    l2: float
    entropy: float


def cell_rows(parameters: Floats) -> Rows:
    """Probabilities and sizes of cells, from free parameters as `tile_gradient` takes them."""
    n_factors = parameters.shape[1] - 2
    p = softmax(parameters[:, :n_factors], axis=1)
    return Rows(p, np.exp(parameters[:, -2]), np.exp(parameters[:, -1]))


def factors(logits: Floats, log_phi: Floats, *, platform_scaling: bool) -> tuple[Floats, Floats]:
    """Profiles ``Q (n_factors, n_genes)`` and platform factors ``phi (n_genes,)``.

    Parameters
    ----------
    logits : (n_factors, n_genes) float64
    log_phi : (n_panel,) float64
    platform_scaling
        If False phi is 1; it always is beyond the panel.
    """
    phi = np.ones(logits.shape[1])
    if platform_scaling:
        phi[: len(log_phi)] = np.exp(log_phi)
    return softmax(logits, axis=1), phi


def tile_gradient(
    cells: sparse.csr_array,
    spots: sparse.csr_array,
    spot: NDArray[np.integer],
    parameters: Floats,
    Q: Floats,
    phi: Floats,
    *,
    entropy: float,
    l2: float,
) -> tuple[Floats, Statistics]:
    """Differentiate the objective by the parameters of a tile's cells.

    Parameters
    ----------
    cells : (n_cells, n_panel) csr, counts
    spots : (n_spots, n_genes) csr, counts
        Genes of the panel first.
    spot : (n_cells,) int
        Row in `spots` of the spot of each cell, -1 without.
    parameters : (n_cells, n_factors + 2) float64
        Logits of P, log n and log m.
    Q : (n_factors, n_genes) float64
    phi : (n_genes,) float64
        Of `factors`.
    entropy
        Weight of the entropy of a cell's probabilities, in nats.
    l2
        Weight of the squared parameters.

    Returns
    -------
    gradient : (n_cells, n_factors + 2) float64
    statistics
        Those of tiles add: ``ratios_x (n_factors, n_panel)`` and ``ratios_v (n_factors,
        n_genes)``, count / mean by the loadings of factors; ``mass_x`` and ``mass_v
        (n_factors,)``, sums of the loadings; ``log_x`` and ``log_v``, sums of count log(mean),
        spots without cells included; ``entropy`` and ``squares``.
    """
    n_panel = cells.shape[1]
    p, n, m = cell_rows(parameters)
    mapped = spot >= 0
    m = np.where(mapped, m, 0.0)
    member = sparse.csr_array(
        (m[mapped], (spot[mapped], np.flatnonzero(mapped))), shape=(spots.shape[0], len(n))
    )
    loading = member @ p
    of_cells, ratios_x, log_x = _ratios(cells, n[:, None] * p, Q[:, :n_panel])
    of_spots, ratios_v, log_v = _ratios(spots, loading, Q * phi)
    gain_x = Q[:, :n_panel].sum(axis=1) - of_cells
    gain_v = np.zeros_like(p)
    gain_v[mapped] = (Q @ phi - of_spots)[spot[mapped]]

    shifted = p + SMALLEST
    by_p = n[:, None] * gain_x + m[:, None] * gain_v
    by_p -= entropy * (np.log(shifted) + p / shifted)
    gradient = np.column_stack(
        [
            p * (by_p - (by_p * p).sum(axis=1, keepdims=True)),
            n * (p * gain_x).sum(axis=1),
            m * (p * gain_v).sum(axis=1),
        ]
    )
    statistics = {
        "ratios_x": ratios_x,
        "ratios_v": ratios_v,
        "mass_x": n @ p,
        "mass_v": loading.sum(axis=0),
        "log_x": log_x,
        "log_v": log_v,
        "entropy": -(p * np.log(shifted)).sum(),
        "squares": np.vdot(parameters, parameters),
    }
    return gradient + 2 * l2 * parameters, statistics


def factor_gradient(
    total: Mapping[str, Any],
    logits: Floats,
    log_phi: Floats,
    *,
    entropy: float,
    l2: float,
    platform_scaling: bool,
) -> tuple[Losses, Floats, Floats]:
    """Evaluate the objective, and its derivatives by the parameters of the factors.

    Parameters
    ----------
    total
        Added statistics of `tile_gradient`.
    logits, log_phi, platform_scaling
        As in `factors`, and as they were in `tile_gradient`.
    entropy, l2
        As of `tile_gradient`.

    Returns
    -------
    losses
    by_logits : (n_factors, n_genes) float64
    by_log_phi : (n_panel,) float64
        Without platform scaling that of the squares alone.
    """
    n_panel = len(log_phi)
    Q, phi = factors(logits, log_phi, platform_scaling=platform_scaling)
    by_scaled = total["mass_v"][:, None] - total["ratios_v"]
    by_q = phi * by_scaled
    by_q[:, :n_panel] += total["mass_x"][:, None] - total["ratios_x"]
    by_log_phi = phi[:n_panel] * (Q * by_scaled)[:, :n_panel].sum(axis=0) * platform_scaling

    x = float(total["mass_x"] @ Q[:, :n_panel].sum(axis=1) - total["log_x"])
    v = float(total["mass_v"] @ (Q @ phi) - total["log_v"])
    squares = total["squares"] + np.vdot(logits, logits) + np.vdot(log_phi, log_phi)
    penalties = float(l2 * squares), float(entropy * total["entropy"])
    return (
        Losses(x + v + sum(penalties), x, v, *penalties),
        Q * (by_q - (by_q * Q).sum(axis=1, keepdims=True)) + 2 * l2 * logits,
        by_log_phi + 2 * l2 * log_phi,
    )


def _ratios(
    counts: sparse.csr_array, weights: Floats, table: Floats
) -> tuple[Floats, Floats, float]:
    """``R table^T`` and ``weights^T R`` of the ratios R, and the sum of ``y log mean``."""
    n_factors = len(table)
    rows, columns = padded(weights), padded(table.T)
    sums, out = np.zeros_like(rows), np.zeros_like(columns)
    log_sum = ratio_sums(Counts.of(counts), rows, columns, sums, out)
    return sums[:, :n_factors], out[:, :n_factors].T.copy(), log_sum
