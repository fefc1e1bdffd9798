"""One pass over the counts before anything is written: are they counts, and what are they like?"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from stdist.graph import Program, Reduce, by_name, make_plan, resources_for, run_in_memory
from stdist.graph.executors import Executor
from stdist.graph.progress import Progress
from stdist.io.derived import is_sparse, row_entries
from stdist.io.table import Table
from stdist.store import InputError, Source

FAULTS = ("nonfinite", "negative", "fractional")
LARGEST = 2**32 - 1
LOOK_ROWS = 1024


def faults(values: np.ndarray) -> dict[str, np.ndarray]:
    """Find the positions, in a flat array, of values that no count can have."""
    kind = values.dtype.kind
    if kind in "ub":
        return {}
    if kind == "i":
        return {"negative": np.flatnonzero(values < 0)}
    finite = np.isfinite(values)
    return {
        "nonfinite": np.flatnonzero(~finite),
        "negative": np.flatnonzero((values < 0) & finite),
        "fractional": np.flatnonzero((values != np.rint(values)) & finite),
    }


def scan_tile(rows: tuple[int, int], *, counts: Any, names: np.ndarray) -> dict[str, Any]:
    """Partial statistic of one tile: sums, extremes, faults and hashes of cell names."""
    start, stop = rows
    if sparse.issparse(counts):
        values = counts.data
        stored = np.repeat(np.arange(stop - start), np.diff(counts.indptr))
        column = counts.indices
    else:
        values, column = counts.ravel(), None
    statistic = {
        f"{fact}_{fault}": value
        for fault in FAULTS
        for fact, value in (("n", np.int64(0)), ("first", np.zeros(3)))
    }
    for fault, found in faults(values).items():
        if len(found):
            at = int(found[0])
            row, gene = divmod(at, counts.shape[1]) if column is None else (stored[at], column[at])
            statistic[f"n_{fault}"] = np.int64(len(found))
            statistic[f"first_{fault}"] = np.asarray([start + row, gene, values[at]], float)
    with np.errstate(invalid="ignore"):
        totals, genes = (
            np.asarray(counts.sum(axis=axis, dtype=np.float64)).ravel() for axis in (1, 0)
        )
    entries = np.int64(np.count_nonzero(values))
    return statistic | {
        "max": np.float64(values.max(initial=0)),
        "nnz": entries,
        "tile_nnz": entries,
        "genes": genes,
        "empty_cells": np.int64(np.count_nonzero(totals == 0)),
        "names": pd.util.hash_array(np.asarray(names, dtype=object), categorize=False),
    }


def _join(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.concatenate([left, right])


combine_scan = by_name(max=np.maximum, tile_nnz=np.maximum, names=_join)


def merge_tiles(left: Mapping[str, Any], right: Mapping[str, Any]) -> dict[str, Any]:
    """Combine two neighbours; of faults the first place is kept."""
    merged = combine_scan(left, right)
    for fault in FAULTS:
        merged[f"first_{fault}"] = (left if left[f"n_{fault}"] else right)[f"first_{fault}"]
    return merged


def _scan_value(values: Mapping[str, Any]) -> dict[str, Any]:
    return dict(values["check"])


def scan_counts(
    table: Table,
    counts: Source,
    executor: Executor,
    *,
    block_length: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Read all counts and cell names once and return what the conversion must know.

    Returns
    -------
    dict
        ``max``, ``nnz``, ``tile_nnz`` (entries of the densest tile), ``genes`` (sums, ``(n_vars,)``
        float64), ``empty_cells``.

    Raises
    ------
    InputError
        ``counts-nonfinite``, ``counts-negative``, ``counts-fractional``, ``counts-overflow`` or
        ``cells-duplicated``, naming the first cell and gene and the number of others.
    """
    # the tree ends in one task that joins the hashes of all names, of 8 bytes each
    partial_bytes = 8 * table.n_vars + 4 * table.n_obs
    stage = Reduce(
        "check",
        scan_tile,
        {"counts": counts, "names": table.names},
        combine=merge_tiles,
        workspace=partial(_scan_workspace, table.n_vars, counts),
        partial_bytes=partial_bytes,
    )
    program = Program("check", (stage,), results=_scan_value)
    plan = make_plan(program, resources_for(program, executor), block_length)
    found = run_in_memory(program, executor, block_length=plan.block_length, progress=progress)
    _refuse_faults(table, counts, found)
    _refuse_duplicates(table, found.pop("names"))
    return found


def _scan_workspace(n_vars: int, counts: Source, rows: int) -> int:
    entries = 32 * row_entries(counts) if is_sparse(counts) else 12 * n_vars
    return rows * entries + 16 * n_vars


def _refuse_faults(table: Table, counts: Source, found: Mapping[str, Any]) -> None:
    for fault in FAULTS:
        times = int(found[f"n_{fault}"])
        if times:
            row, gene, value = found[f"first_{fault}"]
            cell = table.names.read(int(row), int(row) + 1)[0]
            raise InputError(
                f"counts-{fault}",
                f"{times} counts are {_WORDS[fault]}; the first is {value:g}",
                place=f"{table.place}, row {int(row)} (cell {cell!r}), "
                f"gene {table.var.index[int(gene)]!r}",
                remedy=_other_counts(table, counts),
            )
    if found["max"] > LARGEST:
        raise InputError(
            "counts-overflow",
            f"the largest count is {found['max']:g}, above {LARGEST}",
            place=table.place,
            remedy="these are not counts of molecules; choose another element with counts=",
        )


_WORDS = {"nonfinite": "NaN or infinite", "negative": "negative", "fractional": "not whole numbers"}


def _other_counts(table: Table, counts: Source) -> str:
    """Name elements that look like counts in their first rows."""
    keys = [key for key in table.matrices if key in ("X", "raw/X") or key.startswith("layers/")]
    good = []
    for key in keys:
        source = table.matrices[key]
        if source is counts:
            continue
        block = source.read(0, min(LOOK_ROWS, table.n_obs))
        values = block.data if sparse.issparse(block) else block.ravel()
        if not any(len(places) for places in faults(values).values()):
            good.append("raw" if key == "raw/X" else key)
    if good:
        return f"{' or '.join(good)} holds counts: use counts={good[0]!r}"
    return "convert the raw counts, before normalisation or correction"


def _refuse_duplicates(table: Table, hashes: np.ndarray) -> None:
    """Refuse cell names that occur twice: equal 64-bit hashes, confirmed by the names."""
    order = np.argsort(hashes, kind="stable")
    ranked = hashes[order]
    again = np.flatnonzero(ranked[1:] == ranked[:-1])
    n_twice = 0
    shown: list[str] = []
    for position in again:
        rows = [int(order[position]), int(order[position + 1])]
        if len(shown) < 3:
            first, second = (table.names.read(row, row + 1)[0] for row in rows)
            if first != second:
                continue
            shown.append(f"{first!r} (rows {rows[0]} and {rows[1]})")
        n_twice += 1
    if shown:
        raise InputError(
            "cells-duplicated",
            f"{n_twice} cell names occur more than once: {', '.join(shown)}",
            place=table.place,
            remedy="for several inputs use index_unique='-', which appends the batch name; "
            "otherwise rename the cells (adata.obs_names_make_unique())",
        )
