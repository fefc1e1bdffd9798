"""Update of the factors of a Poisson factorisation, from the added statistics of all tiles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from stdist.kernels.poisson_factors import Settings
from stdist.kernels.poisson_factors_rows import (
    SMALLEST,
    Floats,
    normalise,
    penalised_row,
    shrunken_log,
)

SMALLEST_SCALE = 1e-8
"""Least platform factor, that of a gene without counts in spots."""
LEAST_VARIANCE = 1e-3
"""Of profiles between factors, in units of their squared mean."""


class GlobalStep(NamedTuple):
    """Factors of the next pass.

    Attributes
    ----------
    Q : (n_factors, n_genes) float64
        Rows sum up to 1.
    phi : (n_genes,) float64
    gauge : (n_factors,) float64
        Former sums of the rows of Q, by which the next `tile_pass` multiplies columns of P.
    """

    Q: Floats
    phi: Floats
    gauge: Floats


def total_loss(total: Mapping[str, Any], Q: Floats, phi: Floats, settings: Settings) -> float:
    """Loss of added statistics with its penalties, those of the factors included.

    Parameters
    ----------
    total
        Added statistics of `tile_pass`.
    Q : (n_factors, n_genes) float64
    phi : (n_genes,) float64
        As of the pass.
    settings
        As of the pass.
    """
    loss = total["loss_x"] + total["loss_v"] + settings.entropy * total["entropy"]
    if settings.l2:
        logits = np.log(Q)
        squares = ((logits - logits.mean(axis=1, keepdims=True)) ** 2).sum()
        loss += settings.l2 * (total["squares"] + squares + (np.log(phi) ** 2).sum())
    return float(loss)


def global_step(
    total: Mapping[str, Any],
    Q: Floats,
    phi: Floats,
    n_panel: int,
    *,
    exponent: float = 1.0,
    l2: float = 0.0,
    platform_scaling: bool = True,
    prior: tuple[Floats, Floats] | None = None,
) -> GlobalStep:
    """Update the factors.

    Parameters
    ----------
    total
        Added statistics of `tile_pass` for all tiles.
    Q : (n_factors, n_genes) float64
    phi : (n_genes,) float64
        With which the pass was made; phi is 1 beyond the panel, and stays so.
    n_panel
        Number of genes, the first ones, that were counted in cells.
    exponent
        1 is the EM step, more is over-relaxation in logarithms.
    l2
        Weight of the squared logits of Q and logarithms of phi. With it rows of Q keep their sum,
        and the gauge is 1.
    platform_scaling
        Whether phi moves.
    prior : (n_genes,) float64 twice, optional
        Shape and rate of `profile_prior`, under which Q takes its posterior mean, counts and rates
        given.
    """
    panel = np.arange(Q.shape[1]) < n_panel
    counts, mass = total["factor_counts"], total["spot_mass"]
    rates = total["cell_mass"][:, None] * panel + phi * mass
    if prior is not None:
        counts, rates = counts + prior[0], rates + prior[1]
    if l2:
        new = np.empty_like(Q)
        for k in range(len(Q)):
            penalised_row(counts[k], rates[k], Q[k], 0.0, l2, new[k])
    else:
        new = np.divide(counts, rates, out=Q.copy(), where=rates > 0)
    scaled = phi
    if platform_scaling:
        scale = (mass * new).sum(axis=0)
        moves = panel & (scale > 0)
        free = np.divide(total["spot_counts"], scale, out=phi.copy(), where=moves)
        if l2:
            for g in np.flatnonzero(moves):
                free[g] = np.exp(shrunken_log(total["spot_counts"][g], scale[g], 0.0, l2))
        scaled = np.maximum(free, SMALLEST_SCALE)
    if exponent != 1.0:
        new = Q * (np.maximum(new, SMALLEST) / Q) ** exponent
        scaled = np.maximum(phi * (scaled / phi) ** exponent, SMALLEST_SCALE)
    sums = np.array([normalise(row) for row in new])
    return GlobalStep(new, scaled, np.ones(len(Q)) if l2 else sums)


def profile_prior(
    Q: Floats, cell_mass: Floats, spot_mass: Floats, n_panel: int
) -> tuple[Floats, Floats]:
    """Gamma prior of profiles, from how much those of the panel differ between factors.

    ``Q_kg`` has the mean ``q_g``, that over the factors k in spots, and for all genes the shape::

        s = 1 / (mean over the panel of  var_k(Q_kg) / q_g^2)

    where the variance is between factors in cells, and q_g weighs the genes. D counts under a rate
    r then make ``(D + s) / (r + s / q_g)``: genes that only spots count are believed to differ
    between factors as much as those that cells count do, unless their counts say otherwise.

    Parameters
    ----------
    Q : (n_factors, n_genes) float64
    cell_mass : (n_factors,) float64
    spot_mass : (n_factors, 1 or n_genes) float64
        Statistics of `tile_pass`.
    n_panel
        Number of genes, the first ones, that were counted in cells.

    Returns
    -------
    shape, rate : (n_genes,) float64
        0 for a gene without a mean.

    Examples
    --------
    >>> Q = np.array([[0.2, 0.8], [0.6, 0.4]])
    >>> profile_prior(Q, np.ones(2), np.ones((2, 1)), n_panel=1)
    (array([4., 4.]), array([10.        ,  6.66666667]))
    """
    weights = (cell_mass / cell_mass.sum())[:, None]
    of_cells = (weights * Q).sum(axis=0)[:n_panel]
    squares = (weights * (Q[:, :n_panel] - of_cells) ** 2).sum(axis=0)
    variance = np.divide(squares, of_cells, out=np.zeros(n_panel), where=of_cells > 0).sum()
    mean = (spot_mass * Q).sum(axis=0) / spot_mass.sum(axis=0)
    shape = (mean > 0) / max(variance / of_cells.sum(), LEAST_VARIANCE)
    return shape, np.divide(shape, mean, out=np.zeros_like(mean), where=mean > 0)


def next_exponent(exponent: float, loss: float, previous: float, largest: float = 1.8) -> float:
    """Exponent of the next `global_step`: a tenth more, but 1 where the loss rose.

    Examples
    --------
    >>> next_exponent(1.5, loss=-10.0, previous=-9.0), next_exponent(1.5, -9.0, -10.0)
    (1.6500000000000001, 1.0)
    """
    return 1.0 if loss > previous else min(1.1 * exponent, largest)
