"""Coupled Poisson factorisation of cells and of spots above them: exact EM steps on tiles.

Cell i has probabilities ``P_i`` of h factors, factor k the gene profile ``Q_k``; both sum up to 1.
Counts are Poisson with the means

    cells   n_i (P Q)_ig                                      genes of the panel
    spots   phi_g (B Q)_jg,  B_j = sum of m_i P_i over the cells i of spot j   all genes

Given Q and the platform factors phi, a spot and its cells are a problem of their own. A tile is
some spots with all their cells (cells without a spot go to any tile): `tile_pass` improves its
rows ``P, n, m`` and returns statistics. Those of all tiles, added, are what `global_step` needs
for Q and phi. A pass with one plain round, then the global step, is one generalised EM iteration:
the loss ``sum(mean - count log mean)`` never rises.

The method is SIID's (Genome Research 2025, doi 10.1101/gr.280555.125), its optimiser is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from stdist.kernels.array_module import array_module, host_array
from stdist.kernels.poisson_factors_device import improve_on_device
from stdist.kernels.poisson_factors_rows import Counts, Floats, padded
from stdist.kernels.poisson_factors_spots import (
    Factors,
    Options,
    Rows,
    Sums,
    Work,
    begin_rows,
    improve_rows,
)

Statistics = dict[str, Any]
Triple = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True)
class Settings:
    """How the rows of a tile move.

    Attributes
    ----------
    rounds
        E-steps in a pass, factors fixed. Rows move after each.
    exponent
        Of over-relaxation between rounds: how many plain steps are taken at once, in logarithms.
        A spot whose loss rose goes back to a single one.
    entropy
        Weight of the entropy of a cell's probabilities, in nats per cell.
    l2
        Weight of the squared logits of P and Q and logarithms of n, m and phi.
    tied
        Whether the cells of spot j share one scale, ``m_i = s_j n_i``.
    shrink
        Whether profiles are drawn towards their mean (see `profile_prior`).
    """

    rounds: int = 3
    exponent: int = 3
    entropy: float = 0.0
    l2: float = 0.0
    tied: bool = False
    shrink: bool = False


def _groups(spot: NDArray[np.integer]) -> Triple:
    """Order of cells, starts of groups in it, and their spots; a cell without spot is a group."""
    order = np.argsort(spot, kind="stable")
    ordered = spot[order].astype(np.int64)
    first = (ordered < 0) | (np.diff(ordered, prepend=-1) != 0)
    starts = np.append(np.flatnonzero(first), len(order))
    return order, starts, ordered[first]


def tile_pass(
    cells: sparse.csr_array,
    spots: sparse.csr_array,
    spot: NDArray[np.integer],
    rows: Rows,
    Q: Floats,
    phi: Floats,
    settings: Settings,
    gauge: Floats | None = None,
    dispersion: Floats | None = None,
) -> tuple[Rows, Statistics]:
    """Improve the rows of a tile with the factors fixed.

    Arrays are NumPy's, with CSR matrices of SciPy, or all CuPy's.

    Parameters
    ----------
    cells : (n_cells, n_panel) csr, counts
        Float32 with int32 indices is read in place, other types are copied.
    spots : (n_spots, n_genes) csr, counts
        Genes of the panel first.
    spot : (n_cells,) int
        Row in `spots` of the spot of each cell, -1 without.
    rows
        ``p (n_cells, n_factors)``, ``n`` and ``m (n_cells,)``; float64.
    Q : (n_factors, n_genes) float64
    phi : (n_genes,) float64
    settings
        See `Settings`.
    gauge : (n_factors,) float64, optional
        Of the `GlobalStep` that made `Q`.
    dispersion : (n_genes,) float64, optional
        Of negative binomial counts in spots, ``variance = mean + dispersion mean^2``.

    Returns
    -------
    rows
        After the last round.
    statistics
        Those of tiles add. Losses, penalties and ratios belong to the rows that the last round
        began with, masses to those after it: ``factor_counts (n_factors, n_genes)``, counts by
        the factor that explains them; ``cell_mass (n_factors,)``, sum of ``n P``; ``spot_mass
        (n_factors, 1)``, sum of B, or ``(n_factors, n_genes)`` with the gene's weights;
        ``spot_counts (n_genes,)``, explained counts of spots with cells; ``log_gamma
        (n_genes,)``, for `dispersion_step`; ``loss_x`` and ``loss_v``, spots without cells left
        out; ``entropy``; ``squares``; ``n_cells``, ``n_spots`` with cells, ``empty_spots`` and
        their ``empty_counts``; ``rejected``, over-relaxed rounds that were undone.
    """
    n_factors, n_panel = Q.shape[0], cells.shape[1]
    xp = array_module(rows.p)
    groups = _groups(host_array(spot))
    learnt = np.empty(0) if dispersion is None else np.asarray(dispersion, np.float64)
    panel, scaled = padded(Q[:, :n_panel].T), padded((Q * phi).T)
    factors = Factors(panel, scaled, panel.sum(axis=0), scaled.sum(axis=0), learnt)
    options = Options(
        n_factors,
        settings.rounds,
        settings.exponent,
        settings.entropy,
        settings.l2,
        settings.tied,
    )
    improve = _improve if xp is np else improve_on_device
    new, sums = improve(cells, spots, groups, begin_rows(rows, gauge), factors, options)
    explained = scaled * sums.spots  # (n_genes, n_padded)
    spot_counts = explained.sum(axis=1)
    explained[:n_panel] += panel * sums.cells
    empty = np.ones(spots.shape[0], np.bool_)
    empty[groups[2][groups[2] >= 0]] = False
    loss_x, loss_v, entropy, squares, rejected = sums.scalars
    statistics = {
        "factor_counts": explained[:, :n_factors].T.copy(),
        "cell_mass": sums.mass_cells[:n_factors],
        "spot_mass": sums.mass_spots[:, :n_factors].T.copy(),
        "spot_counts": spot_counts,
        "loss_x": loss_x,
        "loss_v": loss_v,
        "entropy": entropy,
        "squares": squares,
        "n_cells": len(spot),
        "n_spots": int((~empty).sum()),
        "empty_spots": int(empty.sum()),
        "empty_counts": _counts_of(spots, empty),
        "rejected": rejected,
    }
    if dispersion is not None:
        statistics["log_gamma"] = sums.log_gamma
    mine = xp.where(spot >= 0, new.m, rows.m)
    return Rows(new.p[:, :n_factors].copy(), new.n, mine), statistics


def _improve(
    cells: sparse.csr_array,
    spots: sparse.csr_array,
    groups: Triple,
    now: Rows,
    factors: Factors,
    options: Options,
) -> tuple[Rows, Sums]:
    of_cells, of_spots = Counts.of(cells), Counts.of(spots)
    width, n_learnt = now.p.shape[1], len(factors.dispersion)
    sums = Sums(
        np.zeros_like(factors.cells),
        np.zeros_like(factors.spots),
        np.zeros(width),
        np.zeros((max(1, n_learnt), width)),
        np.zeros(n_learnt),
        np.zeros(5),
    )
    work = Work(
        np.zeros_like(now.p),
        np.zeros(width),
        np.zeros(width),
        np.zeros(width),
        np.zeros(width),
        np.zeros(_largest_group(of_cells, of_spots, *groups)),
        np.zeros(n_learnt),
        np.zeros(n_learnt),
    )
    plain = Rows(*map(np.copy, now))
    improve_rows(of_cells, of_spots, *groups, now, plain, factors, options, work, sums)
    return now, sums


def _counts_of(spots: sparse.csr_array, chosen: NDArray[np.bool_]) -> float:
    """Counts of some spots together; of a device's rows too."""
    if not chosen.any():
        return 0.0
    entries = np.repeat(chosen, np.diff(host_array(spots.indptr)))
    return float(spots.data[array_module(spots.data).asarray(entries)].sum(dtype=np.float64))


def _largest_group(
    cells: Counts,
    spots: Counts,
    order: NDArray[np.int64],
    starts: NDArray[np.int64],
    spot_of_group: NDArray[np.int64],
) -> int:
    """Non-zeros of the largest group."""
    if not len(order):
        return 0
    of_group = np.add.reduceat(np.diff(cells.indptr)[order], starts[:-1])
    of_spot = np.append(np.diff(spots.indptr), 0)[spot_of_group]
    return int((of_group + of_spot).max())


def spot_loadings(rows: Rows, spot: NDArray[np.integer], n_spots: int) -> Floats:
    """``B``, sums of ``m P`` over the cells of each spot; ``(n_spots, n_factors)``."""
    mapped = spot >= 0
    loadings = np.zeros((n_spots, rows.p.shape[1]))
    np.add.at(loadings, spot[mapped], rows.m[mapped, None] * rows.p[mapped])
    return loadings


def proportions(loadings: Floats) -> Floats:
    """Shares of the factors in each spot, NaN in one without cells; ``(n_spots, n_factors)``."""
    total = loadings.sum(axis=1, keepdims=True)
    return np.divide(loadings, total, out=np.full_like(loadings, np.nan), where=total > 0)
