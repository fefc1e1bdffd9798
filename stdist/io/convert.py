"""Convert files of other formats, or an AnnData object, to a store."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stdist.cluster import active_client
from stdist.graph import (
    Cluster,
    InProcess,
    Program,
    check_output,
    refuse_unfinished,
    start,
    unfinished,
)
from stdist.graph.executors import Executor
from stdist.graph.progress import Progress
from stdist.io.checks import scan_counts
from stdist.io.inputs import open_inputs, take_counts
from stdist.io.memory import open_memory
from stdist.io.program import table_program
from stdist.io.table import Table
from stdist.store import TILE_ROWS, InputError, Source, Store
from stdist.store.layout import counts_dtype, prefer_dense
from stdist.store.staging import scratch_path

AnyPath = Path | str


def convert(
    inputs: AnyPath | Sequence[AnyPath],
    output: AnyPath,
    *,
    counts: str = "X",
    batch_names: Sequence[str] | None = None,
    batch_key: str = "batch",
    index_unique: str | None = None,
    gene_names: str = "symbols",
    kind: str | None = None,
    client: Any = None,
    block_length: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Convert one or several files to a store, in memory bounded by the block.

    Reads ``.h5ad``, AnnData zarr (v2, v3), 10x ``.h5`` and 10x mtx folders. All counts and names
    are checked in a first pass; nothing is written if a check fails. What an input holds that the
    store cannot is listed by `notes`.

    Parameters
    ----------
    inputs
        Files or folders. Several are joined by rows, on the genes that all have.
    output
        Folder of the new store.
    counts
        Element that holds the raw counts: ``"X"``, ``"layers/NAME"`` or ``"raw"``. It becomes
        ``X``; an ``X`` that is not the counts is kept as ``layers/X``.
    batch_names
        One name per input (default: file names without suffix).
    batch_key
        Column of ``obs`` for the batch names; added for several inputs, or with `batch_names`.
    index_unique
        Appended to cell names, followed by the batch name, e.g. ``"-"``.
    gene_names
        Of 10x inputs: ``"symbols"`` or ``"ids"``.
    kind
        ``"dense"`` or ``"csr"`` storage of the counts (default: by density and gene number).
    client
        `dask.distributed.Client` or executor; default: the active client, else this process.
    block_length
        Rows per block (default: from the memory of the workers).
    progress
        Shows the progress; see `stdist.graph.choose_progress`.

    Returns
    -------
    Path
        The store: ``X`` unsigned integers ``(n_obs, n_vars)``.

    Raises
    ------
    InputError
        If an input is missing, foreign, truncated or inconsistent, if its counts are not counts,
        if names are duplicated, or if the output exists or touches an input.
    PlanRefused
        If not even the smallest block fits the workers.

    Examples
    --------
    >>> convert(["a.h5ad", "b/"], "cohort.zarr", batch_names=["a", "b"])  # doctest: +SKIP
    PosixPath('/data/cohort.zarr')
    """
    given = [inputs] if isinstance(inputs, (str, Path)) else inputs
    paths = [Path(path) for path in given]
    if batch_names is None and len(paths) > 1:
        batch_names = [_stem(path) for path in paths]
    options: dict[str, Any] = {
        "inputs": [str(path.resolve()) for path in paths],
        "counts": counts,
        "batch_names": None if batch_names is None else list(batch_names),
        "batch_key": batch_key,
        "index_unique": index_unique,
        "gene_names": gene_names,
    }
    with _Target(Path(output), options["inputs"]) as target:
        table, source = open_inputs(output=target, **options)
        return _convert(table, source, target, options, kind, client, block_length, progress)


