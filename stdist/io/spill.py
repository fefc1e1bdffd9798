"""Matrices that are not stored by rows (CSC, coordinate text), sorted into bands of rows on disk.

One pass over the entries in any order appends each to the file of its band; a read then gathers
whole bands. Memory is bounded by the entries of a few bands, whatever the order of the input.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import sparse

from stdist.io.csr import canonical_csr, densest
from stdist.io.sources import NodeSource, inconsistent, node_facts, opened
from stdist.store import TILE_ROWS

BAND_ROWS = 16 * TILE_ROWS
ENTRIES = 2**21
"""Entries that are sorted together in memory."""

Entries = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class SpillSource(NodeSource):
    """Base of matrices read through bands in `folder`, made by `prepare`.

    `columns_dtype` is the dtype of the spilled values.
    """

    folder: str
    n_rows: int
    n_columns: int

    csr = True

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the matrix."""
        return self.n_rows, self.n_columns

    def entries(self) -> Iterator[Entries]:
        """Yield rows, columns and values of some thousands of entries at a time."""
        raise NotImplementedError

    def record(self) -> np.dtype:
        """One entry on disk; the row counts from the start of its band."""
        return np.dtype([("row", "u2"), ("column", "u4"), ("value", self.dtype)])

    def prepare(self) -> None:
        """Sort the entries into bands, unless an earlier attempt has done so."""
        done = Path(self.folder)
        if done.exists():
            return
        making = done.with_name(f"{done.name}.making")
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        tiles = np.zeros(-(-self.n_rows // TILE_ROWS), np.int64)
        for rows, columns, values in self.entries():
            self._check(rows, columns)
            self._append(making, rows, columns, values)
            tiles += np.bincount(rows // TILE_ROWS, minlength=len(tiles))
        np.save(making / "tiles.npy", tiles)
        making.rename(done)

    @property
    def tiles(self) -> np.ndarray:
        """Entries of each tile of rows."""
        return np.load(f"{self.folder}/tiles.npy")

    def _check(self, rows: np.ndarray, columns: np.ndarray) -> None:
        for name, numbers, length in (
            ("cell", rows, self.n_rows),
            ("gene", columns, self.n_columns),
        ):
            if len(numbers) and not 0 <= numbers.min() <= numbers.max() < length:
                thing = f"a {name} number of {self.key!r} lies outside the {length} {name}s"
                raise inconsistent(self.path, thing)

    def _append(
        self, folder: Path, rows: np.ndarray, columns: np.ndarray, values: np.ndarray
    ) -> None:
        bands = rows // BAND_ROWS
        order = np.argsort(bands, kind="stable")
        found, starts = np.unique(bands[order], return_index=True)
        for band, members in zip(found, np.split(order, starts[1:]), strict=False):
            records = np.empty(len(members), self.record())
            records["row"] = rows[members] % BAND_ROWS
            records["column"] = columns[members]
            records["value"] = values[members]
            with _band_path(folder, int(band)).open("ab") as file:
                records.tofile(file)

    def read(self, start: int, stop: int) -> sparse.csr_matrix:
        """Return rows ``start:stop`` as a canonical CSR matrix."""
        parts = []
        for band in range(start // BAND_ROWS, -(-stop // BAND_ROWS)):
            base = band * BAND_ROWS
            length = min(BAND_ROWS, self.n_rows - base)
            whole = self._band(band, length)
            parts.append(whole[max(start - base, 0) : min(stop - base, length)])
        return parts[0] if len(parts) == 1 else sparse.vstack(parts, format="csr")

    def _band(self, band: int, length: int) -> sparse.csr_matrix:
        # a band without entries has no file; one that lost its file must not read as empty
        path, size = _band_path(Path(self.folder), band), self._size(band)
        records = np.fromfile(path, self.record()) if size else np.empty(0, self.record())
        if len(records) != size:
            raise OSError(f"{path} holds {len(records)} of {size} entries")
        order = np.argsort(records["row"], kind="stable")
        counts = np.bincount(records["row"], minlength=length)
        indptr = np.concatenate([[0], np.cumsum(counts)])
        data, columns = records["value"][order], records["column"][order].astype(np.int32)
        return canonical_csr(self.path, data, columns, indptr, (length, self.n_columns))

    def row_entries(self) -> int:
        """Bound on the entries per row of any block (of a tile inside the fullest band)."""
        return min(self.n_columns, -(-int(self.tiles.max()) // TILE_ROWS))

    def _size(self, band: int) -> int:
        step = BAND_ROWS // TILE_ROWS
        return int(self.tiles[band * step : (band + 1) * step].sum())

    def read_bytes(self, rows: int) -> int:
        """Bytes held while bands are gathered."""
        entry = self.dtype.itemsize + 4
        band = densest(self.tiles, BAND_ROWS) * (self.record().itemsize + 2 * entry + 8)
        return 2 * entry * densest(self.tiles, max(rows, BAND_ROWS)) + band

    def stored_bytes(self) -> int:
        """Bytes of the bands on disk."""
        return int(self.tiles.sum()) * self.record().itemsize


def _band_path(folder: Path, band: int) -> Path:
    return folder / f"{band:07d}.band"


@dataclass(frozen=True)
class CscSource(SpillSource):
    """A matrix in AnnData's CSC encoding: read by columns, given by rows."""

    @property
    def dtype(self) -> np.dtype:
        """NumPy dtype of the values."""
        return node_facts(self.path, f"{self.key}/data", self.stamp).dtype

    def entries(self) -> Iterator[Entries]:
        """Yield the entries of runs of columns."""
        with opened(self.path, f"matrix {self.key!r}") as root:
            group = root[self.key]
            indptr = np.asarray(group["indptr"][:]).astype(np.int64)
            stored = min(group["data"].shape[0], group["indices"].shape[0])
            if indptr[0] != 0 or np.any(np.diff(indptr) < 0) or indptr[-1] > stored:
                raise inconsistent(self.path, f"the column offsets of {self.key!r} are wrong")
            for first in range(0, int(indptr[-1]), ENTRIES):
                last = min(first + ENTRIES, int(indptr[-1]))
                columns = np.searchsorted(indptr, np.arange(first, last), side="right") - 1
                rows = np.asarray(group["indices"][first:last]).astype(np.int64)
                yield rows, columns, np.asarray(group["data"][first:last])


@functools.lru_cache(maxsize=8)
def _names_band(path: str) -> np.ndarray:
    return np.char.decode(np.load(path), "utf-8").astype(object)


@dataclass(frozen=True)
class NamesSource:
    """Names kept in bands of fixed-width bytes: lines of a text file with random access."""

    folder: str
    length: int

    csr = False
    dtype = np.dtype(object)

    @property
    def shape(self) -> tuple[int]:
        """Shape of the column."""
        return (self.length,)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return names ``start:stop``."""
        parts = []
        for band in range(start // BAND_ROWS, -(-stop // BAND_ROWS)):
            names = _names_band(f"{self.folder}/{band:07d}.npy")
            parts.append(names[max(start - band * BAND_ROWS, 0) : stop - band * BAND_ROWS])
        return np.concatenate(parts)

    def read_bytes(self, rows: int) -> int:
        """Bytes held while names are read (100 each)."""
        return 100 * (rows + 8 * BAND_ROWS)

    def stored_bytes(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in Path(self.folder).glob("*.npy"))

    def fingerprint(self) -> str:
        """The names come with a matrix that has a fingerprint."""
        return f"names:{self.length}"


def spill_names(lines: Iterator[str], folder: Path) -> NamesSource:
    """Write names into bands and return them as a source."""
    folder.mkdir(parents=True, exist_ok=True)
    length = 0
    band: list[str] = []

    def flush() -> None:
        encoded = np.asarray([name.encode() for name in band])
        np.save(folder / f"{(length - 1) // BAND_ROWS:07d}.npy", encoded)
        band.clear()

    for line in lines:
        band.append(line)
        length += 1
        if length % BAND_ROWS == 0:
            flush()
    if band:
        flush()
    return NamesSource(str(folder), length)
