"""What Harmony optimises: strata of cells, the two published flavours, penalties, stopping rules.

Batch variables are stacked: *levels* are the levels of all variables one after the other, and a
*stratum* is a combination of one level of each variable that some cell has. Tables over strata or
levels have one column per cluster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

OBJECTIVE_CELLS = 2000.0
"""The objective is reported per this many cells, as the R package does."""


@dataclass(frozen=True)
class Strata:
    """The batches of a data set.

    Attributes
    ----------
    levels
        Level of each variable in each stratum, ``(n_strata, n_variables)``, counted over all
        variables.
    cells
        Cells of each stratum, ``(n_strata,)``.
    variables
        Variable of each level, ``(n_levels,)``.
    """

    levels: NDArray[np.int64]
    cells: Floats
    variables: NDArray[np.int64]

    @property
    def n_levels(self) -> int:
        """Levels of all variables together."""
        return len(self.variables)

    @property
    def n_variables(self) -> int:
        """Batch variables."""
        return self.levels.shape[1]

    @property
    def level_cells(self) -> Floats:
        """Cells of each level, ``(n_levels,)``."""
        return self.by_level(self.cells)

    def by_level(self, table: Floats) -> Floats:
        """Sum a table over strata into one over levels."""
        sums = np.zeros((self.n_levels, *table.shape[1:]))
        for of_strata in self.levels.T:
            np.add.at(sums, of_strata, table)
        return sums

    def by_stratum(self, table: Floats) -> Floats:
        """Add up the rows of a table over levels for each stratum."""
        return np.asarray(table[self.levels].sum(axis=1))

    def expected(self, observed: Floats) -> Floats:
        """Masses of levels in clusters, ``(n_levels, n_clusters)``, if they were independent.

        Parameters
        ----------
        observed
            Soft number of cells of each stratum in each cluster, ``(n_strata, n_clusters)``.
        """
        return np.outer(self.level_cells / self.cells.sum(), observed.sum(axis=0))


@dataclass(frozen=True)
class Flavour:
    """Where the two published algorithms differ.

    Attributes
    ----------
    moves_centroids
        Centroids are means of the assigned rows, anew in every inner round, and soft clusters
        carry over to the next outer iteration. Otherwise centroids are fixed in the inner rounds,
        come from the intercepts of the regression, and every outer iteration starts without
        penalty.
    inner_rounds, inner_tolerance, tolerance
        Largest number of inner rounds, and relative changes of the objective that end the inner
        rounds and the outer iterations.
    ridge
        Penalty of the regression; None for a share of the expected mass.
    sparse_level
        A level of which a cluster holds no larger share than this is left out of its regression.
    """

    moves_centroids: bool
    inner_rounds: int
    inner_tolerance: float
    tolerance: float
    ridge: float | None
    sparse_level: float

    def log_factor(self, observed: Floats, expected: Floats) -> Floats:
        """Logarithm of the factor that favours under-represented levels."""
        if self.moves_centroids:
            return np.log((expected + 1) / (observed + 1))
        return np.log((2 * expected + 1) / (observed + expected + 1))


FLAVOURS = {
    "harmony1": Flavour(True, 20, 1e-5, 1e-4, ridge=1.0, sparse_level=-1.0),
    "harmony2": Flavour(False, 4, 1e-3, 1e-2, ridge=None, sparse_level=1e-5),
}


@dataclass(frozen=True)
class Settings:
    """All that decides a run, apart from the cells and the initial centroids.

    Attributes
    ----------
    theta
        Diversity penalty of each level, ``(n_levels,)``.
    damping
        Share of the old log penalty that an inner round keeps, ``(n_levels,)``, in [0, 1).
    ridge
        Penalty of each level in the regression, ``(n_levels,)``; None for the dynamic one.
    """

    flavour: Flavour
    strata: Strata
    theta: Floats
    damping: Floats
    sigma: float
    ridge: Floats | None
    inner_rounds: int
    inner_tolerance: float
    tolerance: float

    def log_penalty(self, observed: Floats) -> Floats:
        """Logarithm of the penalty of each level in each cluster, from masses of strata."""
        levels, expected = self.strata.by_level(observed), self.strata.expected(observed)
        return self.theta[:, None] * self.flavour.log_factor(levels, expected)

    def diversity(self, observed: Floats) -> float:
        """Penalty term of the objective, to be multiplied by sigma."""
        return -float((self.strata.by_level(observed) * self.log_penalty(observed)).sum())

    def settled(self, objective: Sequence[float] | Floats) -> bool:
        """Tell from the objectives so far whether the inner rounds end; they do after five."""
        old, new = sum(objective[-4:-1]), sum(objective[-3:])
        return abs(old - new) < self.inner_tolerance * abs(old)

    def converged(self, old: float, new: float) -> bool:
        """Tell from the objectives of two outer iterations whether they end."""
        return old - new < self.tolerance * abs(old)


def make_settings(
    flavour: str,
    strata: Strata,
    n_clusters: int,
    *,
    theta: ArrayLike = 2.0,
    tau: float = 0.0,
    sigma: float = 0.1,
    ridge: ArrayLike | None = None,
    damping: float | None = None,
    inner_rounds: int | None = None,
    inner_tolerance: float | None = None,
    tolerance: float | None = None,
) -> Settings:
    """Fill in what is None from the flavour.

    Parameters
    ----------
    flavour
        ``"harmony1"`` or ``"harmony2"``.
    theta, ridge
        One number, or one per variable.
    tau
        Cells per cluster below which the penalty of a level fades; 0 switches this off.
    damping
        None for theta / (2 + theta), 0.5 for the usual theta: a log penalty of harmony2 falls by
        theta / 2 per unit of log mass, so this makes the linearised update exact.

    Examples
    --------
    >>> strata = Strata(np.array([[0], [1]]), np.array([5.0, 5.0]), np.array([0, 0]))
    >>> make_settings("harmony2", strata, 3).damping
    array([0.5, 0.5])
    """
    chosen = FLAVOURS[flavour]
    of_variables = np.broadcast_to(np.asarray(theta, np.float64), strata.n_variables)
    of_levels = of_variables[strata.variables]
    if tau > 0:
        of_levels = of_levels * -np.expm1(-((strata.level_cells / (n_clusters * tau)) ** 2))
    natural = of_levels / (2 + of_levels)
    ridge = chosen.ridge if ridge is None else ridge
    if ridge is not None:
        ridge = np.broadcast_to(np.asarray(ridge, np.float64), strata.n_variables)[strata.variables]
    return Settings(
        chosen,
        strata,
        theta=of_levels,
        damping=natural if damping is None else np.full_like(natural, damping),
        sigma=sigma,
        ridge=ridge,
        inner_rounds=inner_rounds or chosen.inner_rounds,
        inner_tolerance=chosen.inner_tolerance if inner_tolerance is None else inner_tolerance,
        tolerance=chosen.tolerance if tolerance is None else tolerance,
    )


def unit_rows(values: NDArray[Any]) -> NDArray[Any]:
    """Rows scaled to length one; rows of zeros stay.

    Examples
    --------
    >>> unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]]))
    array([[0.6, 0.8],
           [0. , 0. ]])
    """
    length = np.sqrt((values * values).sum(axis=1, keepdims=True))
    return np.divide(values, length, out=np.zeros_like(values), where=length > 0)
