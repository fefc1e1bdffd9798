"""Simulated pair of slides of one tissue with known truth: cells with a panel, spots with genes.

Cell i, with U uniform and N standard normal numbers that belong to (seed, purpose, i), and spot s,
which captures the cells nearest to it within a radius; sigma are the parameters of the same name::

    position  uniform in a field of about 100 x 100 um; each field has its share of the rows
    type      t = that of the square of the checkerboard under the cell
    total     n_i = mean_total exp(total_sigma N - total_sigma^2 / 2)
    cell      x_ig ~ Poisson(n_i profile_tg),  genes of the panel only
    spot      y_sg ~ Poisson(phi_g sum over its cells of n_i profile_tg),  all genes

    profile   proportional to exp(rate_sigma N_g + type_sigma N_tg), sums to 1 over the genes
    phi_g     = exp(platform_sigma N_g)
    squares   each of a random type other than those of its neighbours

Cells follow each other field by field, so that those near some spots are a short range of rows:
any rows of cells or spots are made by themselves, and any split into blocks gives the same pair.
Spots stand on a centred lattice, row by row. Their coordinates are given displaced by a known
shift, as by a registration that failed; what they capture is not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.special import ndtri

from stdist.kernels.keyed_random import stream_key, uniforms
from stdist.kernels.pair_tissue import Floats, Positions, Rows, Spots, Tissue, Types, checkerboard
from stdist.kernels.poisson_draw import poisson_draws

_DRAWN_AT_ONCE = 1 << 20  # counts


class CellBlock(NamedTuple):
    """Some cells: ``counts`` uint16 CSR ``(n_cells, n_panel)`` and their truth.

    ``spatial`` float32 ``(n_cells, 2)`` um; ``cell_type`` int16, ``total`` float64 (expected
    counts over all genes) and ``spot`` int32 (that captures the cell, -1 for none) ``(n_cells,)``.
    """

    counts: sparse.csr_matrix
    spatial: Positions
    cell_type: Types
    total: Floats
    spot: Rows


class SpotBlock(NamedTuple):
    """Some spots: ``counts`` uint32 CSR ``(n_spots, n_genes)`` and their truth.

    ``spatial`` float32 ``(n_spots, 2)`` um, displaced; ``type_total`` float64
    ``(n_spots, n_types)``: totals of the captured cells by type; ``n_cells`` int32 ``(n_spots,)``.
    """

    counts: sparse.csr_matrix
    spatial: Positions
    type_total: Floats
    n_cells: Rows


@dataclass(frozen=True, eq=False)
class PairModel:
    """Truth of a simulated pair, of `pair_model`; small, whatever the number of cells.

    Attributes
    ----------
    tissue, lattice
        Cells and spots.
    n_panel
        Number of genes that cells are measured for.
    profiles, platform_factor
        float64 ``(n_types, n_genes)``, rows of sum 1, and ``(n_genes,)``.
    shift
        Displacement of the spots' coordinates, float64 ``(2,)`` um.
    """

    tissue: Tissue
    lattice: Spots
    n_panel: int
    profiles: Floats
    platform_factor: Floats
    shift: Floats

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self.tissue.n_cells

    @property
    def n_spots(self) -> int:
        """Number of spots."""
        return self.lattice.n_rows * self.lattice.n_columns

    def cells(self, start: int, stop: int) -> CellBlock:
        """Cells `start` to `stop` (exclusive): the same in any block.

        Raises
        ------
        ValueError
            The rows are not in the simulation.
        """
        _check_rows(start, stop, self.n_cells)
        cells = self.tissue.cells(start, stop)
        panel = self.profiles[:, : self.n_panel]

        def means(rows: slice) -> Floats:
            return cells.total[rows, None] * panel[cells.cell_type[rows]]

        keys = self._keys("cells", self.n_panel)
        counts = _drawn(keys, range(start, stop), means, np.uint16)
        return CellBlock(counts, *cells, self.lattice.capturing(cells.spatial))

    def spots(self, start: int, stop: int) -> SpotBlock:
        """Spots `start` to `stop` (exclusive): the same in any block.

        Raises
        ------
        ValueError
            The rows are not in the simulation.
        """
        _check_rows(start, stop, self.n_spots)
        type_total, n_cells = self._captured(start, stop)
        rates = self.profiles * self.platform_factor

        def means(rows: slice) -> Floats:
            # not a matrix product, whose last bits depend on the number of rows
            mean = np.zeros((len(type_total[rows]), rates.shape[1]))
            for by_type, rate in zip(type_total[rows].T, rates, strict=True):
                mean += by_type[:, None] * rate
            return mean

        keys = self._keys("spots", rates.shape[1])
        counts = _drawn(keys, range(start, stop), means, np.uint32)
        spatial = (self.lattice.points(start, stop) + self.shift).astype(np.float32)
        return SpotBlock(counts, spatial, type_total, n_cells)

    def _captured(self, start: int, stop: int) -> tuple[Floats, Rows]:
        """Totals by type and numbers of the cells that spots capture."""
        n_spots, n_types = stop - start, len(self.profiles)
        rows = self.tissue.rows_between(*self.lattice.band(start, stop)) if n_spots else (0, 0)
        cells = self.tissue.cells(*rows)
        spot = self.lattice.capturing(cells.spatial).astype(np.int64) - start
        inside = (spot >= 0) & (spot < n_spots)
        slot = spot[inside] * n_types + cells.cell_type[inside]
        total = np.bincount(slot, cells.total[inside], n_spots * n_types).astype(np.float64)
        n_cells = np.bincount(spot[inside], minlength=n_spots).astype(np.int32)
        return total.reshape(n_spots, n_types), n_cells

    def _keys(self, slide: str, n_genes: int) -> NDArray[np.uint64]:
        keys = [stream_key(self.tissue.seed, f"pair {slide}", gene) for gene in range(n_genes)]
        return np.array(keys, np.uint64)


def pair_model(
    *,
    n_cells: int,
    n_genes: int = 300,
    n_panel: int | None = None,
    n_types: int = 8,
    profiles: ArrayLike | None = None,
    square: float = 100.0,
    cells_per_mm2: float = 2800.0,
    mean_total: float = 200.0,
    total_sigma: float = 0.5,
    rate_sigma: float = 1.0,
    type_sigma: float = 1.0,
    platform_sigma: float = 0.5,
    lattice: Literal["hexagonal", "square"] = "hexagonal",
    pitch: float = 100.0,
    capture_radius: float = 100.0,
    shift: tuple[float, float] = (0.0, 0.0),
    seed: int = 0,
) -> PairModel:
    """Draw the truth of a pair of slides; the module describes the model.

    Parameters
    ----------
    n_cells, n_genes, n_types
        Size; the tissue is as large as the density of the cells asks for.
    n_panel
        The first genes, which cells are measured for; all by default. Spots have all genes.
    profiles
        Mean counts of the types, ``(n_types, n_genes)``, of any scale, in place of random ones.
    square
        Edge of the squares of equal type, um.
    cells_per_mm2
        Density: on a hexagonal lattice of 100 um a spot has 0.00866 times as many cells.
    mean_total, total_sigma
        Expected counts of a cell over all genes, and the spread of their natural logarithm.
    rate_sigma, type_sigma
        Spread of log profiles over genes, and between types.
    platform_sigma
        Spread of the log factor of each gene on the slide of spots.
    lattice, pitch
        Arrangement of the spots, and the distance between neighbours, um.
    capture_radius
        A spot captures the cells nearest to it up to this distance, um.
    shift
        Displacement of the spots' coordinates, um.
    seed
        Not negative. Same arguments, same pair.

    Returns
    -------
    PairModel

    Raises
    ------
    ValueError
        A parameter out of range, or means too large for the stored counts.

    References
    ----------
    The checkerboard simulation of SIID, Genome Research 2025, doi 10.1101/gr.280555.125.

    Examples
    --------
    >>> pair = pair_model(n_cells=1_000_000, n_genes=300, cells_per_mm2=5774, seed=1)
    >>> pair.n_spots, pair.cells(500_000, 500_100).counts.shape
    (19912, (100, 300))
    """
    given = None if profiles is None else np.asarray(profiles, np.float64)
    if given is not None:
        n_types, n_genes = given.shape
    n_panel = n_genes if n_panel is None else n_panel
    checks = {
        "n_cells": (n_cells, n_cells >= 1),
        "n_panel": (n_panel, 1 <= n_panel <= n_genes),
        "n_types": (n_types, 2 <= n_types < 2**15),
        "profiles": (given, given is None or _are_profiles(given)),
        "square": (square, 0 < square < np.inf),
        "cells_per_mm2": (cells_per_mm2, 0 < cells_per_mm2 < np.inf),
        "mean_total": (mean_total, 0 < mean_total < np.inf),
        "total_sigma": (total_sigma, 0 <= total_sigma < np.inf),
        "rate_sigma": (rate_sigma, 0 <= rate_sigma < np.inf),
        "type_sigma": (type_sigma, 0 <= type_sigma < np.inf),
        "platform_sigma": (platform_sigma, 0 <= platform_sigma < np.inf),
        "lattice": (lattice, lattice in ("hexagonal", "square")),
        "pitch": (pitch, 0 < pitch < np.inf),
        "capture_radius": (capture_radius, capture_radius > 0),
        "shift": (shift, bool(np.isfinite(shift).all())),
        "seed": (seed, seed >= 0),
    }
    wrong = [f"{name}={value}" for name, (value, good) in checks.items() if not good]
    if wrong:
        message = (
            f"out of range: {', '.join(wrong)}. Lengths, densities and totals must be positive, "
            "spreads not negative, all finite; types at least 2, the panel not larger than the "
            "genes, profiles not negative and nowhere all zero, the lattice hexagonal or square"
        )
        raise ValueError(message)

    def normals(purpose: str, *shape: int) -> Floats:
        key = stream_key(seed, f"pair {purpose}", 0)
        return ndtri(uniforms(key, 0, int(np.prod(shape)))).reshape(shape)

    if given is None:
        log_rate = rate_sigma * normals("rate", n_genes)
        given = np.exp(log_rate + type_sigma * normals("type", n_types, n_genes))
    width = 1000.0 * float(np.sqrt(n_cells / cells_per_mm2))
    square_type = checkerboard(
        stream_key(seed, "pair square", 0), int(np.ceil(width / square)), n_types
    )
    totals = (float(mean_total), float(total_sigma))
    model = PairModel(
        tissue=Tissue(int(seed), int(n_cells), width, float(square), *totals, square_type),
        lattice=Spots(width, lattice, float(pitch), float(capture_radius)),
        n_panel=int(n_panel),
        profiles=given / given.sum(axis=1, keepdims=True),
        platform_factor=np.exp(platform_sigma * normals("platform", n_genes)),
        shift=np.asarray(shift, np.float64),
    )
    _check_largest_mean(model)
    return model


def _are_profiles(given: Floats) -> bool:
    return bool(np.isfinite(given).all() and (given >= 0).all() and given.any(axis=1).all())


def _check_largest_mean(model: PairModel) -> None:
    tissue = model.tissue
    deviate = -ndtri(0.01 / tissue.n_cells)  # one pair in a hundred has a deeper cell
    deepest = np.exp(tissue.total_sigma * deviate - tissue.total_sigma**2 / 2)
    largest = tissue.mean_total * deepest * model.profiles[:, : model.n_panel].max()
    if largest > 0.9 * np.iinfo(np.uint16).max:
        message = (
            f"the mean counts of a cell could reach {largest:.3g}, too many for 16 bits: lower "
            "mean_total or total_sigma"
        )
        raise ValueError(message)


def _check_rows(start: int, stop: int, n_rows: int) -> None:
    if not 0 <= start <= stop <= n_rows:
        message = f"rows {start} to {stop} are not within the {n_rows} of the simulation"
        raise ValueError(message)


def _drawn(
    keys: NDArray[np.uint64], rows: range, means: Callable[[slice], Floats], dtype: Any
) -> sparse.csr_matrix:
    """Draw the counts of consecutive rows, some at a time."""
    length, largest = max(1, _DRAWN_AT_ONCE // len(keys)), np.iinfo(dtype).max
    parts = [sparse.csr_matrix((0, len(keys)), dtype=dtype)]
    for start in range(0, len(rows), length):
        part = slice(start, min(start + length, len(rows)))
        drawn = poisson_draws(means(part), keys, np.asarray(rows[part], np.int64))
        parts.append(sparse.csr_matrix(np.minimum(drawn, largest).astype(dtype)))
    return sparse.vstack(parts, format="csr")
