"""Blocks of consecutive rows, and the tiles inside them.

All arithmetic happens in tiles of `TILE_ROWS` rows aligned to the global row index, so that BLAS
and NumPy always see the same shapes, whatever the block length (DESIGN section 6).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from stdist.store import TILE_ROWS, InputError, floor_block_length


@dataclass(frozen=True)
class Blocks:
    """A partition of `n_rows` rows into blocks of `length` rows, ``TILE_ROWS * 2**m``.

    Examples
    --------
    >>> blocks = Blocks(5000, 2048)
    >>> len(blocks), blocks.bounds(2)
    (3, (4096, 5000))
    """

    n_rows: int
    length: int

    def __post_init__(self) -> None:
        if self.length != floor_block_length(self.length):
            near = floor_block_length(self.length)
            raise InputError(
                "block-length",
                f"block length {self.length} is not {TILE_ROWS} times a power of two",
                place="block_length",
                remedy=f"use {near} or {2 * near}",
            )

    def __len__(self) -> int:
        return max(1, -(-self.n_rows // self.length))

    def bounds(self, index: int) -> tuple[int, int]:
        """First row and end of block `index`."""
        return index * self.length, min(self.n_rows, (index + 1) * self.length)


def tiles(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Bounds of the tiles between two rows; `start` lies on a tile edge."""
    for first in range(start, stop, TILE_ROWS):
        yield first, min(stop, first + TILE_ROWS)


def part_bounds(part: tuple[int, int], n_rows: int) -> tuple[int, int]:
    """First row and end of part `number` of `n_parts`: ranges of tiles, as even as can be.

    Examples
    --------
    >>> [part_bounds((number, 3), 5000) for number in range(3)]
    [(0, 1024), (1024, 3072), (3072, 5000)]
    """
    number, n_parts = part
    n_tiles = -(-n_rows // TILE_ROWS)
    first, last = (n_tiles * at // n_parts * TILE_ROWS for at in (number, number + 1))
    return first, min(n_rows, last)
