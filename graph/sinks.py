"""Where the rows of a Map stage go: shards of a staged store, or arrays in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from scipy import sparse

from stdist.store import Output
from stdist.store.manifest import Record, temporary_path
from stdist.store.writer import fit, write_rows


class Sink(Protocol):
    """Receives the outputs of one block."""

    def write(
        self, output: Output, index: int, start: int, rows: Any, stage: str
    ) -> list[Record]: ...


@dataclass(frozen=True)
class StoreSink:
    """Writes whole shards of the staged store; CSR blocks go aside as parts (see assemble.py)."""

    root: str
    parts: str

    def write(self, output: Output, index: int, start: int, rows: Any, stage: str) -> list[Record]:
        """Write one block and return the records of its files."""
        if output.kind == "csr":
            write_part(Path(self.parts), output.key, index, rows)
            return []
        if output.kind == "transposed":
            rows = np.ascontiguousarray(rows.T)
        axis = 1 if output.kind == "transposed" else 0
        return write_rows(Path(self.root), output.array_key, start, rows, stage=stage, axis=axis)


def part_path(parts: Path, key: str, index: int) -> Path:
    """File of the CSR rows of one block."""
    return parts / key.replace("/", "-") / f"{index:06d}.npz"


def write_part(parts: Path, key: str, index: int, rows: sparse.csr_matrix) -> None:
    """Write the CSR rows of one block, atomically."""
    path = part_path(parts, key, index)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    with temporary.open("wb") as file:
        np.savez(file, data=rows.data, indices=rows.indices, indptr=rows.indptr.astype(np.int64))
    temporary.replace(path)


@dataclass(eq=False)
class MemorySink:
    """Keeps outputs in memory, for data that need no store."""

    n_rows: int
    arrays: dict[str, Any] = field(default_factory=dict)

    def write(self, output: Output, index: int, start: int, rows: Any, stage: str) -> list[Record]:
        """Keep one block."""
        if output.kind == "csr":
            self.arrays.setdefault(output.key, {})[index] = rows
            return []
        if output.key not in self.arrays:
            dtype = object if output.dtype == "str" else output.dtype
            self.arrays[output.key] = np.empty((self.n_rows, *output.columns), dtype)
        values = self.arrays[output.key]
        values[start : start + len(rows)] = fit(rows, values.dtype, output.key)
        return []

    def finished(self, outputs: Mapping[str, Output]) -> dict[str, Any]:
        """Return the complete outputs by their argument names."""
        done = {}
        for name, output in outputs.items():
            kept = self.arrays[output.key]
            if output.kind == "csr":
                kept = sparse.vstack([kept[index] for index in sorted(kept)], format="csr")
            if output.kind == "categorical":
                import pandas as pd

                kept = pd.Categorical.from_codes(kept, categories=list(output.categories))
            done[name] = kept.T if output.kind == "transposed" else kept
        return done
