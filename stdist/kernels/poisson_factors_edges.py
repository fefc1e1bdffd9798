"""Poisson factorisation where a cell may be counted in several spots, with a size in each.

The model is that of `stdist.kernels.poisson_factors` but for the spots of a cell::

    spots   phi_g (B Q)_jg,  B_j = sum of m_ij P_i over the edges of cells i to spot j

Cells of a spot then lie in several tiles, and a pass has three parts: the tiles of cells give what
they load on spots (`edge_loadings`), which is added by spot; the tiles of spots explain their
counts by that (`explain_spots`); the tiles of cells move their rows (`edge_pass`). The statistics
of the last two, added, are those of `global_step`. A pass is one exact EM iteration: the loss
never rises. There are no rounds within a pass, because what spots say changes with all cells.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy import sparse

from stdist.kernels.poisson_factors_rows import (
    SMALLEST,
    Counts,
    Floats,
    normalise,
    padded,
    penalised_row,
    ratio_sums,
    shrunken_log,
)
from stdist.kernels.poisson_factors_spots import SMALLEST_SIZE

Ints = NDArray[np.int64]


class EdgeRows(NamedTuple):
    """Parameters of cells: ``p (n_cells, n_factors)``, ``n (n_cells,)``, ``m (n_cells, k)``."""

    p: Floats
    n: Floats
    m: Floats


def edge_loadings(rows: EdgeRows, edges: Ints) -> tuple[Ints, Floats]:
    """What some cells load on the spots they belong to.

    Parameters
    ----------
    rows
        Of the cells.
    edges : (n_cells, k) int64
        Spots of each cell, -1 for none.

    Returns
    -------
    spots : (n_spots,) int64
        Those with an edge, ascending.
    loadings : (n_spots, n_factors) float64
        Sums of ``m P``.
    """
    cell, slot = np.nonzero(edges >= 0)
    spots, place = np.unique(edges[cell, slot], return_inverse=True)
    loadings = np.zeros((len(spots), rows.p.shape[1]))
    np.add.at(loadings, place.reshape(-1), rows.m[cell, slot, None] * rows.p[cell])
    return spots, loadings


def explain_spots(
    spots: sparse.csr_array, loadings: Floats, Q: Floats, phi: Floats
) -> tuple[Floats, dict[str, Any]]:
    """Explain the counts of spots by what all cells load on them.

    Parameters
    ----------
    spots : (n_spots, n_genes) csr, counts
    loadings : (n_spots, n_factors) float64
        Added `edge_loadings`; a spot without cells has none, and is left out.
    Q : (n_factors, n_genes) float64
    phi : (n_genes,) float64

    Returns
    -------
    ratios : (n_spots, n_factors) float64
        ``(Y / L) diag(phi) Q^T``, by which the loading of each factor should grow.
    statistics
        ``factor_counts``, ``spot_counts``, ``loss_v``, ``n_spots`` and ``empty_counts`` as of
        `stdist.kernels.poisson_factors.tile_pass`.
    """
    full = loadings.sum(axis=1) > 0
    scaled, weights = padded((Q * phi).T), padded(loadings[full])
    ratios, out = np.zeros_like(weights), np.zeros_like(scaled)
    log_sum = ratio_sums(Counts.of(spots[full]), weights, scaled, ratios, out)
    explained = (scaled * out)[:, : len(Q)]
    every = np.zeros((len(full), len(Q)))
    every[full] = ratios[:, : len(Q)]
    totals = np.asarray(spots.sum(axis=1), np.float64).ravel()
    return every, {
        "factor_counts": explained.T.copy(),
        "spot_counts": explained.sum(axis=1),
        "loss_v": float((weights @ scaled.sum(axis=0)).sum()) - log_sum,
        "n_spots": int(full.sum()),
        "empty_counts": float(totals[~full].sum()),
    }


def edge_pass(
    cells: sparse.csr_array,
    edges: Ints,
    rows: EdgeRows,
    ratios: Floats,
    Q: Floats,
    phi: Floats,
    *,
    entropy: float = 0.0,
    l2: float = 0.0,
) -> tuple[EdgeRows, dict[str, Any]]:
    """One EM step of the rows of a tile, the factors and what spots say fixed.

    Parameters
    ----------
    cells : (n_cells, n_panel) csr, counts
    edges : (n_cells, k) int64
        Rows of `ratios` of the spots of each cell, -1 for none.
    rows
        Of the cells, as in the `edge_loadings` that the ratios were made with.
    ratios : (n_spots, n_factors) float64
        Of `explain_spots`.
    Q : (n_factors, n_genes) float64
    phi : (n_genes,) float64
    entropy, l2
        As of `stdist.kernels.poisson_factors.Settings`.

    Returns
    -------
    rows
    statistics
        ``factor_counts``, ``cell_mass``, ``spot_mass``, ``loss_x``, ``entropy``, ``squares`` and
        ``n_cells`` as of `stdist.kernels.poisson_factors.tile_pass`.
    """
    n_factors, n_panel = Q.shape[0], cells.shape[1]
    panel = padded(Q[:, :n_panel].T)
    weights = padded(rows.n[:, None] * rows.p)
    sums, out = np.zeros_like(weights), np.zeros_like(panel)
    log_sum = ratio_sums(Counts.of(cells), weights, panel, sums, out)
    rate_cells, rate_spots = panel.sum(axis=0)[:n_factors], Q @ phi
    new = EdgeRows(rows.p.copy(), rows.n.copy(), rows.m.copy())
    _move(edges, rows, sums, ratios, rate_cells, rate_spots, entropy, l2, new)
    factor_counts = np.zeros_like(Q)
    factor_counts[:, :n_panel] = (panel * out)[:, :n_factors].T
    total, squares = _penalties(edges, rows) if entropy or l2 else (0.0, 0.0)
    return new, {
        "factor_counts": factor_counts,
        "cell_mass": new.n @ new.p,
        "spot_mass": (np.where(edges >= 0, new.m, 0.0).sum(axis=1) @ new.p)[:, None],
        "loss_x": float((rows.n * (rows.p @ rate_cells)).sum()) - log_sum,
        "entropy": total,
        "squares": squares,
        "n_cells": len(edges),
    }


def _penalties(edges: Ints, rows: EdgeRows) -> tuple[float, float]:
    """Entropy of the rows, and squares of their logits and log sizes."""
    logits = np.log(rows.p)
    centred = logits - logits.mean(axis=1, keepdims=True)
    squares = (centred**2).sum() + (np.log(rows.n) ** 2).sum()
    squares += (np.log(np.where(edges >= 0, rows.m, 1.0)) ** 2).sum()
    return float(-(rows.p * np.log(rows.p + SMALLEST)).sum()), float(squares)


@njit(nogil=True, cache=True)
def _size(count: float, rate: float, l2: float) -> float:
    size = math.exp(shrunken_log(count, rate, 0.0, l2)) if l2 > 0.0 else count / rate
    return max(size, SMALLEST_SIZE)


@njit(nogil=True, cache=True)
def _move(
    edges: Ints,
    rows: EdgeRows,
    sums: Floats,
    ratios: Floats,
    rate_cells: Floats,
    rate_spots: Floats,
    entropy: float,
    l2: float,
    new: EdgeRows,
) -> None:
    """Probabilities from the counts of a cell and its share of its spots', then the sizes."""
    h, n_edges = rows.p.shape[1], edges.shape[1]
    counts, rates, of_edge = np.empty(h), np.empty(h), np.empty(n_edges)
    for i in range(len(edges)):
        p, out = rows.p[i], new.p[i]
        counts[:] = rows.n[i] * p * sums[i, :h]
        of_cell, size = counts.sum(), 0.0
        for e in range(n_edges):
            of_edge[e] = 0.0
            if edges[i, e] < 0:
                continue
            size += rows.m[i, e]
            for k in range(h):
                count = rows.m[i, e] * p[k] * ratios[edges[i, e], k]
                of_edge[e] += count
                counts[k] += count
        rates[:] = rows.n[i] * rate_cells + size * rate_spots
        if counts.sum() <= 0.0:
            out[:] = p
        elif entropy == 0.0 and l2 == 0.0:
            out[:] = counts / rates
            normalise(out)  # the scale is that of the sizes
        else:
            penalised_row(counts, rates, p, entropy, l2, out)
        new.n[i] = _size(of_cell, (out * rate_cells).sum(), l2)
        for e in range(n_edges):
            if edges[i, e] >= 0:
                new.m[i, e] = _size(of_edge[e], (out * rate_spots).sum(), l2)
