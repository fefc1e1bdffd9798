"""Write aside, then switch: elements become visible only when all of them are complete.

A new store is built beside its final path and renamed into place. Elements added to an existing
store are built under ``.stdist/runs/<run>/staging``, then moved in; readers go by the consolidated
metadata, which is replaced last, in one rename.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import zarr

from stdist.store import layout, manifest
from stdist.store.encoding import create_array, encoding, write_element
from stdist.store.errors import InputError
from stdist.store.manifest import RECORDS, Manifest, Record

ROOT_GROUPS = ("obs", "var", "layers", "obsm", "varm", "obsp", "varp", "uns")


@dataclass(frozen=True)
class Output:
    """An array that a stage writes block by block.

    Parameters
    ----------
    key
        Element of the store: ``layers/crescendo``, ``obsm/X_pca``, ``obs/n_counts`` ...
    columns
        Shape of one row: ``()`` for a column of ``obs``, ``(n_columns,)`` for a matrix.
    dtype
        NumPy dtype name, or ``"str"``.
    kind
        ``"dense"``; ``"transposed"`` for shape ``(n_columns, n_rows)``; ``"csr"``;
        ``"categorical"``, whose codes are written and whose `categories` are known; or
        ``"nullable"`` and ``"mask"``, the two halves of a column with missing values.
    categories
        Labels of a categorical column.
    attributes
        stdist's own attributes (maximum, density ...), kept with the array.
    ordered
        True for an ordered categorical column.
    row_entries
        Bound on the stored entries per row of any block of a CSR output (None: every column).
    """

    key: str
    columns: tuple[int, ...] = ()
    dtype: str = "float32"
    kind: str = "dense"
    categories: tuple[str, ...] = ()
    attributes: Mapping[str, Any] | None = None
    ordered: bool = False
    row_entries: int | None = None

    @property
    def array_key(self) -> str:
        """Array that the blocks of rows go to."""
        part = {"categorical": "codes", "nullable": "values", "mask": "mask"}.get(self.kind)
        return f"{self.key}/{part}" if part else self.key

    @property
    def row_bytes(self) -> int:
        """Decoded bytes of one row (strings are counted as 64)."""
        size = 64 if self.dtype == "str" else np.dtype(self.dtype).itemsize
        if self.kind == "csr" and self.row_entries is not None:
            return self.row_entries * (size + 4) + 8
        for length in self.columns:
            size *= length
        return size


class Staging:
    """The place where a run writes before its results are switched in.

    Parameters
    ----------
    target
        Path of the store.
    run
        Name of the run.
    new
        True if the run creates the store.
    """

    def __init__(self, target: Path, run: str, *, new: bool) -> None:
        self.target, self.run, self.new = target, run, new
        self.root = partial_path(target) if new else target / RECORDS / "runs" / run / "staging"

    @property
    def records_root(self) -> Path:
        """Folder of stdist's records of the store being written."""
        return (self.root if self.new and not self._switched else self.target) / RECORDS

    @property
    def _switched(self) -> bool:
        """True once a new store has been renamed into place."""
        return not (self.root / "zarr.json").exists() and (self.target / RECORDS).exists()

    @property
    def run_folder(self) -> Path:
        """Folder that records the run."""
        return self.records_root / "runs" / self.run

    def prepare(self) -> None:
        """Create the staging hierarchy, in place of what runs that were never recorded left.

        Raises
        ------
        InputError
            If the folder where the store is to be built holds something else.
        """
        self._sweep()
        root = zarr.open_group(str(self.root), mode="a", zarr_format=3)
        if self.new:
            root.attrs.update(
                encoding("anndata") | {"stdist": {"encoding-version": layout.STORE_VERSION}}
            )
        for name in ROOT_GROUPS:
            group = root.require_group(name)
            kind = "dataframe" if name in ("obs", "var") else "dict"
            group.attrs.update(encoding(kind))
            if kind == "dataframe":
                group.attrs.update({"_index": "_index", "column-order": []})

    def _sweep(self) -> None:
        """Remove what died before its run.json was written, or while it was discarded."""
        if not self.new:
            for folder in (self.target / RECORDS / "runs").glob("*"):
                if not (folder / "run.json").exists():
                    shutil.rmtree(folder)
        elif self.root.exists():
            names = [path.name for path in self.root.iterdir()]
            ours = "zarr.json" in names or RECORDS in names
            if not ours and not all(name.endswith(".partial") for name in names):
                raise InputError(
                    "output-exists",
                    "the folder in which the output is built holds something else",
                    place=str(self.root),
                    remedy="move it away, or choose another output path",
                )
            shutil.rmtree(self.root)

    def group(self) -> zarr.Group:
        """Return the staged hierarchy."""
        return zarr.open_group(str(self.root), mode="r+", zarr_format=3, use_consolidated=False)

    def create(self, output: Output, n_rows: int, block_length: int) -> None:
        """Create the empty array of an output; its shards are bands of at most one block."""
        if (self.root / output.array_key / "zarr.json").exists():
            return
        root = self.group()
        parent, name = _parent(root, output.array_key)
        if output.kind == "categorical":
            parent.attrs.put(encoding("categorical") | {"ordered": output.ordered})
            self.write_element(f"{output.key}/categories", list(output.categories))
        if output.kind == "nullable":
            kinds = {"str": "nullable-string-array", "bool": "nullable-boolean"}
            kind = kinds.get(output.dtype, "nullable-integer")
            parent.attrs.put(encoding(kind))
        shape = (n_rows, *output.columns)
        rows = layout.shard_rows(output.row_bytes, block_length)
        chunks: tuple[int, ...]
        shards: tuple[int, ...] | None = None
        if len(shape) == 1:
            chunks = (rows,)
        else:
            chunks, shards = layout.dense_geometry(
                output.columns[0], np.dtype(output.dtype).itemsize, rows
            )
        if output.kind == "transposed":
            shape, chunks, shards = shape[::-1], chunks[::-1], shards and shards[::-1]
        string = output.dtype == "str"
        create_array(
            parent,
            name,
            shape=shape,
            dtype=str if string else output.dtype,
            chunks=chunks,
            shards=shards,
            attributes=encoding("string-array" if string else "array")
            | ({"stdist": dict(output.attributes)} if output.attributes else {}),
        )

    def describe(self, output: Output, n_rows: int, contents: list[dict[str, int]]) -> None:
        """Keep the maximum and the density of an integer output among its attributes."""
        if not contents or not all(contents):
            return
        node: Any = self.group()[output.key]
        size = max(1, n_rows * output.columns[0])
        found = {
            "max": max(part["max"] for part in contents),
            "density": sum(part["nonzero"] for part in contents) / size,
        }
        node.attrs["stdist"] = dict(node.attrs.get("stdist", {})) | found

    def write_element(self, key: str, value: Any) -> None:
        """Write a small element, replacing what an interrupted attempt left there."""
        shutil.rmtree(self.root / key, ignore_errors=True)
        write_element(*_parent(self.group(), key), value)

    def commit(self, records: Iterable[Record], keys: list[str]) -> None:
        """Switch the staged elements `keys` in; a crash inside is finished by `finish_commit`."""
        staged = Manifest()
        staged.add(records)
        names = manifest.store_files(self.root)
        wanted = (
            names if self.new else [n for n in names if n.startswith(tuple(f"{k}/" for k in keys))]
        )
        missing = sorted(set(staged) - set(wanted))
        if missing:
            message = f"recorded files are gone from {self.root}: {missing[:3]}"
            raise FileNotFoundError(message)
        staged.add(
            manifest.record_file(self.root, self.root / name)
            for name in wanted
            if name not in staged
        )
        manifest.write_atomically(
            self.run_folder / "commit.json",
            json.dumps({"keys": keys, "records": [vars(r) for r in staged.values()]}).encode(),
        )
        self.finish_commit()

    def finish_commit(self) -> None:
        """Carry out the switch that ``commit.json`` describes; safe to repeat after a crash."""
        if self.new and self._switched:
            return
        journal = json.loads((self.run_folder / "commit.json").read_text())
        staged = Manifest()
        staged.add(
            Record(**{**r, "shard": None if r["shard"] is None else tuple(r["shard"])})
            for r in journal["records"]
        )
        keys = journal["keys"]
        self._remove_temporaries(keys)
        if self.new:
            self._link_columns(self.root, keys)
            _consolidate(self.root)
            self._save(self.root, staged, [])
            if self.target.exists():
                raise InputError(
                    "output-exists",
                    "the output appeared while it was being made",
                    place=str(self.target),
                    remedy="move it away, then `stdist resume`",
                )
            self.root.rename(self.target)
            return
        for key in keys:
            source, final = self.root / key, self.target / key
            if source.exists():
                if final.exists():
                    aside = self.run_folder / "replaced" / key
                    aside.parent.mkdir(parents=True, exist_ok=True)
                    final.rename(aside)
                _parent(zarr.open_group(str(self.target), mode="r+", use_consolidated=False), key)
                source.rename(final)
        self._link_columns(self.target, keys)
        _consolidate(self.target)
        self._save(self.target, staged, keys)
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.rmtree(self.run_folder / "replaced", ignore_errors=True)

    def _remove_temporaries(self, keys: list[str]) -> None:
        """Remove temporary files of tasks, and of an earlier switch, that died."""
        found = list(self.root.rglob("*.partial"))
        if not self.new:
            groups = {str(group) for key in keys for group in PurePosixPath(key).parents}
            for group in groups | {"obs", "var"}:
                found += (self.target / group).glob("zarr.*.partial")
        for path in found:
            path.unlink(missing_ok=True)

    def _link_columns(self, root: Path, keys: list[str]) -> None:
        for frame in ("obs", "var"):
            group: Any = zarr.open_group(str(root / frame), mode="r+", use_consolidated=False)
            known = list(group.attrs["column-order"])
            added = dict.fromkeys(k.partition("/")[2] for k in keys if k.startswith(f"{frame}/"))
            order = known + [name for name in added if name not in (*known, "_index")]
            group.attrs.update({"column-order": order})

    def _save(self, root: Path, staged: Manifest, replaced: list[str]) -> None:
        """Write the manifest: recorded files as recorded, metadata that the switch edits anew."""
        complete = Manifest(manifest.load(root))
        for key in replaced:
            complete.remove_under(key)
        complete.add(staged.values())
        edited = {"zarr.json", "obs/zarr.json", "var/zarr.json"}
        made = {str(p / "zarr.json") for key in replaced for p in PurePosixPath(key).parents}
        edited |= {name for name in made if name not in complete}
        complete.add(manifest.record_file(root, root / name) for name in edited)
        complete.save(root)


def scratch_path(target: Path) -> Path:
    """Where a run may keep what it sorts on disk until its store is complete."""
    return target.with_name(f".{target.name}.scratch")


def partial_path(target: Path) -> Path:
    """Where a new store is built."""
    return target.with_name(f"{target.name}.partial")


def _parent(root: zarr.Group, key: str) -> tuple[zarr.Group, str]:
    """Return the group that holds element `key`, made if it is not there, and the last name."""
    *names, last = key.split("/")
    for name in names:
        group: Any = root.get(name)
        root = root.create_group(name, attributes=encoding("dict")) if group is None else group
    return root, last


def _consolidate(root: Path) -> None:
    with warnings.catch_warnings():
        # the folder of records is no zarr node, and consolidated metadata is not in the v3 text
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(str(root), zarr_format=3)
