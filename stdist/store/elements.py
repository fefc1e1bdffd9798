"""Elements of a store as block sources: read rows, know your size, know your fingerprint.

A source has ``shape``, ``dtype``, ``read(start, stop)``, ``read_bytes(rows)`` and ``fingerprint()``
and pickles by reference. The graph knows nothing else about where blocks come from.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import zarr
from scipy import sparse

from stdist.store import manifest
from stdist.store.errors import CorruptionError, InputError
from stdist.store.layout import TILE_ROWS


class Source(Protocol):
    """What a stage needs to know of an input."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def read(self, start: int, stop: int) -> Any: ...
    def read_bytes(self, rows: int) -> int: ...
    def stored_bytes(self) -> int: ...
    def fingerprint(self) -> str: ...


@functools.lru_cache(maxsize=512)
def _open_array(path: str, stamp: tuple[int, ...]) -> zarr.Array:
    return zarr.open_array(path, mode="r", zarr_format=3)


def open_array(store: str, key: str) -> zarr.Array:
    """Open one array of a store, cached per process until its metadata file changes."""
    path = Path(store) / key
    try:
        stamp = manifest.stamp(path / "zarr.json")
    except FileNotFoundError:
        raise CorruptionError(
            "array-missing",
            f"array {key!r} has no metadata file",
            place=str(path),
            remedy="run `stdist verify` on the store and restore what it names",
        ) from None
    return _open_array(str(path), stamp)


@functools.lru_cache(maxsize=65536)
def _check_file(path: str, stamp: tuple[int, ...], digest: str) -> bool:
    return manifest.digest_bytes(Path(path).read_bytes()) == digest


