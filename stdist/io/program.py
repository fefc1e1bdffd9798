"""The program that writes a table as a store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from scipy import sparse

from stdist.graph import Map, Program
from stdist.io.derived import is_sparse, row_entries
from stdist.io.table import Table
from stdist.store import Output, Source
from stdist.store.encoding import write_element


def cast_rows(rows: tuple[int, int], *, block: Any, dtype: str, csr: bool) -> dict[str, Any]:
    """Bring one block into the dtype and the kind of its output."""
    if csr:
        matrix = sparse.csr_matrix(block).astype(dtype)
        matrix.sum_duplicates()
        matrix.eliminate_zeros()
        return {"block": matrix}
    dense = block.astype(dtype).toarray() if sparse.issparse(block) else block
    return {"block": np.ascontiguousarray(dense, dtype=dtype)}


def copy_columns(rows: tuple[int, int], **columns: np.ndarray) -> dict[str, np.ndarray]:
    """Pass the rows of columns on."""
    return columns


def matrix_stage(key: str, source: Source, output: Output) -> Map:
    """Stage that writes one matrix."""
    csr = output.kind == "csr"
    width = int(np.prod(output.columns, dtype=np.int64))
    if is_sparse(source):
        row_bytes = 16 * row_entries(source)
    elif csr:  # where the entries are, their coordinates, values, and these in order
        row_bytes = width + 32 * (width if output.row_entries is None else output.row_entries)
    else:
        row_bytes = width * np.dtype(output.dtype).itemsize
    return Map(
        key,
        cast_rows,
        {"block": source},
        writes={"block": output},
        options={"dtype": output.dtype, "csr": csr},
        workspace=partial(_cast_workspace, row_bytes),
        whole_blocks=True,
    )


def _cast_workspace(row_bytes: int, rows: int) -> int:
    return rows * row_bytes


def kept_dtype(source: Any) -> np.dtype:
    """Floats become float32, or stay in ``obsm``; integers and booleans stay."""
    dtype = np.dtype(source.dtype)
    return np.dtype(np.float32) if dtype.kind == "f" else dtype


def layer_output(key: str, source: Any) -> Output:
    """Output of a matrix that is copied."""
    dtype = np.dtype(source.dtype)
    if not key.startswith("obsm/") or dtype == np.float16:
        dtype = kept_dtype(source)
    csr = is_sparse(source)
    return Output(
        key,
        tuple(map(int, source.shape[1:])),
        dtype.name,
        "csr" if csr else "dense",
        row_entries=row_entries(source) if csr else None,
    )


def obs_stage(table: Table) -> Map:
    """Stage that writes cell names and all columns of ``obs``."""
    reads: dict[str, Source] = {"names": table.names}
    writes = {"names": Output("obs/_index", (), "str")}
    for number, (name, column) in enumerate(table.obs.items()):
        key, kind = f"obs/{name}", column.kind
        output = Output(key, (), column.dtype)
        if kind == "categorical":
            output = Output(
                key, (), column.dtype, kind, categories=column.categories, ordered=column.ordered
            )
        elif column.mask is not None:
            output = Output(key, (), column.dtype, "nullable")
            reads[f"mask{number}"] = column.mask
            writes[f"mask{number}"] = Output(key, (), "bool", "mask")
        reads[f"column{number}"], writes[f"column{number}"] = column.values, output
    return Map("obs", copy_columns, reads, writes=writes, whole_blocks=True)


@dataclass(frozen=True)
class SmallParts:
    """What is written at the end: genes, gene matrices, ``uns``."""

    elements: Mapping[str, Any]

    def __call__(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the elements by key."""
        return self.elements


def small_parts(table: Table, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Collect the small elements, leaving out (and noting) what has no encoding."""
    elements: dict[str, Any] = {"var": table.var}
    notes = list(table.notes)
    uns = {f"uns/{name}": value for name, value in table.uns.items()}
    for key, value in (table.small | uns).items():
        kept = _encodable(value, key, notes)
        if kept is not None:
            elements[key] = kept
    facts = {**facts, "notes": np.asarray(notes, dtype=object)}
    return elements | {"uns/stdist": {"convert": facts}}


def _encodable(value: Any, key: str, notes: list[str]) -> Any:
    """Return what of a value can be written in AnnData's encoding."""
    if isinstance(value, Mapping) and not hasattr(value, "data_vars"):  # a Dataset is one too
        items = {
            str(name): _encodable(item, f"{key}/{name}", notes) for name, item in value.items()
        }
        return {name: item for name, item in items.items() if item is not None}
    try:
        write_element(zarr.group(zarr.storage.MemoryStore(), zarr_format=3), "value", value)
    except (TypeError, ValueError, AttributeError) as error:
        notes.append(f"{key} is left out: {type(value).__name__} cannot be encoded ({error})")
        return None
    return value


def table_program(
    table: Table,
    counts: Source,
    output: Path,
    parameters: Mapping[str, Any],
    *,
    name: str = "convert",
) -> Program:
    """Bind a table to a store; `parameters` rebuild the program and say how counts are stored."""
    csr, cells, genes = parameters["kind"] == "csr", table.n_obs, table.n_vars
    density = parameters["nnz"] / (cells * genes)
    attributes = {name: parameters[name] for name in ("max", "nnz")} | {"density": density}
    matrix = Output(
        "X",
        (genes,),
        parameters["dtype"],
        parameters["kind"],
        attributes=attributes,
        row_entries=parameters["row_entries"] if csr else None,
    )
    stages = [obs_stage(table), matrix_stage("X", counts, matrix)]
    for key, source in table.matrices.items():
        stages.append(matrix_stage(key, source, layer_output(key, source)))
    named = ("inputs", "counts", "batch_names", "index_unique", "gene_names")
    facts = {key: parameters.get(key) for key in named} | attributes
    for key in ("inputs", "batch_names"):
        facts[key] = np.asarray(facts[key] or [], dtype=object)
    results = SmallParts(small_parts(table, facts))
    return Program(name, tuple(stages), parameters, output, creates=True, results=results)
