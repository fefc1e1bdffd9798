"""Rows that a program keeps between its passes, local to a block: they never leave the workers.

Every update writes a new version; the one before stays until the round that made it obsolete is
checkpointed, so a repeated task or a resumed round finds what it read the first time.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import google_crc32c
import numpy as np
from scipy import sparse

from stdist.store import RunStopped
from stdist.store.manifest import temporary_path

CHECKSUM = 4  # bytes


@dataclass(frozen=True)
class State:
    """Columns and dtype of such rows: ``(n_rows, *columns)``.

    Where `entries` gives the entries to expect in a row, for the plan, rows are CSR.
    """

    columns: tuple[int, ...]
    dtype: str
    entries: float | None = None

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        item = np.dtype(self.dtype).itemsize
        if self.entries is not None:
            return int(8 + np.ceil(self.entries) * (4 + item))
        return int(np.prod(self.columns, dtype=np.int64)) * item

    def check(self, rows: Any) -> None:
        """Refuse rows of another dtype or shape.

        Raises
        ------
        ValueError
            If they are.
        """
        if rows.dtype != self.dtype or rows.shape[1:] != self.columns:
            message = f"rows are {rows.dtype} {rows.shape}, not {self}"
            raise ValueError(message)

    def to_bytes(self, rows: Any) -> bytes:
        """Rows of one block as they are kept."""
        if self.entries is None:
            return np.ascontiguousarray(rows).tobytes()
        head = np.array([rows.shape[0], rows.nnz], np.int64)
        arrays = head, rows.indptr.astype(np.int64), rows.indices.astype(np.int32), rows.data
        return b"".join(values.tobytes() for values in arrays)

    def from_bytes(self, data: bytes) -> Any:
        """Rows of one block from what `to_bytes` made."""
        if self.entries is None:
            return np.frombuffer(data, self.dtype).reshape(-1, *self.columns)
        n_rows, n_entries = np.frombuffer(data, np.int64, 2)
        indptr = np.frombuffer(data, np.int64, n_rows + 1, 16)
        first = 16 + indptr.nbytes
        indices = np.frombuffer(data, np.int32, n_entries, first)
        values = np.frombuffer(data, self.dtype, n_entries, first + indices.nbytes)
        return sparse.csr_matrix((values, indices, indptr), shape=(n_rows, *self.columns))


class StateStore(Protocol):
    """Keeps the rows of every state, version and block."""

    def write(self, name: str, version: int, block: int, rows: Any, like: State) -> None: ...
    def read(self, name: str, version: int, block: int, like: State) -> Any: ...
    def drop_before(self, name: str, version: int) -> None: ...


@dataclass(frozen=True)
class FileState:
    """One checksummed file per block under the run's folder."""

    root: str

    def _path(self, name: str, version: int, block: int) -> Path:
        return Path(self.root) / name / f"{version:06d}" / f"{block:06d}"

    def write(self, name: str, version: int, block: int, rows: Any, like: State) -> None:
        """Write the rows of one block, atomically."""
        path = self._path(name, version, block)
        path.parent.mkdir(parents=True, exist_ok=True)
        data = like.to_bytes(rows)
        temporary = temporary_path(path)
        with temporary.open("wb") as file:
            file.write(data)
            file.write(_checksum(data))
        temporary.replace(path)

    def read(self, name: str, version: int, block: int, like: State) -> Any:
        """Read the rows of one block.

        Raises
        ------
        RunStopped
            If the file is not there or not what was written.
        """
        path = self._path(name, version, block)
        data, checksum = b"", b""
        with suppress(FileNotFoundError), path.open("rb") as file:
            data = file.read(max(0, path.stat().st_size - CHECKSUM))
            checksum = file.read()
        if _checksum(data) != checksum:
            raise RunStopped(
                "state-altered",
                f"rows that the run keeps in {name!r} are not what was written",
                place=str(path),
                remedy="drop the run with `stdist resume --discard` and start it again",
            )
        return like.from_bytes(data)

    def drop_before(self, name: str, version: int) -> None:
        """Remove the versions that no round needs any more."""
        for folder in (Path(self.root) / name).glob("*"):
            if int(folder.name) < version:
                shutil.rmtree(folder, ignore_errors=True)


def _checksum(data: bytes) -> bytes:
    return google_crc32c.value(data).to_bytes(CHECKSUM, "little")


@dataclass(eq=False)
class MemoryState:
    """Keeps the rows in this process, for data in memory."""

    blocks: dict[tuple[str, int, int], Any] = field(default_factory=dict)

    def write(self, name: str, version: int, block: int, rows: Any, like: State) -> None:
        """Keep the rows of one block."""
        self.blocks[name, version, block] = rows

    def read(self, name: str, version: int, block: int, like: State) -> Any:
        """Return the rows of one block."""
        return self.blocks[name, version, block]

    def drop_before(self, name: str, version: int) -> None:
        """Forget the versions that no round needs any more."""
        for key in [key for key in self.blocks if key[0] == name and key[1] < version]:
            del self.blocks[key]


@dataclass(frozen=True)
class Recollection:
    """What one stage's tasks read and write: versions by the name of the state."""

    store: StateStore
    states: Mapping[str, State]
    recalls: Mapping[str, int]
    updates: Mapping[str, int]

    def of_part(self, part: tuple[int, int], begins: bool, ends: bool) -> Recollection:
        """The same for a block in a stage that takes a part of the tiles.

        A state has a version for each part, which only blocks with tiles of the part write; a block
        whose first or last tiles of a round these are reads or writes that of the whole round.
        """
        number, n_parts = part
        recalls, updates = dict(self.recalls), dict(self.updates)
        for name in updates:
            recalls[name] -= number if begins else 0
            updates[name] += n_parts - 1 - number if ends else 0
        return replace(self, recalls=recalls, updates=updates)

    def read(self, block: int) -> dict[str, Any]:
        """Return the rows of a block of every recalled state."""
        return {
            name: self.store.read(name, version, block, self.states[name])
            for name, version in self.recalls.items()
        }

    def write(self, block: int, rows: Mapping[str, Any]) -> None:
        """Write the new rows of a block.

        Raises
        ------
        ValueError
            If the kernel returned rows of another dtype or shape than the state's.
        """
        for name, version in self.updates.items():
            state = self.states[name]
            state.check(rows[name])
            self.store.write(name, version, block, rows[name], state)
