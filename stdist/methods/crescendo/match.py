"""Crescendo's correction of one block: every count moves to its batch-free distribution."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from stdist.graph.blocks import tiles
from stdist.kernels.array_module import array_module
from stdist.kernels.match_checks import EntryError, check_means, check_range
from stdist.kernels.negative_binomial import match_tile
from stdist.kernels.poisson_interval import match_interval
from stdist.kernels.poisson_match import match_labels, match_soft, rates
from stdist.kernels.poisson_match_reference import match_reference
from stdist.kernels.poisson_means import soft_means
from stdist.methods.crescendo.depth import tile_depths
from stdist.methods.crescendo.design import columns
from stdist.methods.crescendo.tiles import cell_depth
from stdist.store import InputError

Arrays = dict[str, Any]
MODEL = ("source_intercept", "source_coefficients", "target_intercept", "target_coefficients")
"""What means follow from."""


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
    var_names: np.ndarray,
    rule: Rule,
    dtype: str,
    target_depth: float | None = None,
    stratum_columns: np.ndarray | None = None,
) -> Arrays:
    """Match the counts of a block, tile by tile.

    Rows are independent and the means are summed in a fixed order inside the kernels, so a block
    may be cut anywhere. Columns outside `genes`, and those that the fit says not to correct, keep
    their counts. `target` is a column of depths, or the value of the stage that found a median.

    Raises
    ------
    InputError
        If a count cannot be matched, or does not fit the type of the layer.
    """
    if isinstance(target, dict):
        target, target_depth = None, float(target["target"])
    if weights is not None and weights.dtype not in (np.float32, np.float64):
        weights = weights.astype(np.float64)
    models = [
        model | rates_of(model, stratum_columns) if labels is not None else model
        for model in _models(fit, keys, genes)
    ]
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
        design = (
            None
            if weights is None
            else columns(weights[part], None if kept is None else kept[part], rule.interactions)
        )
        code = None if labels is None else labels[part]
        cells = Cells(design, code, batch[part], *depths, first)
        out = _match_tile(dense, cells, models, rule, var_names)
        if sparse.issparse(tile):
            out = {name: sparse.csr_matrix(values) for name, values in out.items()}
        matched.append(out)
    return {name: _stack([part[name] for part in matched]) for name in matched[0]}


def unmatched(error: EntryError, gene: str) -> InputError:
    """What to tell the user of a count that cannot be matched."""
    return InputError(
        "count-unmatched",
        f"the count cannot be corrected: {error.problem}",
        place=f"gene {str(gene)!r}, row {error.row}",
        remedy="leave cap_outliers on, use fewer clusters or a smaller prior_sd, or give a smaller "
        "target_offset",
    )


def _models(fit: Arrays, keys: np.ndarray, genes: np.ndarray) -> list[Arrays]:
    """Arrays of the genes to correct, by the distribution of their counts, last axis genes."""
    xp = array_module(keys)
    whole = {name: fit[name] for name in MODEL} | {"key": keys, "gene": genes}
    if "dispersion" not in fit:
        chosen = [fit["corrected"]]
    else:
        whole["dispersion"] = fit["dispersion"]
        scattered = fit["dispersion"] > 0
        chosen = [fit["corrected"] & ~scattered, fit["corrected"] & scattered]
    places = (xp.flatnonzero(some) for some in chosen)
    return [{n: v[..., place] for n, v in whole.items()} for place in places if len(place)]


def _match_tile(
    counts: np.ndarray, cells: Cells, models: list[Arrays], rule: Rule, var_names: np.ndarray
) -> Arrays:
    names = ("corrected",) if rule.interval is None else ("corrected", "lower", "upper")
    out = {name: counts.copy() for name in names}
    for model in models:
        genes = model["gene"]
        every = len(genes) == counts.shape[1]
        try:
            found = _match_genes(counts if every else counts[:, genes], cells, model, rule)
        except EntryError as error:
            raise unmatched(error, var_names[int(genes[error.gene])]) from error
        if every:
            return found
        for name, values in found.items():
            out[name][:, genes] = values
    return out


def _match_genes(counts: np.ndarray, cells: Cells, model: Arrays, rule: Rule) -> Arrays:
    """Match genes whose counts have one kind of distribution."""
    if rule.match == "reference":
        means = _means(cells, model)
        return {"corrected": match_reference(counts, *means, model["key"], cells.first)}
    if "dispersion" in model and (model["dispersion"] > 0).all():
        return {"corrected": _match_scattered(counts, cells, model, rule.cap)}
    depths: Arrays = {"target_depth": cells.target_depth, "cap": rule.cap}
    if cells.labels is not None:
        corrected = match_labels(
            counts,
            cells.labels,
            cells.batch,
            cells.source_depth,
            model["source_rate"],
            model["target_rate"],
            model["key"],
            cells.first,
            **depths,
        )
    else:
        corrected = match_soft(
            counts,
            cells.weights,
            cells.batch,
            cells.source_depth,
            *(model[name] for name in MODEL),
            model["key"],
            cells.first,
            **depths,
        )
    if rule.interval is None:
        return {"corrected": corrected}
    means = _means(cells, model)
    lower, upper = match_interval(counts, *means, rule.interval, cells.first, cap=rule.cap)
    return {"corrected": corrected, "lower": lower, "upper": upper}


def _match_scattered(counts: np.ndarray, cells: Cells, model: Arrays, cap: bool) -> np.ndarray:
    """Match overdispersed genes between negative binomial distributions."""
    means = _means(cells, model)
    rows = cells.first + np.arange(len(counts))
    for values in means:
        check_means(values, rows)
    wide = counts.astype(np.int64)
    found = match_tile(wide, *means, model["dispersion"], model["key"], cells.first, cap)
    check_range(found, counts.dtype, rows)
    return found


def _means(cells: Cells, model: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Means of source and target of every entry of a tile."""
    if cells.labels is not None:
        return (
            cells.source_depth[:, None] * model["source_rate"][cells.batch, cells.labels],
            cells.target_depth[:, None] * model["target_rate"][cells.labels],
        )
    assert cells.weights is not None
    none = np.zeros(len(cells.batch), dtype=np.int64)
    intercept, coefficients = model["target_intercept"], model["target_coefficients"]
    return (
        soft_means(
            cells.weights,
            cells.batch,
            cells.source_depth,
            model["source_intercept"],
            model["source_coefficients"],
        ),
        soft_means(cells.weights, none, cells.target_depth, intercept[None], coefficients[None]),
    )


def rates_of(model: Arrays, stratum_columns: np.ndarray | None = None) -> Arrays:
    """Source rates ``(n_batches, n_labels, n_genes)`` and target rates ``(n_labels, n_genes)``.

    With the design columns of strata (labels and what is kept), these take the place of labels.
    """
    source, target = (model[name] for name in MODEL[:2]), (model[name] for name in MODEL[2:])
    if stratum_columns is None:
        return {"source_rate": rates(*source), "target_rate": rates(*target)}
    n = len(stratum_columns)
    one = np.ones(n)

    def of(batch: int, intercept: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
        return soft_means(stratum_columns, np.full(n, batch), one, intercept, coefficients)

    intercept, coefficients = source
    return {
        "source_rate": np.stack([of(b, intercept, coefficients) for b in range(len(intercept))]),
        "target_rate": of(0, *(values[None] for values in target)),
    }


def _stack(parts: list[Any]) -> Any:
    if sparse.issparse(parts[0]):
        return sparse.vstack(parts, format="csr")
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
