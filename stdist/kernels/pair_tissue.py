"""Where the cells and spots of a simulated pair of slides lie, what they are and who captures whom.

The model is described in :mod:`stdist.kernels.pair_simulation`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.special import ndtri

from stdist.kernels.keyed_random import stream_key, uniform, uniforms

Rows = NDArray[np.int32]
Types = NDArray[np.int16]
Floats = NDArray[np.float64]
Positions = NDArray[np.float32]

_FIELD = 100.0  # um, about


class Cells(NamedTuple):
    """Cells without counts: arrays as in :class:`stdist.kernels.pair_simulation.CellBlock`."""

    spatial: Positions
    cell_type: Types
    total: Floats


@dataclass(frozen=True)
class Spots:
    """Lattice of spots, centred in a square tissue, row by row.

    Attributes
    ----------
    width
        Edge of the tissue, um.
    lattice, pitch
        ``"hexagonal"`` or ``"square"``; distance between neighbours, um.
    capture_radius
        A spot captures the cells nearest to it up to this distance, um.
    """

    width: float
    lattice: Literal["hexagonal", "square"]
    pitch: float
    capture_radius: float

    @property
    def row_height(self) -> float:
        """Distance between rows, um."""
        return self.pitch * (0.75**0.5 if self.lattice == "hexagonal" else 1.0)

    @property
    def stagger(self) -> float:
        """Displacement of odd rows, um."""
        return self.pitch / 2 if self.lattice == "hexagonal" else 0.0

    @property
    def n_rows(self) -> int:
        """Number of rows of spots."""
        return max(1, round(self.width / self.row_height))

    @property
    def n_columns(self) -> int:
        """Number of spots in a row."""
        return max(1, round((self.width - self.stagger) / self.pitch))

    @property
    def corner(self) -> Floats:
        """Coordinates of the first spot, ``(2,)`` um."""
        extent = (self.n_columns - 1) * self.pitch + (self.stagger if self.n_rows > 1 else 0.0)
        return (self.width - np.array([extent, (self.n_rows - 1) * self.row_height])) / 2

    def points(self, start: int, stop: int) -> Floats:
        """Where spots `start` to `stop` (exclusive) stand, ``(stop - start, 2)`` um."""
        row, column = np.divmod(np.arange(start, stop), self.n_columns)
        along = column * self.pitch + row % 2 * self.stagger
        return self.corner + np.column_stack([along, row * self.row_height])

    def capturing(self, spatial: Positions) -> Rows:
        """Spot that captures each cell, int32 ``(n_cells,)``, -1 for none."""
        x, y = (spatial - self.corner).T
        nearest, spot = np.full(len(x), np.inf), np.full(len(x), -1, np.int32)
        for step in (-1, 0, 1):
            row = (np.rint(y / self.row_height) + step).clip(0, self.n_rows - 1)
            along = x - row % 2 * self.stagger
            column = np.rint(along / self.pitch).clip(0, self.n_columns - 1)
            distance = np.hypot(along - column * self.pitch, y - row * self.row_height)
            closer = distance < nearest
            nearest[closer] = distance[closer]
            spot[closer] = (row * self.n_columns + column)[closer].astype(np.int32)
        return np.where(nearest <= self.capture_radius, spot, np.int32(-1))

    def band(self, start: int, stop: int) -> tuple[float, float]:
        """Lowest and highest coordinate y of the cells that some spots may capture, um."""
        reach = min(self.capture_radius, 2 * self.pitch) + 1.0
        first, last = start // self.n_columns, (stop - 1) // self.n_columns
        low = float(self.corner[1])
        return low + first * self.row_height - reach, low + last * self.row_height + reach


@dataclass(frozen=True, eq=False)
class Tissue:
    """Cells on a checkerboard of types; small, whatever their number.

    Attributes
    ----------
    seed, n_cells
        Seed of all randomness; number of cells.
    width, square
        Edges of the tissue, with a corner at (0, 0), and of the squares of equal type, um.
    mean_total, total_sigma
        Expected counts of a cell over all genes, and the spread of their natural logarithm.
    square_type
        int16 ``(rows, columns)``.
    """

    seed: int
    n_cells: int
    width: float
    square: float
    mean_total: float
    total_sigma: float
    square_type: Types

    @property
    def _n_fields(self) -> int:
        """Number of fields along an edge."""
        return max(1, round(self.width / _FIELD))

    def cells(self, start: int, stop: int) -> Cells:
        """Cells `start` to `stop` (exclusive), the same in any block."""
        across, down, depth = (
            uniforms(stream_key(self.seed, "pair cell", number), start, stop - start)
            for number in range(3)
        )
        n = self._n_fields
        field = ((np.arange(start, stop) + 1) * n**2 - 1) // self.n_cells
        place = np.column_stack([field % n + across, field // n + down]) * (self.width / n)
        spatial = place.astype(np.float32)
        column, row = (spatial / self.square).astype(int).clip(0, len(self.square_type) - 1).T
        log_total = self.total_sigma * ndtri(depth) - self.total_sigma**2 / 2
        return Cells(spatial, self.square_type[row, column], self.mean_total * np.exp(log_total))

    def rows_between(self, low: float, high: float) -> tuple[int, int]:
        """Range of rows that contains all cells with ``low <= y <= high`` um."""
        n = self._n_fields
        first, last = (int(np.clip(y * n // self.width, 0, n - 1)) for y in (low, high))
        return first * n * self.n_cells // n**2, (last + 1) * n * self.n_cells // n**2


@njit(nogil=True, cache=True)
def checkerboard(key: np.uint64, n: int, n_types: int) -> Types:
    """Types of n x n squares, uniform over those that the left and lower neighbours are not.

    Parameters
    ----------
    key
        uint64 of :func:`stdist.kernels.keyed_random.stream_key`.
    n
        Number of squares along an edge.
    n_types
        At least 2.

    Returns
    -------
    ndarray
        int16 ``(n, n)``.

    Examples
    --------
    >>> types = checkerboard(np.uint64(1), 4, 3)
    >>> bool((types[1:] != types[:-1]).all() and (types[:, 1:] != types[:, :-1]).all())
    True
    """
    types = np.empty((n, n), np.int16)
    for row in range(n):
        for column in range(n):
            left = types[row, column - 1] if column else -1
            below = types[row - 1, column] if row else -1
            low, high = min(left, below), max(left, below)
            distinct = low >= 0 and low < high
            n_free = n_types - (high >= 0) - distinct
            drawn = int(uniform(key, np.uint64(row * n + column)) * n_free)
            if distinct and drawn >= low:
                drawn += 1
            if high >= 0 and drawn >= high:
                drawn += 1
            types[row, column] = drawn
    return types
