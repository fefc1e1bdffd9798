"""Sources made of other sources: rows of several inputs, chosen genes, changed names and codes."""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from stdist.store import Source
from stdist.store.elements import row_entries
from stdist.store.manifest import digest_bytes, write_atomically


@dataclass(frozen=True)
class ConstantSource:
    """A column that has one value everywhere: the code of a batch, or "nothing is missing"."""

    length: int
    value: int
    dtype_name: str

    csr = False

    @property
    def shape(self) -> tuple[int]:
        """Shape of the column."""
        return (self.length,)

    @property
    def dtype(self) -> np.dtype:
        """NumPy dtype."""
        return np.dtype(self.dtype_name)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return rows ``start:stop``."""
        return np.full(stop - start, self.value, self.dtype)

    def read_bytes(self, rows: int) -> int:
        """Bytes of `rows` rows."""
        return rows * self.dtype.itemsize

    def stored_bytes(self) -> int:
        """Nothing is stored."""
        return 0

    def fingerprint(self) -> str:
        """Identity of the column."""
        return f"{self.value}*{self.length}"


@dataclass(frozen=True)
class Wrapped:
    """Base of sources that change the rows of one other source."""

    source: Any

    @property
    def csr(self) -> bool:
        """True if rows come as CSR."""
        return is_sparse(self.source)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the element."""
        return self.source.shape

    @property
    def dtype(self) -> np.dtype:
        """NumPy dtype."""
        return self.source.dtype

    def row_entries(self) -> int:
        """Bound on the entries per row of any block."""
        return row_entries(self.source)

    def read(self, start: int, stop: int) -> Any:
        """Return rows ``start:stop``."""
        return self.change(self.source.read(start, stop))

    def change(self, rows: Any) -> Any:
        """Change the rows of the source."""
        raise NotImplementedError

    def read_bytes(self, rows: int) -> int:
        """Bytes held while `rows` rows are read and changed."""
        return 2 * self.source.read_bytes(rows)

    def stored_bytes(self) -> int:
        """Bytes on disk."""
        return self.source.stored_bytes()

    def fingerprint(self) -> str:
        """Identity of the source and of what is done to its rows; files go by their names."""
        what = [
            Path(value).name if field.name.endswith("_file") else repr(value)
            for field in fields(self)
            if field.name != "source" and (value := getattr(self, field.name)) is not None
        ]
        return f"{type(self).__name__}({self.source.fingerprint()}, {', '.join(what)})"


@dataclass(frozen=True)
class SuffixSource(Wrapped):
    """Strings with a suffix: cell names made unique by their batch."""

    suffix: str

    def change(self, rows: np.ndarray) -> np.ndarray:
        """Append the suffix."""
        return np.asarray([name + self.suffix for name in rows], dtype=object)


@dataclass(frozen=True)
class RecodeSource(Wrapped):
    """Codes of a categorical column, in the numbering of the united categories."""

    table: tuple[int, ...]
    dtype_name: str

    @property
    def dtype(self) -> np.dtype:
        """NumPy dtype of the new codes."""
        return np.dtype(self.dtype_name)

    def change(self, rows: np.ndarray) -> np.ndarray:
        """Translate codes; -1, a missing value, stays."""
        return np.asarray([*self.table, -1], self.dtype)[rows]


@dataclass(frozen=True)
class LabelSource(Wrapped):
    """A categorical column as strings, missing values as ''."""

    categories: tuple[Any, ...]

    @property
    def dtype(self) -> np.dtype:
        """Objects."""
        return np.dtype(object)

    def change(self, rows: np.ndarray) -> np.ndarray:
        """Look the labels up."""
        return np.asarray([*map(str, self.categories), ""], dtype=object)[rows]


@functools.lru_cache(maxsize=64)
def _load_columns(path: str) -> np.ndarray:
    return np.load(path)


@dataclass(frozen=True)
class ColumnsSource(Wrapped):
    """Chosen columns in a given order, numbered in a ``.npy`` file (tasks stay small)."""

    columns_file: str
    n_columns: int

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the element."""
        return self.source.shape[0], self.n_columns

    def change(self, rows: Any) -> Any:
        """Take the columns."""
        taken = rows[:, _load_columns(self.columns_file)]
        if sparse.issparse(taken):
            taken.sort_indices()
        return taken


def save_numbers(folder: Path, numbers: np.ndarray) -> str:
    """Keep row or column numbers for a source; the name of the file says what it holds."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"numbers-{digest_bytes(numbers.tobytes())}.npy"
    if not path.exists():
        buffer = BytesIO()
        np.save(buffer, numbers)
        write_atomically(path, buffer.getvalue())
    return str(path)


@dataclass(frozen=True)
class ConcatSource:
    """The rows of several sources, one after the other."""

    parts: tuple[Any, ...]

    @property
    def csr(self) -> bool:
        """True if any part is CSR; then all rows come as CSR."""
        return any(is_sparse(part) for part in self.parts)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole."""
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])

    @property
    def dtype(self) -> np.dtype:
        """Common dtype of the parts."""
        return functools.reduce(np.promote_types, (part.dtype for part in self.parts))

    def read(self, start: int, stop: int) -> Any:
        """Return rows ``start:stop`` of the whole."""
        blocks, offset = [], 0
        for part in self.parts:
            length = part.shape[0]
            first, last = max(start - offset, 0), min(stop - offset, length)
            if first < last:
                blocks.append(part.read(first, last))
            offset += length
        if self.csr:
            rows = sparse.vstack([sparse.csr_matrix(block) for block in blocks], format="csr")
        else:
            rows = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        return rows.astype(self.dtype, copy=False)

    def row_entries(self) -> int:
        """Bound on the entries per row of any block."""
        return max(row_entries(part) for part in self.parts)

    def read_bytes(self, rows: int) -> int:
        """Bytes held while `rows` rows are read from several parts and joined."""
        per_row = max(
            part.read_bytes(held) / held
            for part in self.parts
            if (held := min(rows, part.shape[0]))
        )
        return int(2 * per_row * rows)

    def stored_bytes(self) -> int:
        """Bytes on disk."""
        return sum(part.stored_bytes() for part in self.parts)

    def fingerprint(self) -> str:
        """Identity of the parts in order."""
        return "+".join(part.fingerprint() for part in self.parts)


def is_sparse(source: Source) -> bool:
    """Tell whether a source gives CSR rows."""
    known = getattr(source, "csr", None)
    if known is not None:
        return bool(known)
    values = getattr(source, "values", None)
    return sparse.issparse(getattr(values, "_meta", values)) or hasattr(values, "format_str")