def check_rows(store: str, key: str, start: int, stop: int) -> None:
    """Compare the shards that hold rows ``start:stop`` of an array with the manifest.

    A codec checksum cannot notice a missing, swapped or stale shard; the recorded hash does.
    Arrays that stdist did not record (added with anndata) are not checked.

    Raises
    ------
    CorruptionError
        Naming the shard.
    """
    records = manifest.load(store)
    if f"{key}/zarr.json" not in records or stop <= start:
        return
    _check_shard(store, f"{key}/zarr.json", records)
    array = open_array(store, key)
    rows = (array.shards or array.chunks)[0]
    grid = [
        range(-(-length // step))
        for length, step in zip(array.shape, array.shards or array.chunks, strict=True)
    ]
    for index in np.ndindex(*[len(axis) for axis in grid[1:]]):
        for band in range(start // rows, (stop - 1) // rows + 1):
            name = "/".join(map(str, (key, "c", band, *index)))
            _check_shard(store, name, records)


def _check_shard(store: str, name: str, records: manifest.Manifest) -> None:
    path = Path(store) / name
    record = records.get(name)
    if record is None:
        raise CorruptionError(
            "shard-unrecorded",
            f"file {name} is not in the manifest",
            place=str(path),
            remedy="run `stdist verify` on the store",
        )
    try:
        intact, missing = _check_file(str(path), manifest.stamp(path), record.digest), False
    except FileNotFoundError:
        intact, missing = False, True
    if not intact:
        raise CorruptionError(
            "shard-missing" if missing else "shard-altered",
            f"file {name} is missing" if missing else f"file {name} is not what was written",
            place=str(path),
            remedy="restore the file from a copy or write the element again; "
            "`stdist verify` lists all damage",
        )


@dataclass(frozen=True)
class ArrayElement:
    """A dense array of a store, of shape ``(n_rows, ...)``."""

    store: str
    key: str

    @property
    def array(self) -> zarr.Array:
        """The zarr array."""
        return open_array(self.store, self.key)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the element."""
        return self.array.shape

    @property
    def dtype(self) -> Any:
        """NumPy dtype of the element."""
        return self.array.dtype

    @property
    def attributes(self) -> dict[str, Any]:
        """stdist's own attributes of the element (maximum, density ...)."""
        return _own_attributes(self.array)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return rows ``start:stop`` as a C-contiguous array, after checking its shards."""
        check_rows(self.store, self.key, start, stop)
        try:
            return np.ascontiguousarray(self.array[start:stop])
        except (ValueError, RuntimeError) as error:
            raise CorruptionError(
                "shard-undecodable",
                f"rows {start}:{stop} of {self.key!r} cannot be decoded ({error})",
                place=f"{self.store}/{self.key}",
                remedy="run `stdist verify` on the store and restore what it names",
            ) from error

    def read_bytes(self, rows: int) -> int:
        """Bytes held while `rows` rows are read: the block, its encoded form and one chunk row."""
        array = self.array
        row = int(np.prod(array.shape[1:], dtype=np.int64)) * _itemsize(array)
        bands = array.shards or array.chunks
        encoded = -(-rows // max(1, bands[0])) * self._largest_shard()
        return rows * row + encoded + int(np.prod(array.chunks, dtype=np.int64)) * _itemsize(array)

    def _largest_shard(self) -> int:
        return max((record.nbytes for record in self._records() if "/c/" in record.path), default=0)

    def _records(self) -> list[manifest.Record]:
        return _element_records(self.store, self.key)

    def stored_bytes(self) -> int:
        """Bytes of the element on disk."""
        return sum(record.nbytes for record in self._records())

    def fingerprint(self) -> str:
        """Hash of the element's recorded files."""
        return manifest.digest_bytes("".join(r.path + r.digest for r in self._records()).encode())


@dataclass(frozen=True)
class CodesElement(ArrayElement):
    """The codes of a categorical column; `key` is the column (``obs/batch``)."""

    @property
    def array(self) -> zarr.Array:
        """The array of codes; -1 is a missing value."""
        return open_array(self.store, f"{self.key}/codes")

    @property
    def categories(self) -> np.ndarray:
        """The labels, as Python strings."""
        labels = ArrayElement(self.store, f"{self.key}/categories")
        return labels.read(0, labels.shape[0]).astype(object)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return codes ``start:stop`` as int32 of shape ``(stop - start,)``."""
        return ArrayElement(self.store, f"{self.key}/codes").read(start, stop).astype(np.int32)


@dataclass(frozen=True)
class CsrElement(ArrayElement):
    """A CSR matrix in AnnData's encoding, of shape ``(n_rows, n_columns)``."""

    @property
    def array(self) -> zarr.Array:
        """The array of stored values."""
        return open_array(self.store, f"{self.key}/data")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the matrix."""
        group: Any = zarr.open_group(f"{self.store}/{self.key}", mode="r")
        return tuple(int(length) for length in group.attrs["shape"])

    @property
    def attributes(self) -> dict[str, Any]:
        """stdist's own attributes of the element."""
        return _own_attributes(zarr.open_group(f"{self.store}/{self.key}", mode="r"))

    def read(self, start: int, stop: int) -> sparse.csr_matrix:
        """Return rows ``start:stop`` as a SciPy CSR matrix with int64 offsets."""
        part = functools.partial(ArrayElement, self.store)
        indptr = part(f"{self.key}/indptr").read(start, stop + 1).astype(np.int64)
        first, last = int(indptr[0]), int(indptr[-1])
        data = part(f"{self.key}/data").read(first, last)
        indices = part(f"{self.key}/indices").read(first, last)
        shape = (stop - start, self.shape[1])
        return sparse.csr_matrix((data, indices, indptr - first), shape=shape)

    def read_bytes(self, rows: int) -> int:
        """Bytes held while the densest run of `rows` rows is read (from the stored offsets)."""
        itemsize = _itemsize(self.array) + _itemsize(open_array(self.store, f"{self.key}/indices"))
        entries = self._most_entries(rows)
        return entries * itemsize + (rows + 1) * 16 + 2 * self._largest_shard()

    def row_entries(self) -> int:
        """Bound on the stored entries per row of any block."""
        return -(-self._most_entries(TILE_ROWS) // TILE_ROWS)

    def _most_entries(self, rows: int) -> int:
        indptr = open_array(self.store, f"{self.key}/indptr")
        length, band = indptr.shape[0], (indptr.shards or indptr.chunks)[0]
        # indptr is read band by band: 8 bytes x rows would not fit a client at 10^9 cells
        offsets = [
            np.asarray(indptr[first : min(length, first + band)])[-first % rows :: rows]
            for first in range(0, length, band)
        ]
        edges = np.concatenate([*offsets, np.asarray(indptr[length - 1 :])])
        return int(np.max(np.diff(edges), initial=0))


def _own_attributes(node: Any) -> dict[str, Any]:
    return dict(node.attrs.get("stdist", {}))


def _itemsize(array: zarr.Array) -> int:
    return getattr(array.dtype, "itemsize", 0) or 64


def _element_records(store: str, key: str) -> list[manifest.Record]:
    """Recorded files of an element; files that stdist did not write are hashed now."""
    root = Path(store)
    recorded = manifest.load(store)
    records = recorded.under(key)
    if records:
        return records
    paths = sorted(path for path in (root / key).rglob("*") if path.is_file())
    return [_hash_unrecorded(str(root), str(path), manifest.stamp(path)) for path in paths]


@functools.lru_cache(maxsize=4096)
def _hash_unrecorded(root: str, path: str, stamp: tuple[int, ...]) -> manifest.Record:
    return manifest.record_file(Path(root), Path(path))


@dataclass(frozen=True, eq=False)
class MemorySource:
    """An in-memory array or CSR matrix as a source, for data that need no store."""

    values: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self.values.shape

    @property
    def dtype(self) -> Any:
        """NumPy dtype of the array."""
        return self.values.dtype

    def read(self, start: int, stop: int) -> Any:
        """Return rows ``start:stop``; Dask arrays are computed one block at a time."""
        block = self.values[start:stop]
        if hasattr(block, "dask"):
            block = block.compute(scheduler="synchronous")
        return block.tocsr() if sparse.issparse(block) else np.ascontiguousarray(block)

    def read_bytes(self, rows: int) -> int:
        """Bytes of a copy of `rows` rows."""
        if sparse.issparse(self.values):
            return rows * (self.row_entries() * (self.dtype.itemsize + 8) + 8)
        return int(rows * np.prod(self.shape[1:], dtype=np.int64) * self.dtype.itemsize)

    def row_entries(self) -> int:
        """Bound on the stored entries per row of any block; every column if not sparse."""
        if not sparse.issparse(self.values):
            return int(np.prod(self.shape[1:], dtype=np.int64))
        edges = np.append(self.values.indptr[:-1:TILE_ROWS], self.values.nnz).astype(np.int64)
        return -(-int(np.diff(edges).max(initial=0)) // min(TILE_ROWS, max(1, self.shape[0])))

    def stored_bytes(self) -> int:
        """Nothing is read from disk."""
        return 0

    def fingerprint(self) -> str:
        """In-memory runs are not resumed and need no fingerprint."""
        return "memory"


def row_entries(source: Any) -> int:
    """Bound on the stored entries per row of any block; every column if it is not known."""
    bound = getattr(source, "row_entries", None)
    return int(source.shape[1]) if bound is None else bound()


def open_element(store: Path | str, key: str) -> ArrayElement:
    """Open ``X``, ``layers/...``, ``obsm/...`` or one column ``obs/...`` of a store.

    Raises
    ------
    InputError
        If the store has no such element, naming those that it has.
    """
    store = str(store)
    path = Path(store) / key
    records = manifest.load(store)
    if path.exists() and f"{key}/zarr.json" in records:
        _check_shard(store, f"{key}/zarr.json", records)
    if not (path / "zarr.json").exists():
        parent = path.parent
        known = sorted(p.parent.name for p in parent.glob("*/zarr.json"))
        raise InputError(
            "element-unknown",
            f"no element {key!r}",
            place=store,
            remedy=f"choose one of: {', '.join(k for k in known if k != '_index') or 'none'}",
        )
    node = zarr.open(str(path), mode="r")
    kind = node.attrs.get("encoding-type", "array")
    if kind == "categorical":
        return CodesElement(store, key)
    if kind == "csr_matrix":
        return CsrElement(store, key)
    if isinstance(node, zarr.Array):
        return ArrayElement(store, key)
    raise InputError(
        "element-kind",
        f"element {key!r} is a {kind}, which cannot be read in blocks of rows",
        place=store,
        remedy="convert the data with `stdist convert`",
    )
