"""How many highly variable genes a correction keeps."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from stdist.graph import Program, Reduce, run_in_memory
from stdist.kernels.moments import column_moments, dense_rows, merge_moments
from stdist.kernels.variable_genes import most_variable, normalized_dispersions
from stdist.methods.checks import check_counts
from stdist.methods.data import open_data
from stdist.metrics.passes import check_positive, executor_of
from stdist.preprocess.bound import tile_workspace
from stdist.preprocess.normalize import depth_table, median_depth, merge_tables


class HvgConservation(NamedTuple):
    """Overlap of the highly variable genes before and after a correction.

    Attributes
    ----------
    score
        ``|both| / min(n_before, n_after)``.
    genes
        One row per gene: ``dispersion_before``, ``dispersion_after`` (normalised),
        ``variable_before``, ``variable_after``.
    """

    score: float
    genes: pd.DataFrame


def share_moments(rows: tuple[int, int], *, before: Any, after: Any) -> dict[str, Any]:
    """Moments of each gene's share of its cell's counts, and the distinct depths."""
    found: dict[str, Any] = {}
    for when, counts in (("before", before), ("after", after)):
        check_counts(counts, rows)
        dense = dense_rows(counts)
        depth = dense.sum(axis=1, keepdims=True)
        share = np.divide(dense, depth, out=np.zeros_like(dense), where=depth > 0)
        parts = column_moments(share) | depth_table(rows, counts=counts)
        found |= {f"{when}_{name}": value for name, value in parts.items()}
    return found


def merge(left: Any, right: Any) -> dict[str, Any]:
    """Merge moments and depths of two neighbours."""
    found: dict[str, Any] = {}
    for when in ("before", "after"):
        sides = [
            {name.removeprefix(f"{when}_"): value for name, value in side.items()}
            for side in (left, right)
        ]
        parts = merge_moments(*sides) | merge_tables(*sides)
        found |= {f"{when}_{name}": value for name, value in parts.items()}
    return found


def hvg_conservation(
    data: Any,
    *,
    layer: str = "crescendo",
    before: str | None = None,
    n_top: int = 250,
    client: Any = None,
) -> HvgConservation:
    """Share of the highly variable genes that are so before and after a correction.

    Parameters
    ----------
    data
        Path of a store, a lazy AnnData of `stdist.io.open`, or an AnnData.
    layer
        Corrected counts.
    before
        Layer with the counts before correction; default ``X``.
    n_top
        Number of highly variable genes.
    client
        `distributed.Client`; default as in `stdist.tl.crescendo`.

    Returns
    -------
    HvgConservation
        ``score`` and a table of ``genes``.

    Raises
    ------
    InputError
        If a layer is unknown or does not hold counts.

    Notes
    -----
    `scanpy.pp.highly_variable_genes` (flavour ``"seurat"``) of each layer, scaled to its median
    depth: from means and variances, streamed in one pass.

    Examples
    --------
    >>> import anndata
    >>> counts = np.random.default_rng(0).poisson(3.0, (50, 8)).astype(np.float32)
    >>> adata = anndata.AnnData(counts, layers={"crescendo": counts})
    >>> hvg_conservation(adata, n_top=3).score
    1.0
    """
    check_positive(n_top=n_top)
    opened = open_data(data)
    stage = Reduce(
        "moments",
        share_moments,
        {"before": opened.matrix(before), "after": opened.matrix(layer)},
        combine=merge,
        workspace=tile_workspace(opened.n_vars, 6),
        nanoseconds=opened.n_vars * 8.0,
        partial_bytes=2**22 + 32 * opened.n_vars,
    )
    program = Program("hvg_conservation", (stage,), results=_moments)
    with executor_of(opened, client) as executor:
        found = run_in_memory(program, executor)
    columns: dict[str, np.ndarray] = {}
    for when in ("before", "after"):
        part = {name: found[f"{when}_{name}"] for name in ("n", "mean", "deviations")}
        depths = {name: found[f"{when}_{name}"] for name in ("depth", "cells")}
        target = float(median_depth(depths, target_sum=None)["target"])
        variance = target**2 * part["deviations"] / max(1.0, float(part["n"]) - 1)
        dispersion = normalized_dispersions(target * part["mean"], variance)
        columns |= {
            f"dispersion_{when}": dispersion,
            f"variable_{when}": most_variable(dispersion, n_top),
        }
    table = pd.DataFrame(columns, index=pd.Index(opened.var_names, name="gene"))
    kept = int((table["variable_before"] & table["variable_after"]).sum())
    least = int(min(table["variable_before"].sum(), table["variable_after"].sum()))
    return HvgConservation(kept / least if least else np.nan, table)


def _moments(values: Any) -> dict[str, Any]:
    return values["moments"]
