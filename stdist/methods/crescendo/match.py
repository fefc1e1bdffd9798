"""Crescendo's correction of one block: every count moves to its batch-free distribution."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from stdist.graph.blocks import tiles
from stdist.kernels.negative_binomial import match_tile
from stdist.kernels.poisson_interval import match_interval
from stdist.kernels.poisson_match import match_labels, match_soft, rates
from stdist.kernels.poisson_match_reference import match_reference
from stdist.kernels.poisson_means import soft_means
from stdist.methods.crescendo.depth import tile_depths
from stdist.methods.crescendo.design import columns
from stdist.methods.crescendo.tiles import cell_depth

Arrays = dict[str, Any]
MEANS = ("_intercept", "_coefficients")
"""Ends of the names of what means follow from."""


class Rule(NamedTuple):
    """How counts are matched; `interval` is the mass of the interval to give, or None."""

    match: str
    cap: bool
    interval: float | None
    source_offset: str
    interactions: bool


class Cells(NamedTuple):
    """The cells of a tile: their design and depths."""

    weights: np.ndarray | None
    labels: np.ndarray | None
    batch: np.ndarray
    source_depth: np.ndarray
    target_depth: np.ndarray
    first: int


def match_block(
    rows: tuple[int, int],
    *,
    counts: Any,
    batch: np.ndarray,
    fit: Arrays,
    weights: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    kept: np.ndarray | None = None,
    depth: np.ndarray | None = None,
    target: Any = None,
    keys: np.ndarray,
    genes: np.ndarray,
    rule: Rule,
    dtype: str,
    target_depth: float | None = None,
    stratum_columns: np.ndarray | None = None,
) -> Arrays:
    """Match the counts of a block, tile by tile.

    Rows are independent and the means are summed in a fixed order inside the kernels, so a block
    may be cut anywhere. Columns outside `genes`, and those that the fit says not to correct, keep
    their counts. `target` is a column of depths, or the value of the stage that found a median.
    """
    if isinstance(target, dict):
        target, target_depth = None, float(target["target"])
    if weights is not None and weights.dtype not in (np.float32, np.float64):
        weights = weights.astype(np.float64)
    rate = rates_of(fit, stratum_columns) if labels is not None else None
    matched: list[Arrays] = []
    for first, last in tiles(*rows):
        part = slice(first - rows[0], last - rows[0])
        tile = counts[part]
        own = cell_depth(tile) if depth is None else depth[part].astype(np.float64)
        depths = tile_depths(
            own, None if target is None else target[part], target_depth, rule.source_offset
        )
        dense = tile.toarray() if sparse.issparse(tile) else tile
        dense = dense.astype(dtype, copy=False)
        chosen = dense if len(genes) == dense.shape[1] else dense[:, genes]
        design = (
            None
            if weights is None
            else columns(weights[part], None if kept is None else kept[part], rule.interactions)
        )
        code = None if labels is None else labels[part]
        cells = Cells(design, code, batch[part], *depths, first)
        out = _match_tile(chosen, cells, fit, rate, keys, rule)
        if chosen is not dense or not fit["corrected"].all():
            for name, values in out.items():
                out[name] = dense.copy()
                out[name][:, genes[fit["corrected"]]] = values[:, fit["corrected"]]
        if sparse.issparse(tile):
            out = {name: sparse.csr_matrix(values) for name, values in out.items()}
        matched.append(out)
    return {name: _stack([part[name] for part in matched]) for name in matched[0]}


def _match_tile(
    counts: np.ndarray,
    cells: Cells,
    fit: Arrays,
    rate: tuple[np.ndarray, np.ndarray] | None,
    keys: np.ndarray,
    rule: Rule,
) -> Arrays:
    if rule.match == "reference":
        means = _means(cells, fit, rate)
        return {"corrected": match_reference(counts, *means, keys, cells.first)}
    depths: Arrays = {"target_depth": cells.target_depth, "cap": rule.cap}
    scattered = np.flatnonzero(fit["dispersion"] > 0) if "dispersion" in fit else []
    if rate is not None:
        corrected = match_labels(
            counts, cells.labels, cells.batch, cells.source_depth, *rate, keys, cells.first,
            **depths,
        )  # fmt: skip
    else:
        corrected = match_soft(
            counts,
            cells.weights,
            cells.batch,
            cells.source_depth,
            fit["source_intercept"],
            fit["source_coefficients"],
            fit["target_intercept"],
            fit["target_coefficients"],
            keys,
            cells.first,
            **depths,
        )
    if len(scattered):
        _match_scattered(corrected, scattered, counts, cells, fit, rate, keys, rule.cap)
    if rule.interval is None:
        return {"corrected": corrected}
    means = _means(cells, fit, rate)
    lower, upper = match_interval(counts, *means, rule.interval, cells.first, cap=rule.cap)
    return {"corrected": corrected, "lower": lower, "upper": upper}


def _match_scattered(
    corrected: np.ndarray,
    genes: np.ndarray,
    counts: np.ndarray,
    cells: Cells,
    fit: Arrays,
    rate: tuple[np.ndarray, np.ndarray] | None,
    keys: np.ndarray,
    cap: bool,
) -> None:
    """Match overdispersed genes between negative binomial distributions, in place."""
    of_genes = {name: fit[name][..., genes] for name in fit if name.endswith(MEANS)}
    if rate is not None:
        rate = rate[0][..., genes], rate[1][..., genes]
    source, target = _means(cells, of_genes, rate)
    wide = counts[:, genes].astype(np.int64)
    found = match_tile(
        wide, source, target, fit["dispersion"][genes], keys[genes], cells.first, cap
    )
    largest = int(found.max(initial=0))
    if largest > np.iinfo(corrected.dtype).max:
        message = f"a matched count, {largest}, exceeds {corrected.dtype}"
        raise OverflowError(message)
    corrected[:, genes] = found


def _means(
    cells: Cells, fit: Arrays, rate: tuple[np.ndarray, np.ndarray] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Means of source and target of every entry of a tile."""
    if rate is not None:
        source, target = rate
        return (
            cells.source_depth[:, None] * source[cells.batch, cells.labels],
            cells.target_depth[:, None] * target[cells.labels],
        )
    assert cells.weights is not None
    none = np.zeros(len(cells.batch), dtype=np.int64)
    intercept, coefficients = fit["target_intercept"], fit["target_coefficients"]
    return (
        soft_means(
            cells.weights,
            cells.batch,
            cells.source_depth,
            fit["source_intercept"],
            fit["source_coefficients"],
        ),
        soft_means(cells.weights, none, cells.target_depth, intercept[None], coefficients[None]),
    )


def rates_of(
    fit: Arrays, stratum_columns: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Source rates ``(n_batches, n_labels, n_genes)`` and target rates ``(n_labels, n_genes)``.

    With the design columns of strata (labels and what is kept), these take the place of labels.
    """
    intercepts = fit["source_intercept"], fit["target_intercept"]
    coefficients = fit["source_coefficients"], fit["target_coefficients"]
    if stratum_columns is None:
        return rates(intercepts[0], coefficients[0]), rates(intercepts[1], coefficients[1])
    n = len(stratum_columns)
    one = np.ones(n)

    def of(batch: int, intercept: np.ndarray, coefficient: np.ndarray) -> np.ndarray:
        return soft_means(stratum_columns, np.full(n, batch), one, intercept, coefficient)

    source = [of(b, intercepts[0], coefficients[0]) for b in range(len(intercepts[0]))]
    return np.stack(source), of(0, intercepts[1][None], coefficients[1][None])


def _stack(parts: list[Any]) -> Any:
    if sparse.issparse(parts[0]):
        return sparse.vstack(parts, format="csr")
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