def write(
    adata: Any,
    output: AnyPath,
    *,
    counts: str = "X",
    kind: str | None = None,
    block_length: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write an AnnData object as a store, with the checks of `convert`.

    Its arrays may be Dask arrays (as `stdist.io.open` returns them): they are computed block by
    block in this process. An interrupted write cannot be resumed.

    Parameters
    ----------
    adata
        The object, ``(n_obs, n_vars)``.
    output, counts, kind, block_length, progress
        As in `convert`.

    Returns
    -------
    Path
        The store.

    Raises
    ------
    InputError
        As `convert`.

    Examples
    --------
    >>> write(adata, "cohort.zarr")  # doctest: +SKIP
    PosixPath('/data/cohort.zarr')
    """
    with _Target(Path(output), []) as target:
        table = open_memory(adata).check()
        source = take_counts(table, counts)
        options = {"inputs": [], "counts": counts}
        return _convert(table, source, target, options, kind, InProcess(), block_length, progress)


def convert_program(
    *,
    inputs: Sequence[str],
    output: str,
    counts: str = "X",
    batch_names: Sequence[str] | None = None,
    batch_key: str = "batch",
    index_unique: str | None = None,
    gene_names: str = "symbols",
    **stored: Any,
) -> Program:
    """Build the program ``"convert"`` again from the parameters of its run, to resume it.

    `stored` (kind, dtype, max, nnz, row_entries) says how counts are stored: what the first pass
    found.

    Raises
    ------
    InputError
        If the run wrote an object in memory, or an input changed or is gone.
    """
    if not inputs:
        raise InputError(
            "input-memory",
            "the run wrote an AnnData object in memory, which is gone",
            place=output,
            remedy=f"`stdist resume {output} --discard`, then write the object again",
        )
    options: dict[str, Any] = {
        "inputs": list(inputs),
        "counts": counts,
        "batch_names": batch_names,
        "batch_key": batch_key,
        "index_unique": index_unique,
        "gene_names": gene_names,
    }
    table, source = open_inputs(output=Path(output), **options)
    return table_program(table, source, Path(output), {**options, "output": output, **stored})


def notes(store: AnyPath) -> list[str]:
    """Return what a conversion left out of a store, and why; one sentence each.

    Parameters
    ----------
    store
        Folder of a store made by `convert` or `write`.

    Returns
    -------
    list of str
        Empty if nothing was left out.

    Raises
    ------
    InputError
        If `store` is no store.

    Examples
    --------
    >>> notes("cohort.zarr")  # doctest: +SKIP
    []
    """
    opened = Store(store)
    if not opened.has("uns/stdist"):
        return []
    return [str(note) for note in opened.uns("stdist")["convert"]["notes"]]


class _Target:
    """The output path, checked first; after an error no scratch of ours is left beside it."""

    def __init__(self, output: Path, inputs: Sequence[str]) -> None:
        self.output, self.inputs = output, inputs

    def __enter__(self) -> Path:
        target = Path(self.output).absolute()
        check_output(Program("convert", (), {"inputs": self.inputs}, target, creates=True))
        refuse_unfinished(target)
        self.target = target
        shutil.rmtree(scratch_path(target), ignore_errors=True)  # of a run that was discarded
        return target

    def __exit__(self, *_: object) -> None:
        if not unfinished(self.target):
            shutil.rmtree(scratch_path(self.target), ignore_errors=True)


def _stem(path: Path) -> str:
    name = path.resolve().name
    for suffix in (".gz", ".h5ad", ".h5", ".zarr"):
        name = name.removesuffix(suffix)
    return name


def _convert(
    table: Table,
    source: Source,
    target: Path,
    options: Mapping[str, Any],
    kind: str | None,
    client: Any,
    block_length: int | None,
    progress: Progress | None,
) -> Path:
    """Check the counts, decide how they are stored, and run the program."""
    if kind not in (None, "dense", "csr"):
        raise InputError("kind", f"no kind {kind!r}", place="kind", remedy="use 'dense' or 'csr'")
    executor = _executor(client)
    try:
        found = scan_counts(table, source, executor, block_length=block_length, progress=progress)
    except BaseException:
        if progress is not None:
            progress.close()
        raise
    maximum, nnz = int(found["max"]), int(found["nnz"])
    dense = prefer_dense(table.n_vars, nnz / (table.n_obs * table.n_vars))
    empty_genes = int(np.count_nonzero(found["genes"] == 0))
    for number, things in ((int(found["empty_cells"]), "cells"), (empty_genes, "genes")):
        if number:
            table.notes.append(f"{number} {things} have no counts")
    stored = {
        "kind": kind or ("dense" if dense else "csr"),
        "dtype": counts_dtype(maximum).name,
        "max": maximum,
        "nnz": nnz,
        "row_entries": math.ceil(int(found["tile_nnz"]) / min(TILE_ROWS, table.n_obs)),
    }
    parameters = {**options, "output": str(target), **stored}
    program = table_program(table, source, target, parameters)
    start(program, executor, block_length=block_length, progress=progress)
    return target


def _executor(client: Any) -> Executor:
    client = client or active_client()
    if client is None:
        return InProcess()
    return client if hasattr(client, "resources") else Cluster(client)
