"""Geometry and codecs of the arrays in a store.

A dense element of shape ``(n_rows, n_columns)`` has inner chunks of ``(16384, 32)`` and shards of
whole row bands: per-column reads touch few bytes, and one task writes whole shards.
"""

from __future__ import annotations

import math

import numpy as np
from zarr.codecs import BloscCodec, Crc32cCodec

STORE_VERSION = "1"
"""Version of what stdist adds to AnnData's layout; kept among the attributes of the root."""

TILE_ROWS = 1024
"""Rows of a tile: all arithmetic happens in tiles aligned to the global row index."""

CHUNK_ROWS, CHUNK_COLUMNS = 16384, 32
SHARD_ROWS = 65536
SHARD_BYTES = 2**26
CSR_CHUNK, CSR_SHARD = 2**18, 2**23
DENSE_MAX_COLUMNS = 4096
DENSE_MIN_DENSITY = 0.05


def codecs(itemsize: int) -> list:
    """Compressors of numeric arrays: Blosc zstd with bit shuffle, then a crc32c checksum."""
    return [
        BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle", typesize=itemsize),
        Crc32cCodec(),
    ]


def floor_block_length(rows: int) -> int:
    """Return the largest ``TILE_ROWS * 2**m`` that does not exceed `rows` (at least one tile)."""
    return TILE_ROWS << max(0, (max(rows, TILE_ROWS) // TILE_ROWS).bit_length() - 1)


def shard_rows(row_bytes: int, block_length: int | None = None) -> int:
    """Rows of one shard: about 64 MB decoded, never more than the block that writes it."""
    rows = min(SHARD_ROWS, floor_block_length(SHARD_BYTES // max(1, row_bytes)))
    return rows if block_length is None else min(rows, floor_block_length(block_length))


def dense_geometry(
    n_columns: int, itemsize: int, rows: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return ``(chunks, shards)`` of a dense element whose shards hold `rows` rows."""
    columns = min(CHUNK_COLUMNS, max(1, n_columns))
    return (min(CHUNK_ROWS, rows), columns), (
        rows,
        columns * math.ceil(max(1, n_columns) / columns),
    )


def prefer_dense(n_columns: int, density: float) -> bool:
    """Dense counts for panels, CSR for sparse whole transcriptomes (DESIGN section 4)."""
    return n_columns <= DENSE_MAX_COLUMNS and (density >= DENSE_MIN_DENSITY or n_columns <= 1024)


def counts_dtype(maximum: int) -> np.dtype:
    """Smallest unsigned dtype of at least 16 bits that leaves a factor of eight above `maximum`."""
    return np.dtype(np.uint16 if maximum < 2**13 else np.uint32)
