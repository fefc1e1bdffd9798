"""One or several inputs as one table, with the counts taken out of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stdist.io.concat import batch_column, check_batches, concat
from stdist.io.formats import open_table
from stdist.io.spill import SpillSource
from stdist.io.table import Table, check_genes
from stdist.store import InputError, Source
from stdist.store.staging import scratch_path


def open_inputs(
    *,
    inputs: Sequence[str],
    output: Path,
    counts: str,
    batch_names: Sequence[str] | None,
    batch_key: str,
    index_unique: str | None,
    gene_names: str,
) -> tuple[Table, Source]:
    """Open all inputs as one table, and take its counts out."""
    scratch = scratch_path(output)
    tables, sources = [], []
    for number, path in enumerate(inputs):
        table = open_table(path, scratch / str(number), gene_names=gene_names)
        sources.append(take_counts(table, counts))
        tables.append(table)
    for table, source in zip(tables, sources, strict=True):
        for part in (source, *table.sources()):
            if isinstance(part, SpillSource):
                part.prepare()
    if len(tables) == 1:
        table, source = tables[0], sources[0]
        if batch_names is not None:
            check_batches(tables, batch_names, batch_key)
            table.obs[batch_key] = batch_column(tables, batch_names)
        return table, source
    for table, source in zip(tables, sources, strict=True):
        table.matrices = {"X": source, **table.matrices}
    joined = concat(
        tables,
        batch_names or [],
        batch_key=batch_key,
        index_unique=index_unique,
        scratch=scratch,
    )
    return joined, joined.matrices.pop("X")


def take_counts(table: Table, counts: str) -> Source:
    """Remove the counts from the matrices of a table; with ``raw`` the genes change too."""
    key = "raw/X" if counts in ("raw", "raw/X") else counts
    known = [k for k in table.matrices if k in ("X", "raw/X") or k.startswith("layers/")]
    if key not in known:
        shown = ", ".join(repr("raw" if k == "raw/X" else k) for k in known) or "none"
        raise InputError(
            "counts-missing",
            f"there is no {counts!r}",
            place=table.place,
            remedy=f"choose the element that holds the counts; there is: {shown}",
        )
    source = table.matrices.pop(key)
    if key == "raw/X":
        assert table.raw_var is not None
        table.var = table.raw_var
        check_genes(table.var.index, table.place)
        for name in [k for k in table.matrices if k == "X" or k.startswith("layers/")]:
            table.notes.append(f"{name} is left out: its genes are not those of raw")
            del table.matrices[name]
        table.notes += [
            f"{name} is left out: its genes are not those of raw" for name in table.small
        ]
        table.small = {}
        return source
    if table.matrices.pop("raw/X", None) is not None:
        table.notes.append("raw is left out: convert it with counts='raw'")
    if "X" in table.matrices:
        name = "layers/X"
        while name in table.matrices:
            name += "_"
        table.matrices[name] = table.matrices.pop("X")
        table.notes.append(f"the input's X is kept as {name}")
    return source
