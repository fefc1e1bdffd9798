"""What the figures' passes over the cells share: where they run, and which genes they read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse

from stdist.graph import Program, run_in_memory
from stdist.methods.data import Data
from stdist.metrics.passes import columns_of, executor_of


def run_pass(program: Program, opened: Data, client: Any) -> dict[str, Any]:
    """Run a program that only reads, where its data are; return its results."""
    with executor_of(opened, client) as executor:
        return run_in_memory(program, executor)


def gene_columns(opened: Data, genes: str | Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Names and columns of genes, in the order given.

    Raises
    ------
    InputError
        If there is none, or one is not in the data.
    """
    names = [genes] if isinstance(genes, str) else [str(gene) for gene in genes]
    return names, columns_of(opened, names)


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
