"""Join several tables: shared genes, shared columns, a batch name for each input."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stdist.io.derived import (
    ColumnsSource,
    ConcatSource,
    ConstantSource,
    LabelSource,
    RecodeSource,
    SuffixSource,
    save_numbers,
)
from stdist.io.table import Column, Table
from stdist.store import InputError, Source


def concat(
    tables: Sequence[Table],
    batch_names: Sequence[str],
    *,
    batch_key: str,
    index_unique: str | None,
    scratch: Path,
) -> Table:
    """Join tables by rows.

    Genes are those that all tables have, in the order of the first. Elements and columns that
    some table lacks are left out; of ``uns``, what does not differ is kept. Each is noted.

    Raises
    ------
    InputError
        ``genes-disjoint``, ``batch-key-taken``, ``batch-names``.
    """
    check_batches(tables, batch_names, batch_key)
    genes, columns = _shared_genes(tables)
    notes = [note for table in tables for note in table.notes]
    for table, name in zip(tables, batch_names, strict=True):
        if table.n_vars > len(genes):
            dropped = table.n_vars - len(genes)
            notes.append(f"{dropped} of {table.n_vars} genes of {name!r} are not in all inputs")

    def chosen(source: Source, number: int) -> Source:
        wanted = columns[number]
        if wanted is None:
            return source
        return ColumnsSource(source, save_numbers(scratch, wanted), len(genes))

    names = [
        SuffixSource(table.names, f"{index_unique}{name}") if index_unique else table.names
        for table, name in zip(tables, batch_names, strict=True)
    ]
    joined = Table(
        ", ".join(table.place for table in tables),
        ConcatSource(tuple(names)),
        _join_var(tables, genes, notes),
        _join_obs(tables, notes) | {batch_key: batch_column(tables, batch_names)},
        uns=merge_unique([table.uns for table in tables]),
        notes=notes,
    )
    for key in _shared([table.matrices for table in tables], "element", notes):
        if key.startswith("obsp/") or key == "raw/X":
            notes.append(f"{key} is left out: it cannot be joined")
            continue
        parts = [table.matrices[key] for table in tables]
        if key == "X" or key.startswith("layers/"):
            parts = [chosen(part, number) for number, part in enumerate(parts)]
        if len({part.shape[1:] for part in parts}) > 1:
            notes.append(f"{key} is left out: its number of columns differs between inputs")
            continue
        joined.matrices[key] = ConcatSource(tuple(parts))
    notes += [f"{key} is left out: it belongs to one input" for t in tables for key in t.small]
    if lost := sorted(set().union(*(table.uns for table in tables)) - set(joined.uns)):
        notes.append(f"uns entries that differ between inputs are left out: {', '.join(lost)}")
    return joined


def check_batches(tables: Sequence[Table], batch_names: Sequence[str], batch_key: str) -> None:
    """Check the batch names and that no input has a column of the batch key already."""
    twice = [name for name, times in Counter(batch_names).items() if times > 1]
    if len(batch_names) != len(tables) or twice or not all(batch_names):
        raise InputError(
            "batch-names",
            f"batch name {twice[0]!r} occurs twice"
            if twice
            else f"{len(batch_names)} batch names for {len(tables)} inputs",
            place=", ".join(table.place for table in tables),
            remedy="give one name for each input, all different (batch_names)",
        )
    for table in tables:
        if batch_key in table.obs:
            raise InputError(
                "batch-key-taken",
                f"obs has a column {batch_key!r} already",
                place=table.place,
                remedy="choose another batch_key",
            )


def batch_column(tables: Sequence[Table], batch_names: Sequence[str]) -> Column:
    """Name the input of each cell."""
    dtype = _codes_dtype(len(batch_names))
    parts = [ConstantSource(table.n_obs, code, dtype) for code, table in enumerate(tables)]
    source = parts[0] if len(parts) == 1 else ConcatSource(tuple(parts))
    return Column("categorical", source, categories=tuple(batch_names))


def _codes_dtype(n_categories: int) -> str:
    return np.min_scalar_type(-max(1, n_categories)).name


def _shared_genes(tables: Sequence[Table]) -> tuple[pd.Index, list[np.ndarray | None]]:
    genes = tables[0].var.index
    for table in tables[1:]:
        genes = genes[genes.isin(table.var.index)]
    if not len(genes):
        examples = "; ".join(f"{t.place}: {', '.join(t.var.index[:3])}" for t in tables[:3])
        raise InputError(
            "genes-disjoint",
            "no gene is in all inputs",
            place=examples,
            remedy="use the same kind of gene name in all inputs (gene_names='ids' for 10x files)",
        )
    numbers = [table.var.index.get_indexer(genes) for table in tables]
    return genes, [
        None if len(n) == t.n_vars and np.array_equal(n, np.arange(t.n_vars)) else n
        for n, t in zip(numbers, tables, strict=True)
    ]


def _shared(parts: Sequence[Mapping[str, Any]], kind: str, notes: list[str]) -> list[str]:
    """Keys that all mappings have, in the order of the first; the others are noted."""
    everywhere = [key for key in parts[0] if all(key in part for part in parts)]
    keys = dict.fromkeys(key for part in parts for key in part)
    notes += [
        f"{kind} {key} is left out: not in all inputs" for key in keys if key not in everywhere
    ]
    return everywhere


def _join_var(tables: Sequence[Table], genes: pd.Index, notes: list[str]) -> pd.DataFrame:
    frames = [table.var.loc[genes] for table in tables]
    same = []
    for name in _shared(frames, "var column", notes):
        if all(
            frame[name].astype(object).equals(frames[0][name].astype(object)) for frame in frames
        ):
            same.append(name)
        else:
            notes.append(f"var column {name} is left out: it differs between inputs")
    return frames[0][same]


def _join_obs(tables: Sequence[Table], notes: list[str]) -> dict[str, Column]:
    joined = {}
    for name in _shared([table.obs for table in tables], "obs column", notes):
        column = _join_column([table.obs[name] for table in tables])
        if column is None:
            notes.append(f"obs column {name} is left out: its kind differs between inputs")
        else:
            joined[name] = column
    return joined


def _join_column(columns: list[Column]) -> Column | None:
    kinds = {column.kind for column in columns}
    if kinds == {"categorical"}:
        return _join_categories(columns)
    if kinds == {"categorical", "string"}:
        columns = [
            Column("string", LabelSource(column.values, column.categories))
            if column.kind == "categorical"
            else column
            for column in columns
        ]
        kinds = {"string"}
    strings = {column.dtype == "str" for column in columns}
    if "categorical" in kinds or len(strings) > 1:
        return None
    values = ConcatSource(tuple(column.values for column in columns))
    if "nullable" not in kinds:
        return Column(columns[0].kind, values)
    if values.dtype.kind not in "biuO":
        return None  # there is no nullable float
    masks = [column.mask or ConstantSource(column.values.shape[0], 0, "bool") for column in columns]
    return Column("nullable", values, ConcatSource(tuple(masks)))


def _join_categories(columns: list[Column]) -> Column:
    first = columns[0]
    if len({type(label) for column in columns for label in column.categories}) > 1:
        labels = [tuple(map(str, column.categories)) for column in columns]
    else:
        labels = [column.categories for column in columns]
    united = tuple(dict.fromkeys(label for part in labels for label in part))
    number = {label: code for code, label in enumerate(united)}
    dtype = _codes_dtype(len(united))
    parts = [
        RecodeSource(column.values, tuple(number[label] for label in part), dtype)
        for column, part in zip(columns, labels, strict=True)
    ]
    ordered = all(c.ordered and c.categories == first.categories for c in columns)
    return Column("categorical", ConcatSource(tuple(parts)), categories=united, ordered=ordered)


def merge_unique(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge nested mappings, keeping the entries that have one value in all that have them."""
    merged = {}
    for key in dict.fromkeys(key for part in parts for key in part):
        values = [part[key] for part in parts if key in part]
        if all(isinstance(v, Mapping) and not hasattr(v, "data_vars") for v in values):
            merged[key] = merge_unique(values)
        elif all(_equal(value, values[0]) for value in values[1:]):
            merged[key] = values[0]
    return merged


def _equal(left: Any, right: Any) -> bool:
    if type(left) is not type(right):
        return False
    if hasattr(left, "equals"):
        return bool(left.equals(right))
    if hasattr(left, "tocoo"):
        return left.shape == right.shape and not (left != right).nnz
    return bool(np.array_equal(left, right))
