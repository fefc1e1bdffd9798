"""A new store of the cells and genes that pass."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from stdist.cluster import executor_for
from stdist.graph import (
    Program,
    Reduce,
    by_name,
    check_output,
    choose_progress,
    refuse_unfinished,
    run_in_memory,
    start,
)
from stdist.io.derived import ColumnsSource, Wrapped, row_entries, save_numbers
from stdist.io.formats import open_table
from stdist.io.program import table_program
from stdist.io.table import Column, Table
from stdist.preprocess.bound import TileWorkspace, is_csr
from stdist.store import TILE_ROWS, InputError, Store
from stdist.store.layout import counts_dtype
from stdist.store.staging import scratch_path

BAND = 16 * TILE_ROWS


@functools.lru_cache(maxsize=8)
def _chosen_rows(path: str) -> np.ndarray:
    return np.load(path, mmap_mode="r")


@dataclass(frozen=True)
class RowsSource(Wrapped):
    """Chosen rows in ascending order, numbered in a ``.npy`` file that is read in place."""

    rows_file: str
    n_rows: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of what is left."""
        return (self.n_rows, *self.source.shape[1:])

    def row_entries(self) -> int:
        """Bound on the entries per row: all entries of a tile may lie in the rows that stay."""
        return min(self.source.shape[1], TILE_ROWS * row_entries(self.source))

    def read(self, start: int, stop: int) -> Any:
        """Return rows ``start:stop`` of the chosen, reading the source band by band."""
        wanted = np.asarray(_chosen_rows(self.rows_file)[start:stop])
        parts = []
        for first in range(int(wanted[0]), int(wanted[-1]) + 1, BAND):
            last = min(self.source.shape[0], first + BAND)
            inside = wanted[np.searchsorted(wanted, first) : np.searchsorted(wanted, last)]
            if len(inside):
                parts.append(self.source.read(first, last)[inside - first])
        if len(parts) == 1:
            return parts[0]
        return sparse.vstack(parts, "csr") if sparse.issparse(parts[0]) else np.concatenate(parts)

    def read_bytes(self, rows: int) -> int:
        """Bytes of the rows that stay, twice, and of one band of the source."""
        band = self.source.read_bytes(min(BAND, self.source.shape[0]))
        return 2 * self.source.read_bytes(min(rows, self.source.shape[0])) + band


def scan_tile(
    rows: tuple[int, int], *, counts: Any, limits: Mapping[str, float]
) -> dict[str, np.ndarray]:
    """Which cells pass, and what the genes sum to over those cells."""
    total = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    genes = np.asarray((counts != 0).sum(axis=1), dtype=np.int64).ravel()
    kept = (total >= limits["min_counts"]) & (genes >= limits["min_genes"])
    kept &= total <= limits["max_counts"]
    left = counts[np.flatnonzero(kept)]
    cells = left.getnnz(axis=0) if sparse.issparse(left) else (left != 0).sum(axis=0)
    data = left.data if sparse.issparse(left) else left
    return {
        "kept": kept,
        "cells": np.asarray(cells, dtype=np.int64),
        "max": np.int64(data.max(initial=0)),
        "nnz": np.int64(np.count_nonzero(data)),
        "row_entries": np.int64(genes.max(initial=0)),
    }


