"""Open .h5ad files and AnnData zarr folders (v2 and v3) as tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from stdist.io.csr import CsrSource
from stdist.io.sources import (
    UNREADABLE,
    ArraySource,
    StringSource,
    damaged,
    is_string,
    opened,
    read_strings,
    reading,
    stamp_of,
)
from stdist.io.spill import CscSource
from stdist.io.table import Column, Table
from stdist.store import InputError, Source

REWRITE = "write it again with a present anndata: anndata.read_h5ad(old).write_h5ad(new)"


def open_anndata(path: Path, scratch: Path) -> Table:
    """Open a file or folder in AnnData's layout.

    Parameters
    ----------
    path
        ``.h5ad`` file or zarr folder.
    scratch
        Folder for CSC matrices sorted by rows.

    Raises
    ------
    InputError
        If the layout is not AnnData's, is older than anndata 0.8, or is damaged.
    """
    stamp = stamp_of(path)
    with opened(str(path)) as root:
        missing = [name for name in ("obs", "var") if name not in root]
        if missing:
            raise InputError(
                "input-foreign",
                f"not AnnData's layout: it has no {missing[0]!r}",
                place=str(path),
                remedy="give an AnnData file, a 10x .h5 file or a 10x mtx folder",
            )
        return _Reader(path, scratch, stamp, root).table()


class _Reader:
    """Reads the small parts of one file and names the sources of the large ones."""

    def __init__(self, path: Path, scratch: Path, stamp: str, root: Any) -> None:
        self.path, self.scratch, self.stamp, self.root = str(path), scratch, stamp, root
        self.notes: list[str] = []

    def table(self) -> Table:
        obs = self.root["obs"]
        if not _is_group(obs) or "__categories" in obs or "column-order" not in obs.attrs:
            raise InputError(
                "input-legacy",
                "the file is in the layout of anndata before 0.7",
                place=self.path,
                remedy=REWRITE,
            )
        index = _text(obs.attrs["_index"])
        names = self.column(f"obs/{index}")
        if names is None:
            raise damaged(self.path, "the cell names cannot be read")
        columns = {}
        for name in map(_text, obs.attrs["column-order"]):
            column = self.column(f"obs/{name}")
            if column is not None:
                columns[name] = column
        table = Table(self.path, names.values, self.frame("var"), columns)
        table.matrices = self.matrices()
        if "raw" in self.root and "raw/var" in self.root:
            table.raw_var = self.frame("raw/var")
        for group in ("varm", "varp"):
            for name in self.members(group):
                self.keep(table.small, f"{group}/{name}", f"{group}/{name}")
        for name in self.members("uns"):
            self.keep(table.uns, name, f"uns/{name}")
        table.notes = self.notes
        return table

    def members(self, group: str) -> list[str]:
        return sorted(self.root[group].keys()) if group in self.root else []

    def keep(self, into: dict[str, Any], name: str, key: str) -> None:
        from anndata.io import read_elem

        try:
            into[name] = read_elem(self.root[key])
        except (*UNREADABLE, OSError) as error:
            self.notes.append(f"{key} is left out: anndata cannot read it ({error})")

    def frame(self, key: str) -> Any:
        from anndata.io import read_elem

        with reading(self.path, f"{key!r}"):
            frame = read_elem(self.root[key])
        frame.index = frame.index.astype(str).astype(object)
        return frame

    def column(self, key: str) -> Column | None:
        """Source of one column of ``obs``, by its encoding."""
        if key not in self.root:
            raise damaged(self.path, f"column {key!r} is announced but missing")
        node = self.root[key]
        if not _is_group(node):
            kind = StringSource if is_string(node) else ArraySource
            name = "string" if is_string(node) else "plain"
            return Column(name, kind(self.path, key, self.stamp))
        encoding = _text(node.attrs.get("encoding-type", ""))
        if encoding == "categorical":
            return Column(
                "categorical",
                ArraySource(self.path, f"{key}/codes", self.stamp),
                categories=self.categories(node),
                ordered=bool(node.attrs.get("ordered", False)),
            )
        if encoding.startswith("nullable-"):
            values, mask = (
                ArraySource(self.path, f"{key}/{part}", self.stamp) for part in ("values", "mask")
            )
            if encoding != "nullable-string-array":
                return Column("nullable", values, mask)
            strings = StringSource(self.path, values.key, self.stamp)
            if not np.any(node["mask"][:]):
                return Column("string", strings)
            return Column("nullable", strings, mask)
        self.notes.append(f"{key} is left out: encoding {encoding or 'unknown'!r}")
        return None

    def categories(self, node: Any) -> tuple[Any, ...]:
        labels = node["categories"]
        if _is_group(labels):
            labels = labels["values"]
        values = read_strings(labels) if is_string(labels) else np.asarray(labels[:])
        return tuple(values.tolist())

    def matrices(self) -> dict[str, Source]:
        """Sources of everything that has one row per cell."""
        keys = [key for key in ("X", "raw/X") if key in self.root]
        for group in ("layers", "obsm", "obsp"):
            keys += [f"{group}/{name}" for name in self.members(group)]
        found = {key: self.matrix(key) for key in keys}
        return {key: source for key, source in found.items() if source is not None}

    def matrix(self, key: str) -> Source | None:
        node = self.root[key]
        if not _is_group(node):
            self.check_chunks(key, node)
            return ArraySource(self.path, key, self.stamp)
        if "h5sparse_format" in node.attrs:
            thing = f"{key!r} is in the layout of anndata before 0.7"
            raise InputError("input-legacy", thing, place=self.path, remedy=REWRITE)
        encoding = _text(node.attrs.get("encoding-type", ""))
        if encoding not in ("csr_matrix", "csc_matrix"):
            self.notes.append(f"{key} is left out: it is a {encoding or 'group'}, not a matrix")
            return None
        for part in ("data", "indices", "indptr"):
            if part not in node:
                raise damaged(self.path, f"matrix {key!r} has no {part!r}")
        rows, columns = map(int, node.attrs["shape"])
        for part in ("data", "indices"):
            self.check_chunks(f"{key}/{part}", node[part], complete=columns > 1)
        if encoding == "csr_matrix":
            return CsrSource(self.path, key, self.stamp, columns)
        folder = self.scratch / key.replace("/", "-")
        return CscSource(self.path, key, self.stamp, str(folder), rows, columns)

    def check_chunks(self, key: str, node: Any, *, complete: bool = False) -> None:
        """Notice chunks that a zarr folder lacks; zarr reads them as the fill value."""
        if isinstance(node, h5py.Dataset) or node.nchunks_initialized >= node.nchunks:
            return
        absent = node.nchunks - node.nchunks_initialized
        if complete:
            raise damaged(self.path, f"array {key!r} lacks {absent} of {node.nchunks} chunks")
        self.notes.append(
            f"{key}: {absent} of {node.nchunks} chunks are absent and read as {node.fill_value}"
        )


def _is_group(node: Any) -> bool:
    return hasattr(node, "keys")


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
