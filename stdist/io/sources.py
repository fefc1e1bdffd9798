"""Rows of arrays inside an HDF5 file or a zarr folder: opened for each read, pickled by path.

h5py and zarr-python offer the same few calls that are needed here (``group[key]``, ``.attrs``,
slices), so one class per encoding serves .h5ad, AnnData zarr (v2 and v3) and 10x .h5.
"""

from __future__ import annotations

import errno
import functools
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import zarr

from stdist.store import InputError, StdistError
from stdist.store.elements import check_rows

TRANSIENT = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
UNREADABLE = (KeyError, ValueError, TypeError, RuntimeError, EOFError, IndexError, zlib.error)


@contextmanager
def reading(path: str, what: str) -> Iterator[None]:
    """Turn the errors of file libraries into an `InputError` that names the file.

    Raises
    ------
    InputError
        ``input-unreadable`` (no permission), ``input-foreign`` (not of this format) or
        ``input-truncated`` (damaged).
    """
    try:
        yield
    except StdistError:
        raise
    except PermissionError as error:
        raise InputError(
            "input-unreadable", "no permission to read", place=path, remedy="ask its owner"
        ) from error
    except OSError as error:
        if error.errno in TRANSIENT:
            raise
        raise damaged(path, f"{what} ends early or is damaged ({error})") from error
    except UNREADABLE as error:
        detail = f"{type(error).__name__}: {error}".splitlines()[0]
        raise damaged(path, f"{what} cannot be read ({detail})") from error


def damaged(path: str, thing: str) -> InputError:
    """Return the error for a file that does not hold what it should."""
    remedy = "copy or download the file again, and compare its size and checksum with the source"
    return InputError("input-truncated", thing, place=path, remedy=remedy)


def inconsistent(path: str, thing: str) -> InputError:
    """Return the error for parts of an input that contradict each other."""
    remedy = "write the file again from its source; it was cut short or edited"
    return InputError("input-inconsistent", thing, place=path, remedy=remedy)


@contextmanager
def opened(path: str, what: str = "the file") -> Iterator[Any]:
    """Open the root group of an HDF5 file or a zarr folder for reading."""
    with reading(path, what):
        if Path(path).is_dir():
            yield zarr.open_group(path, mode="r", use_consolidated=False)
        else:
            with h5py.File(path, "r", locking=False) as file:
                yield file


def stamp_of(path: Path) -> str:
    """Identity of an input for resuming: size and time of change of every file."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    stats = [(file.name, stat.st_size, stat.st_mtime_ns) for file in files if (stat := file.stat())]
    return f"{len(stats)}-{zlib.crc32(repr(stats).encode()):08x}-{sum(s[1] for s in stats)}"


def is_string(node: Any) -> bool:
    """Tell arrays of strings from arrays of numbers."""
    if isinstance(node, h5py.Dataset):
        return h5py.check_string_dtype(node.dtype) is not None
    return np.dtype(node.dtype).kind in "OUTS"


def read_strings(node: Any, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Read strings as an object array of ``str``."""
    if isinstance(node, h5py.Dataset) and is_string(node):
        return np.asarray(node.asstr()[start:stop], dtype=object)
    values = np.asarray(node[start:stop])
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8")
    return (
        values.astype(object) if values.dtype.kind in "OUT" else values.astype(str).astype(object)
    )


@dataclass(frozen=True)
class Facts:
    """What is known of a node without reading it."""

    shape: tuple[int, ...]
    dtype: np.dtype
    chunk_bytes: int
    stored_bytes: int


@functools.lru_cache(maxsize=4096)
def node_facts(path: str, key: str, stamp: str) -> Facts:
    """Shape, dtype, decoded bytes of one chunk and bytes on disk of an array."""
    with opened(path, f"element {key!r}") as root:
        node = root[key]
        dtype = np.dtype(object) if is_string(node) else np.dtype(node.dtype)
        chunks = node.chunks or (1,)
        if isinstance(node, h5py.Dataset):
            stored = node.id.get_storage_size()
        else:
            files = (Path(path) / key).rglob("*")
            stored = sum(file.stat().st_size for file in files if file.is_file())
        size = int(np.prod(chunks, dtype=np.int64)) * dtype.itemsize
        return Facts(tuple(map(int, node.shape)), dtype, size, stored)


@dataclass(frozen=True)
class NodeSource:
    """Rows of one array; `stamp` is the identity of the file when it was opened."""

    path: str
    key: str
    stamp: str

    csr = False

    @property
    def facts(self) -> Facts:
        """Shape, dtype and sizes."""
        return node_facts(self.path, self.key, self.stamp)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the element."""
        return self.facts.shape

    @property
    def dtype(self) -> np.dtype:
        """NumPy dtype; object for strings."""
        return self.facts.dtype

    def read(self, start: int, stop: int) -> Any:
        """Return rows ``start:stop``."""
        if Path(self.path).is_dir():
            check_rows(self.path, self.key, start, stop)
        with opened(self.path, f"rows {start}:{stop} of {self.key!r}") as root:
            return self._rows(root[self.key], start, stop)

    def _rows(self, node: Any, start: int, stop: int) -> np.ndarray:
        return np.ascontiguousarray(node[start:stop])

    def read_bytes(self, rows: int) -> int:
        """Bytes held while `rows` rows are read."""
        row = int(np.prod(self.shape[1:], dtype=np.int64)) * max(self.dtype.itemsize, 1)
        return rows * row + 2 * self.facts.chunk_bytes

    def stored_bytes(self) -> int:
        """Bytes on disk."""
        return self.facts.stored_bytes

    def fingerprint(self) -> str:
        """Identity of the element."""
        return f"{self.stamp}:{self.key}"


@dataclass(frozen=True)
class ArraySource(NodeSource):
    """A dense numeric or boolean array of any dimension."""


@dataclass(frozen=True)
class StringSource(NodeSource):
    """A column of strings, read as an object array of ``str``."""

    def _rows(self, node: Any, start: int, stop: int) -> np.ndarray:
        return read_strings(node, start, stop)

    def read_bytes(self, rows: int) -> int:
        """Bytes held while `rows` rows are read (a string counts as 100)."""
        return rows * 100 + 2 * self.facts.chunk_bytes
