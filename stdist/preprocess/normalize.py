"""Scale cells to a common depth, and take logarithms."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from stdist.graph import Map, Program, Reduce
from stdist.kernels.moments import row_sums
from stdist.methods.data import Data, StoreData, open_data
from stdist.methods.run import run_program
from stdist.preprocess.bound import layer_like, recorded, tile_workspace


def depth_table(rows: tuple[int, int], *, counts: Any) -> dict[str, np.ndarray]:
    """Distinct depths of the cells and how many cells have each."""
    depth = row_sums(counts)
    value, cells = np.unique(depth[depth > 0], return_counts=True)
    return {"depth": value, "cells": cells}


def merge_tables(left: Any, right: Any) -> dict[str, np.ndarray]:
    """Merge two tables of depths."""
    both = np.concatenate([left["depth"], right["depth"]])
    value, inverse = np.unique(both, return_inverse=True)
    cells = np.bincount(
        inverse, np.concatenate([left["cells"], right["cells"]]), minlength=len(value)
    )
    return {"depth": value, "cells": cells.astype(np.int64)}


def median_depth(total: Any, *, target_sum: float | None) -> dict[str, np.ndarray]:
    """Exact median over cells that have counts, or the given target."""
    if target_sum is not None or not len(total["depth"]):
        return {"target": np.float64(target_sum or 1.0)}
    last = np.cumsum(total["cells"])
    middle = np.searchsorted(last, [(last[-1] - 1) // 2, last[-1] // 2], side="right")
    return {"target": np.float64(total["depth"][middle].mean())}


def normalize_tile(
    rows: tuple[int, int], *, counts: Any, depth: dict[str, np.ndarray], log1p: bool
) -> dict[str, Any]:
    """Scale each cell to the target; cells without counts stay so."""
    total = row_sums(counts)
    counted = total > 0
    factor = np.where(counted, depth["target"] / np.where(counted, total, 1.0), 0.0)
    if sparse.issparse(counts):
        scaled = sparse.diags(factor) @ counts.astype(np.float64)
        data = np.log1p(scaled.data) if log1p else scaled.data
        parts = (data.astype(np.float32), scaled.indices, scaled.indptr)
        return {"normalized": sparse.csr_matrix(parts, shape=scaled.shape)}
    dense = counts * factor[:, None]
    return {"normalized": (np.log1p(dense) if log1p else dense).astype(np.float32)}


def log_tile(rows: tuple[int, int], *, values: Any) -> dict[str, Any]:
    """Natural logarithm of one plus the values."""
    if sparse.issparse(values):
        logged = np.log1p(values.data.astype(np.float64)).astype(np.float32)
        parts = (logged, values.indices, values.indptr)
        return {"logged": sparse.csr_matrix(parts, shape=values.shape)}
    return {"logged": np.log1p(values.astype(np.float64)).astype(np.float32)}


def normalize_program(
    data: Data | str,
    layer: str | None = None,
    target_sum: float | None = None,
    log1p: bool = False,
    key_added: str = "normalized",
) -> Program:
    """Bind the normalisation to data."""
    data = StoreData(data) if isinstance(data, str) else data
    counts = data.matrix(layer)
    reads = {"counts": counts}
    parameters = recorded(
        data, layer=layer, target_sum=target_sum, log1p=log1p, key_added=key_added
    )
    stages = (
        Reduce(
            "depth",
            depth_table,
            reads,
            combine=merge_tables,
            finalize=partial(median_depth, target_sum=target_sum),
            workspace=tile_workspace(data.n_vars, 1),
            partial_bytes=2**21,
            on_device=True,
        ),
        Map(
            "normalize",
            normalize_tile,
            reads,
            ("depth",),
            {"log1p": log1p},
            workspace=tile_workspace(data.n_vars),
            on_device=True,
            writes={"normalized": layer_like(counts, key_added, data.n_vars)},
        ),
    )
    results = partial(_normalize_results, key=key_added, log1p=log1p)
    return Program(
        "normalize_total",
        stages,
        parameters,
        data.path,
        results=results,
        result_keys=(f"uns/{key_added}",),
    )


def _normalize_results(values: Any, key: str, log1p: bool) -> dict[str, Any]:
    target = float(values["depth"]["target"])
    return {f"uns/{key}": {"params": {"target_sum": target, "log1p": log1p}}}


def log1p_program(data: Data | str, layer: str | None = None, key_added: str = "log1p") -> Program:
    """Bind the logarithm to data."""
    data = StoreData(data) if isinstance(data, str) else data
    values = data.matrix(layer)
    stage = Map(
        "log1p",
        log_tile,
        {"values": values},
        workspace=tile_workspace(data.n_vars),
        on_device=True,
        writes={"logged": layer_like(values, key_added, data.n_vars)},
    )
    return Program("log1p", (stage,), recorded(data, layer=layer, key_added=key_added), data.path)


def normalize_total(
    data: Any,
    *,
    layer: str | None = None,
    target_sum: float | None = None,
    log1p: bool = False,
    key_added: str = "normalized",
    client: Any = None,
    **options: Any,
) -> Path | None:
    """Scale every cell to the same total, by default the median total of cells with counts.

    Parameters
    ----------
    data
        Path of a store, or an AnnData (changed in place).
    layer
        Layer with counts; default ``X``.
    target_sum
        Total after scaling; default: the median, computed exactly.
    log1p
        Also take ``log(1 + x)``, in the same pass.
    key_added
        Name of the new float32 layer (``X`` is never overwritten).
    client
        `distributed.Client`; default as in `stdist.tl.crescendo`.
    **options
        ``block_length``, ``overwrite``, ``progress``.

    Returns
    -------
    Path or None
        Folder of the run record, for a store.

    Examples
    --------
    >>> import anndata
    >>> adata = anndata.AnnData(np.array([[1.0, 1.0], [2.0, 4.0]]))
    >>> normalize_total(adata)
    >>> adata.layers["normalized"].sum(axis=1).tolist()
    [4.0, 4.0]
    """
    opened = open_data(data)
    program = normalize_program(opened, layer, target_sum, log1p, key_added)
    return run_program(program, opened, client=client, **options)


def log1p(
    data: Any,
    *,
    layer: str | None = None,
    key_added: str = "log1p",
    client: Any = None,
    **options: Any,
) -> Path | None:
    """Take ``log(1 + x)`` of a layer into a new float32 layer.

    Parameters are those of `normalize_total`.

    Examples
    --------
    >>> import anndata
    >>> adata = anndata.AnnData(np.array([[0.0, np.e - 1]]))
    >>> log1p(adata)
    >>> adata.layers["log1p"].round(3).tolist()
    [[0.0, 1.0]]
    """
    opened = open_data(data)
    return run_program(log1p_program(opened, layer, key_added), opened, client=client, **options)
