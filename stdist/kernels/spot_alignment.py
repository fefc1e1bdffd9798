"""Likelihood of where a slide of spots lies on a slide of cells.

Cell i at x_i has the loadings ``n_i P_i`` of h factors, factor k the gene profile ``Q_k``. A spot
at y sees a blur of the cells beneath it and a little of all cells::

    B(y) = sum of n_i P_i exp(-|x_i - y|^2 / 2 sigma^2) over the cells + c mean of n_i P_i
    counts of the spot  ~ Poisson(s phi_g (B(y) Q)_g)

with a scale s of its own, taken at its optimum: only the composition of the spot tells where it
lies, not how many counts it has. That ties the scales of a cell on both slides (``m_i = s n_i``);
with a free scale per cell any place explains any spot (SIID, Genome Research 2025, whose model
this is). Off the tissue B is the mean of all cells, and the gain over that mean is zero.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from stdist.kernels.poisson_factors_rows import SMALLEST, Counts, Floats

Ints = NDArray[np.int64]

SMALLEST_SCALE = 1e-8
"""Least platform factor, that of a gene without counts in the spots."""

_REACH = 4.0  # sigma, of the blur


class Field(NamedTuple):
    """Blurred loadings on grids, one for each window of the tissue.

    ``values`` float64 ``(n_windows, n_y, n_x, n_factors)``; ``origin`` float64 ``(n_windows, 2)``:
    x and y of the first node; ``step``: distance of the nodes, um.
    """

    values: Floats
    origin: Floats
    step: float


class Profiles(NamedTuple):
    """What factors look like on the slide of spots.

    ``of_gene`` float64 ``(n_genes, n_factors)``: transposed Q diag(phi); ``half`` int64
    ``(n_genes,)``, 0 or 1; ``mass`` float64 ``(2, n_factors)``: sums of `of_gene` over the genes
    of each half.
    """

    of_gene: Floats
    half: Ints
    mass: Floats

    @classmethod
    def of(cls, Q: Floats, phi: Floats, half: Ints) -> Profiles:
        """Tables of factors ``(n_factors, n_genes)`` and platform factors ``(n_genes,)``."""
        of_gene = np.ascontiguousarray(np.maximum(Q * phi, SMALLEST).T)
        return cls(
            of_gene, half, np.stack([of_gene[half == which].sum(axis=0) for which in (0, 1)])
        )


def composition_field(
    points: Floats, loadings: Floats, low: Floats, high: Floats, step: float, sigma: float
) -> Field:
    """Blur the loadings of cells.

    Parameters
    ----------
    points : (n_cells, 2) float64
        Of the cells, um.
    loadings : (n_cells, n_factors) float64
        Size times probabilities of the factors.
    low, high : (n_windows, 2) float64
        Corners of the windows.
    step, sigma
        Of the grid and of the blur, um.

    Returns
    -------
    Field
    """
    shape = np.ceil((high - low).max(axis=0) / step).astype(np.int64) + 1
    values = np.zeros((len(low), shape[1], shape[0], loadings.shape[1]))
    for window, corner in zip(values, low, strict=True):
        column, row = np.rint((points - corner) / step).astype(np.int64).T
        inside = (column >= 0) & (column < shape[0]) & (row >= 0) & (row < shape[1])
        node = row[inside] * shape[0] + column[inside]
        for k in range(loadings.shape[1]):
            summed = np.bincount(node, loadings[inside, k], int(shape[0] * shape[1]))
            window[:, :, k] = summed.reshape(shape[1], shape[0])
        for axis in (0, 1):
            window[:] = gaussian_filter1d(
                window, sigma / step, axis, mode="constant", truncate=_REACH
            )
    return Field(values, low, step)


def moved(points: Floats, moves: Floats, centre: Floats, radius: float) -> Floats:
    """Points after rigid moves ``(dx, dy, radius * angle)`` in um; ``(n_moves, n_points, 2)``.

    The angle turns about `centre`. With the root mean square distance of the points from it as
    `radius`, the norm of a small move is how far it takes the points.

    Examples
    --------
    >>> moved(np.array([[10.0, 0.0]]), np.array([[1.0, 2.0, 0.0]]), np.zeros(2), 10.0)
    array([[[11.,  2.]]])
    """
    return np.stack(
        [points @ matrix[:2, :2].T + matrix[:2, 2] for matrix in rigid(moves, centre, radius)]
    )


def rigid(moves: Floats, centre: Floats, radius: float) -> Floats:
    """Homogeneous matrices of rigid moves, see `moved`; ``(n_moves, 3, 3)``.

    Examples
    --------
    >>> rigid(np.array([[1.0, 2.0, 0.0]]), np.array([5.0, 5.0]), 10.0)[0]
    array([[1., 0., 1.],
           [0., 1., 2.],
           [0., 0., 1.]])
    """
    angle = moves[:, 2] / radius
    matrices = np.zeros((len(moves), 3, 3))
    matrices[:, 0, 0] = matrices[:, 1, 1] = np.cos(angle)
    matrices[:, 1, 0] = np.sin(angle)
    matrices[:, 0, 1] = 0.0 - matrices[:, 1, 0]
    matrices[:, :2, 2] = moves[:, :2] + centre - matrices[:, :2, :2] @ centre
    matrices[:, 2, 2] = 1.0
    return matrices


@njit(nogil=True, cache=True)
def compositions_at(field: Field, window: Ints, places: Floats) -> Floats:
    """Loadings at places, between the nodes of the grid; zero off it.

    Parameters
    ----------
    field
        Of `composition_field`.
    window : (n_spots,) int64
        Grid of each spot.
    places : (n_spots, 2) float64

    Returns
    -------
    (n_spots, n_factors) float64
    """
    values, n_y, n_x = field.values, field.values.shape[1], field.values.shape[2]
    out = np.zeros((len(places), values.shape[3]))
    for j in range(len(places)):
        w = window[j]
        x = (places[j, 0] - field.origin[w, 0]) / field.step
        y = (places[j, 1] - field.origin[w, 1]) / field.step
        left, below = math.floor(x), math.floor(y)
        if left < 0 or below < 0 or left + 1 >= n_x or below + 1 >= n_y:
            continue
        x, y = x - left, y - below
        for k in range(values.shape[3]):
            lower = (1 - x) * values[w, below, left, k] + x * values[w, below, left + 1, k]
            upper = (1 - x) * values[w, below + 1, left, k] + x * values[w, below + 1, left + 1, k]
            out[j, k] = (1 - y) * lower + y * upper
    return out


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
def log_likelihoods(counts: Counts, loadings: Floats, profiles: Profiles) -> Floats:
    """Log likelihood of each spot at its best scale, up to a constant of its counts.

    Parameters
    ----------
    counts
        Of the spots, ``(n_spots, n_genes)``.
    loadings : (n_spots, n_factors) float64
        Positive, of any scale.
    profiles
        Of `Profiles.of`.

    Returns
    -------
    (n_spots, 3) float64
        From all genes, and from the genes of each half alone.
    """
    out = np.zeros((len(loadings), 3))
    for j in range(len(loadings)):
        logs, totals, masses = np.zeros(2), np.zeros(2), np.zeros(2)
        for e in range(counts.indptr[j], counts.indptr[j + 1]):
            gene, mean = counts.genes[e], 0.0
            for k in range(loadings.shape[1]):
                mean += loadings[j, k] * profiles.of_gene[gene, k]
            logs[profiles.half[gene]] += counts.values[e] * math.log(mean)
            totals[profiles.half[gene]] += counts.values[e]
        for half in range(2):
            mass = 0.0  # not stored in the loop, see `poisson_factors_spots._dot`
            for k in range(loadings.shape[1]):
                mass += loadings[j, k] * profiles.mass[half, k]
            masses[half] = mass
            out[j, 1 + half] = logs[half] - totals[half] * math.log(masses[half])
        out[j, 0] = logs.sum() - totals.sum() * math.log(masses.sum())
    return out


def platform_factors(
    of_gene: Floats, of_spot: Floats, loadings: Floats, Q: Floats, rounds: int = 10
) -> Floats:
    """Platform factors and, unseen, the scales of the spots, by turns at their optimum.

    Parameters
    ----------
    of_gene, of_spot : (n_genes,) and (n_spots,) float64
        Sums of the counts over the spots, and over the genes.
    loadings : (n_spots, n_factors) float64
    Q : (n_factors, n_genes) float64
    rounds
        Number of turns.

    Returns
    -------
    (n_genes,) float64
    """
    phi = np.ones(len(of_gene))
    for _ in range(rounds):
        scale = of_spot / (loadings @ (Q @ phi))
        phi = np.maximum(of_gene / np.maximum((scale @ loadings) @ Q, SMALLEST), SMALLEST_SCALE)
    return phi
