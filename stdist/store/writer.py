"""The aligned writer: one call owns whole shards, and proves it before it writes.

Two tasks that write parts of one shard lose data silently (read-modify-write without a lock), so
a write whose offset or coverage is not that of whole shards is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import zarr

from stdist.store.manifest import Record, record_file


class MisalignedWrite(ValueError):
    """A write that would own only a part of a shard."""


def open_for_writing(path: Path) -> zarr.Array:
    """Open an array so that chunks of zeros are written: the setting is not kept on disk."""
    array = zarr.open_array(str(path), mode="r+", zarr_format=3)
    return array.with_config({"write_empty_chunks": True})


def fit(values: np.ndarray, dtype: Any, key: str) -> np.ndarray:
    """Cast to the dtype of an output; integers that do not fit are an error, not a wrap-around.

    Raises
    ------
    OverflowError
        If an integer output would not hold the values as they are.
    """
    if values.dtype == dtype or values.dtype.kind not in "biufc":
        return values
    with np.errstate(invalid="ignore"):
        cast = values.astype(dtype)
    if cast.dtype.kind in "iu" and not np.array_equal(cast, values):
        message = f"{key}: {values.dtype} values of the block do not fit {cast.dtype}"
        raise OverflowError(message)
    return cast


def write_rows(
    store: Path,
    key: str,
    start: int,
    values: np.ndarray,
    *,
    stage: str = "",
    axis: int = 0,
) -> list[Record]:
    """Write `values` at row `start` of array `key` and return the records of its shards.

    Parameters
    ----------
    store
        Root folder of the store being written.
    key
        Array inside the store.
    start
        First index along `axis`; a multiple of the shard length.
    values
        Array that covers whole shards (or reaches the end) along `axis` and everything elsewhere.
    stage
        Fingerprint of the stage, kept in the records.
    axis
        0 writes a band of rows; 1 writes a band of columns (a transposed output).

    Raises
    ------
    MisalignedWrite
        If the offset or the coverage is not that of whole shards.
    OverflowError
        If an integer array would not hold the values as they are.
    """
    path = store / key
    array = open_for_writing(path)
    band = (array.shards or array.chunks)[axis]
    length = array.shape[axis]
    stop = start + values.shape[axis]
    others = [n for i, n in enumerate(array.shape) if i != axis]
    if [n for i, n in enumerate(values.shape) if i != axis] != others:
        message = f"{key}: a block of shape {values.shape} does not span array {array.shape}"
        raise MisalignedWrite(message)
    if start % band or (stop % band and stop != length) or not 0 <= start < stop <= length:
        message = f"{key}: rows {start}:{stop} are not whole shards of {band} rows (of {length})"
        raise MisalignedWrite(message)
    steps = array.shards or array.chunks
    grid = [range(-(-n // step)) for n, step in zip(array.shape, steps, strict=True)]
    grid[axis] = range(start // band, -(-stop // band))
    shards = [
        tuple(r[i] for r, i in zip(grid, offsets, strict=True))
        for offsets in np.ndindex(*[len(r) for r in grid])
    ]
    files = [path.joinpath("c", *map(str, shard)) for shard in shards]
    for file in files:  # zarr would read what a dead task or a power cut left, and may fail
        file.unlink(missing_ok=True)
    region = (slice(None),) * axis + (slice(start, stop),)
    array[region] = fit(values, array.dtype, key)
    return [
        record_file(store, file, stage=stage, shard=shard)
        for file, shard in zip(files, shards, strict=True)
    ]
