"""Where the cells of a simulated cohort lie, what they are and how deep; the truth they follow.

The model is described in :mod:`stdist.kernels.cohort`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from stdist.kernels.keyed_random import row_hash, stream_key, uniform_of_hash

FloatArray = NDArray[np.float64]

CELLS_PER_MM2 = 2800.0


@dataclass(frozen=True, eq=False)
class CohortModel:
    """Truth of a simulated cohort; small, whatever the number of cells.

    Attributes
    ----------
    seed, n_cells
        Seed of all randomness; cells of all slides together.
    depth_sigma, scatter_fraction, boundary_width
        Spread of log depth; share of cells outside the domains; blur of domains in um.
    type_rate
        float64 (n_types, n_genes): mean count of a cell of depth 1 without batch effect.
    marker
        bool (n_types, n_genes): genes raised in a type.
    batch_effect, batch_type_effect
        float64 (n_batches, n_genes) and (n_batches, n_types, n_genes), natural logarithm.
    domain_centre, domain_type, slide_shift
        float64 (n_domains, 2) and (n_batches, n_domains, 2) in slide widths; int16 (n_domains,).
    """

    seed: int
    n_cells: int
    depth_sigma: float
    scatter_fraction: float
    boundary_width: float
    type_rate: FloatArray
    marker: NDArray[np.bool_]
    batch_effect: FloatArray
    batch_type_effect: FloatArray
    domain_centre: FloatArray
    domain_type: NDArray[np.int16]
    slide_shift: FloatArray

    @property
    def batch_offsets(self) -> NDArray[np.int64]:
        """First row of every slide, then ``n_cells``: int64 (n_batches + 1,)."""
        n_batches = len(self.batch_effect)
        return np.array([b * self.n_cells // n_batches for b in range(n_batches + 1)], np.int64)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Plain arrays by name (scalars 0-dimensional), to keep with the data."""
        return {field.name: np.asarray(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> CohortModel:
        """Model of :meth:`to_arrays`.

        Raises
        ------
        ValueError
            An array is missing.
        """
        missing = [field.name for field in fields(cls) if field.name not in arrays]
        if missing:
            msg = f"not the truth of a simulated cohort: {', '.join(missing)} missing"
            raise ValueError(msg)
        values: dict[str, Any] = {}
        for field in fields(cls):
            array = np.asarray(arrays[field.name])
            values[field.name] = array if array.ndim else array.item()
        return cls(**values)


class Cells(NamedTuple):
    """Cells without their counts: arrays as in :class:`stdist.kernels.cohort.CohortBlock`."""

    batch: NDArray[np.int16]
    cell_type: NDArray[np.int16]
    spatial: NDArray[np.float32]
    depth: NDArray[np.float32]


def cells_of_rows(model: CohortModel, rows: NDArray[np.uint64]) -> Cells:
    """Cells of the global rows, uint64 (n,) in ascending order."""
    offsets = model.batch_offsets
    batch = (np.searchsorted(offsets, rows.astype(np.int64), side="right") - 1).astype(np.int16)
    width = 1000.0 * np.sqrt(np.diff(offsets) / CELLS_PER_MM2)
    keys = np.array([stream_key(model.seed, "cohort cell", number) for number in range(8)])
    cell_type = np.empty(rows.size, np.int16)
    spatial, depth = np.empty((rows.size, 2), np.float32), np.empty(rows.size, np.float32)
    _place_cells(
        keys,
        rows,
        batch,
        width,
        model.domain_centre + model.slide_shift,
        model.domain_type,
        model.type_rate.shape[0],
        model.scatter_fraction,
        model.boundary_width,
        model.depth_sigma,
        cell_type,
        spatial,
        depth,
    )
    return Cells(batch, cell_type, spatial, depth)


@njit(nogil=True, cache=True)
def _normal_pair(u: float, v: float) -> tuple[float, float]:
    radius = np.sqrt(-2.0 * np.log(u))  # Box and Muller 1958
    return radius * np.cos(2.0 * np.pi * v), radius * np.sin(2.0 * np.pi * v)


@njit(nogil=True, cache=True)
def _place_cells(
    keys: NDArray[np.uint64],
    rows: NDArray[np.uint64],
    batch: NDArray[np.int16],
    width: FloatArray,
    centre: FloatArray,
    domain_type: NDArray[np.int16],
    n_types: int,
    scatter_fraction: float,
    boundary_width: float,
    depth_sigma: float,
    cell_type: NDArray[np.int16],
    spatial: NDArray[np.float32],
    depth: NDArray[np.float32],
) -> None:
    """Types, positions and depths of cells; ``centre`` is (n_batches, n_domains, 2)."""
    u = np.empty(keys.size)
    for i in range(rows.size):
        hashed = row_hash(rows[i])
        for number in range(keys.size):
            u[number] = uniform_of_hash(keys[number], hashed)
        b = batch[i]
        spatial[i, 0], spatial[i, 1] = width[b] * u[0], width[b] * u[1]
        depth_deviate, _ = _normal_pair(u[2], u[3])
        depth[i] = np.exp(depth_sigma * depth_deviate - 0.5 * depth_sigma**2)
        if u[4] < scatter_fraction:
            cell_type[i] = int(u[5] * n_types)
            continue
        blur_x, blur_y = _normal_pair(u[6], u[7])
        x = u[0] + boundary_width / width[b] * blur_x
        y = u[1] + boundary_width / width[b] * blur_y
        nearest = np.inf
        for d in range(domain_type.size):
            distance = (x - centre[b, d, 0]) ** 2 + (y - centre[b, d, 1]) ** 2
            if distance < nearest:
                nearest = distance
                cell_type[i] = domain_type[d]
