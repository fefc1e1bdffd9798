"""Quality metrics of cells and genes, under scanpy's names."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from stdist.graph import Map, Program, Reduce
from stdist.kernels.moments import column_sums, row_sums
from stdist.methods.data import Data, StoreData, open_data
from stdist.methods.run import run_program
from stdist.preprocess.bound import recorded, tile_workspace
from stdist.store import Output

GENE_COLUMNS = (
    "n_cells_by_counts",
    "mean_counts",
    "log1p_mean_counts",
    "pct_dropout_by_counts",
    "total_counts",
    "log1p_total_counts",
)


def cell_metrics(rows: tuple[int, int], *, counts: Any) -> dict[str, np.ndarray]:
    """Total counts and number of expressed genes of each cell."""
    total = row_sums(counts)
    expressed = row_sums(counts != 0).astype(np.int64)
    return {
        "total": total,
        "log_total": np.log1p(total),
        "genes": expressed,
        "log_genes": np.log1p(expressed.astype(np.float64)),
    }


def gene_sums(rows: tuple[int, int], *, counts: Any) -> dict[str, np.ndarray]:
    """Total counts and number of expressing cells of each gene."""
    cells = counts.getnnz(axis=0) if sparse.issparse(counts) else (counts != 0).sum(axis=0)
    return {
        "total": column_sums(counts),
        "cells": cells.astype(np.int64),
        "n": np.int64(counts.shape[0]),
    }


def gene_metrics(values: Any, names: np.ndarray) -> dict[str, Any]:
    """Columns of ``var``."""
    sums = values["genes"]
    mean = sums["total"] / sums["n"]
    columns = {
        "n_cells_by_counts": sums["cells"],
        "mean_counts": mean,
        "log1p_mean_counts": np.log1p(mean),
        "pct_dropout_by_counts": 100.0 * (1.0 - sums["cells"] / sums["n"]),
        "total_counts": sums["total"],
        "log1p_total_counts": np.log1p(sums["total"]),
    }
    return {f"var/{name}": pd.Series(columns[name], index=names) for name in GENE_COLUMNS}


def qc_program(data: Data | str, layer: str | None = None) -> Program:
    """Bind the metrics to data."""
    data = StoreData(data) if isinstance(data, str) else data
    reads = {"counts": data.matrix(layer)}
    stages = (
        Reduce(
            "genes",
            gene_sums,
            reads,
            workspace=tile_workspace(data.n_vars, 1),
            partial_bytes=24 * data.n_vars,
            on_device=True,
        ),
        Map(
            "cells",
            cell_metrics,
            reads,
            workspace=tile_workspace(data.n_vars, 1),
            on_device=True,
            writes={
                "total": Output("obs/total_counts", (), "float64"),
                "log_total": Output("obs/log1p_total_counts", (), "float64"),
                "genes": Output("obs/n_genes_by_counts", (), "int64"),
                "log_genes": Output("obs/log1p_n_genes_by_counts", (), "float64"),
            },
        ),
    )
    results = partial(gene_metrics, names=data.var_names)
    return Program(
        "qc",
        stages,
        recorded(data, layer=layer),
        data.path,
        results=results,
        result_keys=tuple(f"var/{name}" for name in GENE_COLUMNS),
    )


def calculate_qc_metrics(
    data: Any, *, layer: str | None = None, client: Any = None, **options: Any
) -> Path | None:
    """Add quality metrics to ``obs`` and ``var``, as `scanpy.pp.calculate_qc_metrics` does.

    Parameters
    ----------
    data
        Path of a store, or an AnnData (changed in place).
    layer
        Layer with counts; default ``X``.
    client
        `distributed.Client`; default as in `stdist.tl.crescendo`.
    **options
        ``block_length``, ``overwrite``, ``progress``.

    Returns
    -------
    Path or None
        Folder of the run record, for a store. ``obs`` gains ``total_counts``,
        ``n_genes_by_counts`` and their ``log1p_``; ``var`` gains ``n_cells_by_counts``,
        ``mean_counts``, ``total_counts``, ``pct_dropout_by_counts`` and the ``log1p_`` of means
        and totals.

    Examples
    --------
    >>> import anndata
    >>> adata = anndata.AnnData(np.array([[1.0, 0.0], [2.0, 3.0]]))
    >>> calculate_qc_metrics(adata)
    >>> adata.obs["total_counts"].tolist()
    [1.0, 5.0]
    """
    opened = open_data(data)
    return run_program(qc_program(opened, layer), opened, client=client, **options)
