"""Crescendo's correction of one block: every count moves to its batch-free distribution."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from stdist.graph.blocks import tiles
from stdist.kernels.poisson_match import match_labels, match_soft, rates
from stdist.methods.crescendo.tiles import cell_depth

NO_DEPTH = 1e-300
"""Depth of a cell without counts: its means are positive and it stays without counts."""


def match_block(
    rows: tuple[int, int],
    *,
    counts: Any,
    batch: np.ndarray,
    fit: dict[str, np.ndarray],
    weights: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    depth: np.ndarray | None = None,
    keys: np.ndarray,
    genes: np.ndarray,
    cap: bool,
    dtype: str,
) -> dict[str, Any]:
    """Match the counts of a block, tile by tile.

    Rows are independent and the means are summed in a fixed order inside the kernel, so a block
    may be cut anywhere. Columns outside `genes`, and those whose fit did
    not converge, keep their counts.
    """
    matched = []
    if weights is not None and weights.dtype not in (np.float32, np.float64):
        weights = weights.astype(np.float64)
    rate = rates_of(fit) if labels is not None else None
    for first, last in tiles(*rows):
        part = slice(first - rows[0], last - rows[0])
        tile = counts[part]
        own = cell_depth(tile) if depth is None else depth[part].astype(np.float64)
        own = np.where(own > 0, own, NO_DEPTH)
        dense = tile.toarray() if sparse.issparse(tile) else tile
        dense = dense.astype(dtype, copy=False)
        chosen = dense if len(genes) == dense.shape[1] else dense[:, genes]
        if rate is not None and labels is not None:
            out = match_labels(chosen, labels[part], batch[part], own, *rate, keys, first, cap=cap)
        else:
            out = match_soft(
                chosen,
                weights[part],  # type: ignore[index]
                batch[part],
                own,
                fit["source_intercept"],
                fit["source_coefficients"],
                fit["target_intercept"],
                fit["target_coefficients"],
                keys,
                first,
                cap=cap,
            )
        if chosen is not dense or not fit["converged"].all():
            corrected, out = out, dense.copy()
            out[:, genes[fit["converged"]]] = corrected[:, fit["converged"]]
        matched.append(sparse.csr_matrix(out) if sparse.issparse(tile) else out)
    if sparse.issparse(matched[0]):
        return {"corrected": sparse.vstack(matched, format="csr")}
    return {"corrected": matched[0] if len(matched) == 1 else np.concatenate(matched)}


def rates_of(fit: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Source rates ``(n_batches, n_labels, n_genes)`` and target rates ``(n_labels, n_genes)``."""
    source = rates(fit["source_intercept"], fit["source_coefficients"])
    return source, rates(fit["target_intercept"], fit["target_coefficients"])
