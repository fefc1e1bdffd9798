"""Small pieces that the preprocessing programs share."""

from __future__ import annotations

from typing import Any

from stdist.methods.data import Data
from stdist.store import CsrElement, Output, Source
from stdist.store.elements import row_entries

FLOAT = 8


def tile_workspace(n_columns: int, copies: int = 3) -> TileWorkspace:
    """Bytes of `copies` float64 copies of a tile."""
    return TileWorkspace(n_columns * copies * FLOAT)


class TileWorkspace:
    """Workspace proportional to the rows of a call."""

    def __init__(self, row_bytes: int, fixed: int = 0) -> None:
        self.row_bytes, self.fixed = row_bytes, fixed

    def __call__(self, rows: int) -> int:
        """Bytes for `rows` rows."""
        return rows * self.row_bytes + self.fixed


def is_csr(source: Source) -> bool:
    """Tell whether a source yields CSR rows."""
    values: Any = getattr(source, "values", None)
    return isinstance(source, CsrElement) or hasattr(getattr(values, "_meta", values), "indptr")


def layer_like(source: Source, key: str, n_columns: int, *, sparse: bool | None = None) -> Output:
    """Float32 layer with the sparsity of its source."""
    if not (is_csr(source) if sparse is None else sparse):
        return Output(f"layers/{key}", (n_columns,), "float32")
    entries = row_entries(source)
    return Output(f"layers/{key}", (n_columns,), "float32", "csr", row_entries=entries)


def recorded(data: Data, **parameters: Any) -> dict[str, Any]:
    """Parameters from which a program on a store is built again."""
    return {"data": str(data.path), **parameters}
