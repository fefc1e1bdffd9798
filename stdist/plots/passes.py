"""What the figures' passes over the cells share: where they run, and which genes they read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from stdist.cluster import executor_for
from stdist.graph import InProcess, Program, run_in_memory
from stdist.methods.data import AnnDataData, Data
from stdist.store import InputError


def run_pass(program: Program, opened: Data, client: Any) -> dict[str, Any]:
    """Run a program that only reads, where its data are; return its results."""
    if isinstance(opened, AnnDataData):
        return run_in_memory(program, InProcess())
    with executor_for(client, opened.n_obs) as executor:
        return run_in_memory(program, executor)


def gene_columns(opened: Data, genes: str | Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Names and columns of genes, in the order given.

    Raises
    ------
    InputError
        If there is none, or one is not in the data.
    """
    names = [genes] if isinstance(genes, str) else [str(gene) for gene in genes]
    columns = pd.Index(opened.var_names).get_indexer(pd.Index(names, dtype=object))
    if not names or (columns < 0).any():
        absent = [name for name, column in zip(names, columns, strict=True) if column < 0]
        known = ", ".join(map(str, opened.var_names[:3]))
        raise InputError(
            "gene-absent",
            f"{len(absent)} genes are not in the data, first {absent[0]!r}"
            if absent
            else "no gene is named",
            place=opened.place,
            remedy=f"var_names has {known}, ... ({opened.n_vars} genes)",
        )
    return names, columns


def layer_reads(opened: Data, layers: Sequence[str | None]) -> dict[str, Any]:
    """Sources of the layers, by the names under which `stacked` finds them."""
    return {f"layer{number}": opened.matrix(layer) for number, layer in enumerate(layers)}


def stacked(layers: dict[str, Any], columns: np.ndarray) -> tuple[np.ndarray, Any]:
    """Depth of the cells in the first layer, and the chosen columns of all layers side by side.

    Returns
    -------
    tuple
        ``(n_cells,)`` float64 and ``(n_cells, n_layers * n_genes)`` float64, dense or CSR.
    """
    parts = [layers[f"layer{number}"] for number in range(len(layers))]
    depth = np.asarray(parts[0].sum(axis=1), dtype=np.float64).ravel()
    chosen = [part[:, columns].astype(np.float64) for part in parts]
    if any(sparse.issparse(part) for part in chosen):
        return depth, sparse.hstack(chosen, format="csr")
    return depth, np.concatenate(chosen, axis=1)


def add_by(codes: np.ndarray, n_codes: int, values: Any) -> np.ndarray:
    """Sum rows of `values` by code, ``(n_codes, n_columns)``; negative codes are left out."""
    kept = np.flatnonzero(codes >= 0)
    shape = (n_codes, len(codes))
    member = sparse.csr_matrix((np.ones(len(kept)), (codes[kept], kept)), shape=shape)
    total = member @ values
    return total.toarray() if sparse.issparse(total) else np.asarray(total)
