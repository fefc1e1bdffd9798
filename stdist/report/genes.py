"""Which genes a report draws, and the measures of all genes in few numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from stdist.graph import Program, Reduce
from stdist.kernels.group_sums import sum_by_group
from stdist.methods.data import Data
from stdist.plots.passes import run_pass
from stdist.preprocess.bound import tile_workspace

N_DRAWN = 3


def summarise(table: pd.DataFrame) -> dict[str, float]:
    """Summarise the result of `stdist.metrics.bvr_cvr` in the numbers of a headline.

    Returns
    -------
    dict
        ``in_zone`` and ``with_batch_variance`` (numbers of genes), ``median_bvr``,
        ``median_cvr``, ``total_ratio`` (counts after / before) and ``largest_gene_ratio``.
    """
    counted = table["counts_before"] > 0
    ratio = table["counts_after"][counted] / table["counts_before"][counted]
    total = table["counts_before"].sum()
    return {
        "in_zone": int(table["in_zone"].sum()),
        "with_batch_variance": int((~table["no_batch_variance"]).sum()),
        "median_bvr": _median(table["bvr"]),
        "median_cvr": _median(table["cvr"]),
        "total_ratio": float(table["counts_after"].sum() / total) if total else np.nan,
        "largest_gene_ratio": float(ratio.max()) if len(ratio) else np.nan,
    }


def _median(values: pd.Series) -> float:
    defined = values.dropna()
    return float(defined.median()) if len(defined) else np.nan


def telling_genes(table: pd.DataFrame, n: int = N_DRAWN) -> list[str]:
    """Genes of largest batch variance before, among those with more counts than the median.

    Examples
    --------
    >>> table = pd.DataFrame({"counts_before": [1, 9, 8]}, index=["a", "b", "c"])
    >>> table["batch_variance_before"] = [5.0, 1.0, 2.0]
    >>> telling_genes(table, 1)
    ['c']
    """
    counts = table["counts_before"]
    frequent = table[(counts >= counts.median()) & (counts > 0)]
    return [str(name) for name in frequent["batch_variance_before"].nlargest(n).index]


def sum_batches(
    rows: tuple[int, int], *, counts: Any, batch: np.ndarray, n_batches: int
) -> dict[str, np.ndarray]:
    """Counts of each gene by batch."""
    return {"counts": sum_by_group(batch, n_batches, counts.astype(np.float64))}


def uneven_genes(
    opened: Data, layer: str | None, batch_key: str, client: Any, n: int = N_DRAWN
) -> list[str]:
    """Choose genes without cell types: those whose share of the counts differs most."""
    batch = opened.labels(batch_key)
    n_batches = len(batch.names)
    stage = Reduce(
        "batches",
        sum_batches,
        {"counts": opened.matrix(layer), "batch": batch.codes},
        options={"n_batches": n_batches},
        workspace=tile_workspace(opened.n_vars, 2),
        nanoseconds=2.0 * opened.n_vars,
        partial_bytes=8 * n_batches * opened.n_vars,
    )
    program = Program("batches", (stage,), results=_counts)
    counts = run_pass(program, opened, client)["counts"]
    depth = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, depth, out=np.zeros_like(counts), where=depth > 0)
    table = pd.DataFrame(
        {
            "counts_before": counts.sum(axis=0),
            "batch_variance_before": np.log(share + 1e-6)[depth[:, 0] > 0].std(axis=0),
        },
        index=opened.var_names,
    )
    return telling_genes(table, n)


def _counts(values: Any) -> dict[str, Any]:
    return values["batches"]
