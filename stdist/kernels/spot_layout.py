"""Where cells and spots are kept so that a spot meets all its cells in one tile of rows.

Spots follow a Hilbert curve, and a tile takes the next spots of the curve as long as their cells
fit: sums over the cells of a spot never leave a tile. Two tables share the tiles: rows of cells,
padded at the end of each tile, and as many rows of spots, one for each spot at its place within
the tile.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

Ints = NDArray[np.int64]

_CURVE_BITS = 16


class SpotLayout(NamedTuple):
    """Rows of spots and of their cells; all ``(n_spots,)`` int64 but the last.

    ``tile``: tile of the spot; ``place``: its number within the tile, from 0; ``first_row``: row
    of its first cell; ``spot_row``: row of its own counts among the rows of spots; ``n_rows``:
    rows of either table, with padding: a whole number of tiles.
    """

    tile: Ints
    place: Ints
    first_row: Ints
    spot_row: Ints
    n_rows: int


def curve_order(points: ArrayLike) -> Ints:
    """Order of points along a Hilbert curve through their square; ties by index.

    Examples
    --------
    >>> curve_order([[0, 0], [9, 0], [0, 9], [9, 9]])
    array([0, 2, 3, 1])
    """
    coordinates = np.asarray(points, np.float64)
    if not len(coordinates):
        return np.empty(0, np.int64)
    low = coordinates.min(axis=0)
    extent = float((coordinates - low).max()) or 1.0
    x, y = ((coordinates - low) / extent * (2**_CURVE_BITS - 1)).astype(np.int64).T
    rank = np.zeros(len(coordinates), np.int64)
    for bit in reversed(range(_CURVE_BITS)):
        side = 1 << bit
        right, upper = (x & side) > 0, (y & side) > 0
        rank += side * side * ((3 * right) ^ upper)
        turned = right & ~upper
        x, y = np.where(turned, ~x, x), np.where(turned, ~y, y)
        x, y = np.where(upper, x, y), np.where(upper, y, x)
    return np.argsort(rank, kind="stable")


def crowded_spots(n_cells: ArrayLike, tile_rows: int = 1024) -> Ints:
    """Spots whose cells do not fit into a tile, int64; a layout is possible without them only.

    Examples
    --------
    >>> crowded_spots([3, 2000, 0])
    array([1])
    """
    return np.flatnonzero(np.asarray(n_cells, np.int64) > tile_rows)


def spot_layout(n_cells: ArrayLike, spots: ArrayLike, tile_rows: int = 1024) -> SpotLayout:
    """Pack spots and all their cells into tiles, along a Hilbert curve.

    No spot's cells lie in two tiles, and a tile has at most `tile_rows` spots.

    Parameters
    ----------
    n_cells
        Number of cells nearest to each spot, mapped to it or not, ``(n_spots,)``.
    spots
        Coordinates, ``(n_spots, 2)``.
    tile_rows
        Rows of a tile.

    Returns
    -------
    SpotLayout

    Raises
    ------
    ValueError
        If a spot has more cells than a tile has rows (`crowded_spots` names them), or shapes
        disagree.

    Examples
    --------
    >>> layout = spot_layout([2, 3, 1], [[0, 0], [1, 0], [2, 0]], tile_rows=4)
    >>> layout.tile, layout.place, layout.first_row, layout.n_rows
    (array([0, 1, 1]), array([0, 0, 1]), array([0, 4, 7]), 8)
    """
    sizes, coordinates = np.asarray(n_cells, np.int64), np.asarray(spots, np.float64)
    if sizes.shape != (len(coordinates),):
        message = f"{len(coordinates)} spots need as many numbers of cells, not {sizes.shape}"
        raise ValueError(message)
    crowded = crowded_spots(sizes, tile_rows)
    if len(crowded):
        message = (
            f"{len(crowded)} spots have more than {tile_rows} cells, the first is {crowded[0]}"
        )
        raise ValueError(message)
    tile, place, first = _packed(sizes, curve_order(coordinates), tile_rows)
    n_tiles = int(tile.max(initial=-1)) + 1
    return SpotLayout(tile, place, first, tile * tile_rows + place, n_tiles * tile_rows)


def cell_rows(nearest: ArrayLike, layout: SpotLayout) -> Ints:
    """Row of each cell, int64 ``(n_cells,)``: the cells of a spot follow each other by index.

    Parameters
    ----------
    nearest
        Nearest spot of each cell, ``(n_cells,)``, whose numbers the layout was made from.
    layout
        Of `spot_layout`.

    Examples
    --------
    >>> layout = spot_layout([1, 2], [[0, 0], [1, 0]], tile_rows=4)
    >>> cell_rows([1, 0, 1], layout)
    array([1, 0, 2])
    """
    spot = np.asarray(nearest)
    order = np.argsort(spot, kind="stable")
    sorted_spot = spot[order]
    rank = np.arange(len(spot)) - np.searchsorted(sorted_spot, sorted_spot)
    rows = np.empty(len(spot), np.int64)
    rows[order] = layout.first_row[sorted_spot] + rank
    return rows


@njit(nogil=True, cache=True)
def _packed(sizes: Ints, order: Ints, tile_rows: int) -> tuple[Ints, Ints, Ints]:
    """Tile, place and first row of each spot: the next spot that does not fit opens a tile."""
    tile, place, first = np.empty_like(sizes), np.empty_like(sizes), np.empty_like(sizes)
    current, n_spots, n_rows = 0, 0, 0
    for spot in order:
        if n_spots == tile_rows or n_rows + sizes[spot] > tile_rows:
            current, n_spots, n_rows = current + 1, 0, 0
        tile[spot], place[spot] = current, n_spots
        first[spot] = current * tile_rows + n_rows
        n_spots += 1
        n_rows += sizes[spot]
    return tile, place, first
