"""Harmony in memory with sequential updates, as the published programs do it.

In each inner round the cells are visited in blocks; every block sees the masses that the blocks
before it left. That is inherently serial: `harmony_rounds` is the parallel form. This one is for
parity, and the oracle of the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from stdist.kernels.harmony_ridge import intercept_centroids, level_shift, regress
from stdist.kernels.harmony_settings import OBJECTIVE_CELLS, Floats, Settings, unit_rows

CLOSE_TO_ZERO = 1e-300


@dataclass
class Harmonized:
    """What a run leaves.

    Attributes
    ----------
    corrected
        Corrected rows, ``(n_cells, n_dims)``.
    weights
        Soft clusters, ``(n_cells, n_clusters)``.
    centroids
        Unit rows that the soft clusters belong to, ``(n_clusters, n_dims)``.
    observed
        Mass of each stratum in each cluster, ``(n_strata, n_clusters)``.
    coefficients
        Of the last regression, ``(n_clusters, 1 + n_levels, n_dims)``.
    inner_objective, objective, rounds
        Objective at the start and after each inner round; at the start and after each outer
        iteration; inner rounds of each outer iteration.
    """

    corrected: Floats
    weights: Floats
    centroids: Floats
    observed: Floats
    coefficients: Floats
    inner_objective: list[float] = field(default_factory=list)
    objective: list[float] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)


def harmonize(
    values: Floats,
    strata: NDArray[np.integer],
    centroids: Floats,
    order: Callable[[int], NDArray[np.integer]],
    settings: Settings,
    *,
    max_iterations: int = 10,
    block_share: float = 0.05,
) -> Harmonized:
    """Run Harmony from given centroids with given orders of the cells.

    Parameters
    ----------
    values
        Embedding, ``(n_cells, n_dims)``.
    strata
        Stratum of each cell, ``(n_cells,)``.
    centroids
        Initial centroids, ``(n_clusters, n_dims)``, of any length.
    order
        Permutation of the cells in an inner round, by its number counted through the run.
    settings
        Flavour, strata and parameters; its damping is not used.
    max_iterations
        Largest number of outer iterations.
    block_share
        Share of the cells in one block; the last block takes what is left over.

    Returns
    -------
    Harmonized
        Embedding, soft clusters, tables and convergence.
    """
    run = _Run(values.astype(np.float64), strata, unit_rows(centroids.astype(np.float64)), settings)
    n_blocks = int(np.ceil(1 / block_share))
    size = int(len(values) * block_share)
    edges = [*(size * block for block in range(n_blocks)), len(values)]
    visited, done = 0, run.found
    for iteration in range(max_iterations):
        run.begin(first=iteration == 0)
        for number in range(settings.inner_rounds):
            cells = order(visited)
            run.sweep([cells[first:last] for first, last in pairwise(edges)])
            visited += 1
            if number >= 4 and settings.settled(done.inner_objective):
                break
        done.rounds.append(number + 1)
        done.objective.append(done.inner_objective[-1])
        run.correct()
        if settings.converged(*done.objective[-2:]):
            break
    return done


class _Run:
    """The state between steps: rows of unit length, distances, soft clusters and masses."""

    def __init__(
        self, values: Floats, strata: NDArray[np.integer], centroids: Floats, settings: Settings
    ) -> None:
        self.values, self.strata, self.settings = values, strata, settings
        self.unit, self.centroids = unit_rows(values), centroids
        self.n_strata = len(settings.strata.cells)
        self.assign()
        self.found = Harmonized(values, self.weights, centroids, self.observed, np.empty(0))
        self.found.inner_objective.append(self.objective())
        self.found.objective.append(self.objective())

    def assign(self) -> None:
        """Soft clusters without penalty."""
        self.weights = self.similarity = self._similarity()
        self.observed = self.masses()

    def _similarity(self) -> Floats:
        self.distance = 2 * (1 - self.unit @ self.centroids.T)
        logits = -self.distance / self.settings.sigma
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))

    def masses(self) -> Floats:
        """Sums of the soft clusters over each stratum."""
        return self._masses(self.strata, self.weights)

    def _masses(self, strata: NDArray[np.integer], weights: Floats) -> Floats:
        sums = np.zeros((self.n_strata, weights.shape[1]))
        np.add.at(sums, strata, weights)
        return sums

    def objective(self) -> float:
        """Distance, entropy and diversity, for `OBJECTIVE_CELLS` cells."""
        settings, weights = self.settings, self.weights
        entropy = (weights * np.log(np.maximum(weights, CLOSE_TO_ZERO))).sum()
        spread = entropy + settings.diversity(self.observed)
        total = (weights * self.distance).sum() + settings.sigma * spread
        return float(total) * OBJECTIVE_CELLS / len(weights)

    def begin(self, *, first: bool) -> None:
        """Start an outer iteration."""
        if not (first or self.settings.flavour.moves_centroids):
            self.assign()
        self.weights = self.weights.copy()

    def sweep(self, blocks: list[NDArray[np.integer]]) -> None:
        """One inner round: every block sees the masses that the blocks before it left."""
        settings = self.settings
        if settings.flavour.moves_centroids:
            self.centroids = unit_rows(self.weights.T @ self.unit)
            self.similarity = self._similarity()
        for cells in blocks:
            strata = self.strata[cells]
            others = self.observed - self._masses(strata, self.weights[cells])
            factor = np.exp(settings.strata.by_stratum(settings.log_penalty(others)))
            weights = self.similarity[cells] * factor[strata]
            weights /= weights.sum(axis=1, keepdims=True)
            self.weights[cells] = weights
            self.observed = others + self._masses(strata, weights)
        self.found.inner_objective.append(self.objective())

    def correct(self) -> None:
        """Regress the batches out of the uncorrected rows."""
        settings, found = self.settings, self.found
        table = settings.strata
        sums = np.zeros((table.n_levels, self.weights.shape[1], self.values.shape[1]))
        for stratum, levels in enumerate(table.levels):
            mine = self.strata == stratum
            sums[levels] += self.weights[mine].T @ self.values[mine]
        coefficients = regress(settings, self.observed, sums)
        shift = level_shift(table, coefficients)
        found.corrected = self.values - np.einsum("nk,nkd->nd", self.weights, shift[self.strata])
        found.weights, found.centroids = self.weights, self.centroids
        found.coefficients = coefficients
        found.observed = self.observed
        if not settings.flavour.moves_centroids:
            self.centroids = intercept_centroids(self.centroids, coefficients)
        self.unit = unit_rows(found.corrected)