def append(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Join masks of neighbouring tiles."""
    return np.concatenate([left, right])


def filter_program(
    *, inputs: list[str], output: str, rows_file: str, genes_file: str, **stored: Any
) -> Program:
    """Bind the copy of what passes to a new store.

    Raises
    ------
    InputError
        If the lists of rows and genes, kept beside the output until the end, are gone.
    """
    for path in (rows_file, genes_file):
        if not Path(path).exists():
            raise InputError(
                "selection-missing",
                "the list of what to keep is gone",
                place=path,
                remedy=f"`stdist resume {output} --discard`, then filter again",
            )
    table = open_table(inputs[0], scratch_path(Path(output)))
    n_rows, genes = len(np.load(rows_file, mmap_mode="r")), np.load(genes_file)
    chosen = _select(table, rows_file, n_rows, genes_file, genes)
    parameters = {
        "inputs": inputs,
        "output": output,
        "rows_file": rows_file,
        "genes_file": genes_file,
        **stored,
    }
    return table_program(chosen, chosen.matrices.pop("X"), Path(output), parameters, name="filter")


def _select(table: Table, rows_file: str, n_rows: int, genes_file: str, genes: np.ndarray) -> Table:
    def rows(source: Any) -> RowsSource:
        return RowsSource(source, rows_file, n_rows)

    def column(old: Column) -> Column:
        mask = None if old.mask is None else rows(old.mask)
        return Column(old.kind, rows(old.values), mask, old.categories, old.ordered)

    matrices: dict[str, Any] = {}
    notes = list(table.notes)
    for key, source in table.matrices.items():
        if key.startswith("obsp/") or key == "raw/X":
            notes.append(f"{key} is left out: it belongs to the unfiltered cells")
            continue
        kept = rows(source)
        by_gene = key == "X" or key.startswith("layers/")
        matrices[key] = ColumnsSource(kept, genes_file, len(genes)) if by_gene else kept
    small = {}
    for key, value in table.small.items():
        if key.startswith("varm/") and not hasattr(value, "iloc"):
            small[key] = np.asarray(value)[genes]
        else:
            notes.append(f"{key} is left out: it belongs to the unfiltered genes")
    return Table(
        table.place,
        rows(table.names),
        table.var.iloc[genes],
        {name: column(old) for name, old in table.obs.items()},
        matrices,
        small=small,
        uns=table.uns,
        notes=notes,
    )


def filter(
    data: Path | str,
    out: Path | str,
    *,
    min_counts: float = 50,
    min_genes: int = 50,
    max_counts: float = math.inf,
    min_cells: int = 1,
    client: Any = None,
    block_length: int | None = None,
    progress: bool | None = None,
) -> Path:
    """Copy the cells and genes that pass to a new store.

    Cells are judged first; genes are then counted over the cells that stay. The defaults for
    cells are those of the Crescendo paper.

    Parameters
    ----------
    data
        Path of a store with counts in ``X``.
    out
        Path of the new store. Everything of `data` comes along, rows and columns chosen, but
        ``obsp``, ``varp`` and ``raw``, which are named in ``uns["stdist"]``.
    min_counts, min_genes, max_counts
        Least counts, least number of expressed genes, and most counts of a cell.
    min_cells
        Least number of cells, of those that stay, that express a gene.
    client, block_length, progress
        As in `stdist.tl.crescendo`.

    Returns
    -------
    Path
        The new store.

    Raises
    ------
    InputError
        If nothing passes, or the output exists or touches the input.

    Examples
    --------
    >>> filter("cohort.zarr", "filtered.zarr", min_counts=100)  # doctest: +SKIP
    """
    source, target = Store(data), Path(out).absolute()
    inputs = [str(Path(data).resolve())]
    check_output(Program("filter", (), {"inputs": inputs}, target, creates=True))
    refuse_unfinished(target)
    counts = source.element("X")
    limits = {"min_counts": min_counts, "min_genes": min_genes, "max_counts": max_counts}
    scan = Reduce(
        "scan",
        scan_tile,
        {"counts": counts},
        options={"limits": limits},
        combine=by_name(kept=append, max=np.maximum, row_entries=np.maximum),
        workspace=TileWorkspace(24 * source.n_vars),
        partial_bytes=source.n_obs + 8 * source.n_vars,
    )
    scratch = scratch_path(target)
    with executor_for(client, source.n_obs) as executor:
        found = run_in_memory(
            Program("scan", (scan,), results=_scanned), executor, block_length=block_length
        )
        genes = np.flatnonzero(found["cells"] >= min_cells)
        rows = np.flatnonzero(found["kept"])
        if not len(rows) or not len(genes):
            raise InputError(
                "nothing-passes",
                f"{len(rows)} of {source.n_obs} cells and {len(genes)} of {source.n_vars} genes "
                "pass the filter",
                place=str(data),
                remedy="use lower limits; `stdist run qc` shows counts and genes per cell",
            )
        maximum = int(found["max"])
        program = filter_program(
            inputs=inputs,
            output=str(target),
            rows_file=save_numbers(scratch, rows),
            genes_file=save_numbers(scratch, genes),
            kind="csr" if is_csr(counts) else "dense",
            dtype=counts_dtype(maximum).name,
            max=maximum,
            nnz=int(found["nnz"]),
            row_entries=int(found["row_entries"]),
        )
        start(program, executor, block_length=block_length, progress=choose_progress(progress))
    return target


def _scanned(values: Any) -> dict[str, Any]:
    return dict(values["scan"])
