"""Scores of held-out genes, tile by tile: imputed means and controls against the counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np

from stdist.graph import add
from stdist.kernels.imputation_baselines import (
    baseline_means,
    nearest_in_expression,
    nearest_in_space,
)
from stdist.kernels.imputation_scores import jensen_shannon_sums, merge_score_sums, score_sums
from stdist.kernels.moments import dense_rows, row_sums
from stdist.methods.siid.fit import current_rows
from stdist.methods.siid.pair import read_counts
from stdist.methods.siid.sample import packed, tile_of, unpacked
from stdist.store import TILE_ROWS

Arrays = dict[str, Any]
STREAMED = ("A", "B", "total")
"""Baselines of a cell and its own spot."""
NEIGHBORS = ("C_expression", "C_space", "D_expression", "D_space")
"""Baselines of neighbouring cells."""
NEAR = ("expression", "space")
"""What these are near in."""
QUERIES = 1024
"""Cells whose neighbours one task finds."""


def place_cells_and_answers(
    rows: tuple[int, int],
    *,
    place: Callable[..., Arrays],
    held: np.ndarray,
    counts: Any,
    spatial: np.ndarray,
    **arguments: Any,
) -> Arrays:
    """Send each cell to its nearest spot as `place` does, with its counts of the held-out genes."""
    placed = place(rows, counts=counts, spatial=spatial, **arguments)
    answers = read_counts(counts, rows, held, "cells")
    return placed | {"answers": answers, "xy": np.asarray(spatial, np.float64)}


def score_tile(rows: tuple[int, int], **arguments: Any) -> Arrays:
    """Score the mean of the solutions, each of them, and the streamed baselines if wanted."""
    return scored(*_tile_estimates(**arguments))


def diverge_tile(rows: tuple[int, int], *, score: Mapping[str, Any], **arguments: Any) -> Arrays:
    """Jensen-Shannon divergences of the same estimates, whose totals are known by then."""
    return diverged(*_tile_estimates(**arguments), score)


def _tile_estimates(
    *, answers: Any, n_panel: int, solutions: tuple[str, ...], controls: bool, **arguments: Any
) -> tuple[np.ndarray, list[np.ndarray]]:
    tables = [(arguments.pop(f"{name}_rows"), arguments.pop(name)) for name in solutions]
    cells, above, spot = tile_of(**arguments)
    n_cells = len(spot)
    held = slice(n_panel, None)
    single = [imputed_means(table[:n_cells], fit, held) for table, fit in tables]
    estimates = [np.mean(single, axis=0), *single]
    if controls:
        totals = row_sums(cells), row_sums(above[:, :n_panel])
        found = baseline_means((0, n_cells), above[:, n_panel:], spot, *totals, {})
        estimates += [found[name] for name in STREAMED]
    return dense_rows(answers[:n_cells]), estimates


def imputed_means(
    table: np.ndarray, fit: Mapping[str, Any], genes: slice | np.ndarray
) -> np.ndarray:
    """Means of some genes of the model in the cells of one solution."""
    p, n, _ = current_rows(table, fit)
    means: np.ndarray = (n[:, None] * p) @ np.asarray(fit["Q"])[:, genes]
    return means


def scored(counts: np.ndarray, estimates: Sequence[np.ndarray]) -> Arrays:
    """Statistics of several estimates, one after the other along the genes."""
    if not len(counts):
        width = len(estimates) * counts.shape[1]
        sizes = {"mean": 2, "products": 3, "maximum": 2, "divergence": 2}
        return {"n": np.float64(0), **{k: np.zeros((n, width)) for k, n in sizes.items()}}
    parts = [score_sums(counts, estimate) for estimate in estimates]
    joined = {k: np.concatenate([part[k] for part in parts], axis=1) for k in parts[0] if k != "n"}
    return {"n": parts[0]["n"], **joined}


def diverged(
    counts: np.ndarray, estimates: Sequence[np.ndarray], sums: Mapping[str, Any]
) -> Arrays:
    """Summands of the Jensen-Shannon divergences of several estimates that were `scored`."""
    totals = (sums["n"] * sums["mean"]).reshape(2, len(estimates), counts.shape[1])
    parts = [
        jensen_shannon_sums(counts, estimate, *totals[:, number])
        for number, estimate in enumerate(estimates)
    ]
    return {"js": np.concatenate(parts)}


def merged(left: Mapping[str, Any], right: Mapping[str, Any]) -> Arrays:
    """Statistics of two neighbours together; tiles of spots alone have none."""
    if not left["n"] or not right["n"]:
        return dict(left if left["n"] else right)
    return merge_score_sums(left, right)


def merge_all(parts: list[Arrays]) -> Arrays:
    """Statistics of all tasks together."""
    return reduce(merged, parts)


def sum_all(parts: list[Arrays]) -> Arrays:
    """Sums of all tasks together."""
    return reduce(add, parts)


def sample_answers(
    rows: tuple[int, int], *, answers: Any, xy: np.ndarray, origin: np.ndarray, every: int
) -> Arrays:
    """What `stdist.methods.siid.sample.sample_tile` does not take of the same cells."""
    n_cells = 0 if rows[0] // TILE_ROWS % every else int((origin > 0).sum())
    return {"xy": xy[:n_cells], **packed("answers", answers[:n_cells])}


def find_neighbors(
    item: int, *, sample: Arrays, sample_answers: Arrays, n_panel: int, n_neighbors: int
) -> Arrays:
    """Neighbours of some cells of the sample, which are numbered in the order of the slide."""
    order, rows = _queried(item, sample)
    if rows[0] >= rows[1]:
        return {name: np.empty((0, n_neighbors), np.int64) for name in NEAR}
    cells, xy = unpacked("cells", sample, n_panel)[order], sample_answers["xy"][order]
    chosen = slice(*rows)
    return {
        "expression": nearest_in_expression(cells[chosen], cells, n_neighbors),
        "space": nearest_in_space(xy[chosen], xy, n_neighbors),
    }


def all_neighbors(parts: list[Arrays]) -> Arrays:
    """Neighbours that all tasks have found; a task without cells has none."""
    some = [part for part in parts if len(part["space"])]
    return {name: np.concatenate([part[name] for part in some]) for name in NEAR}


def score_neighbors(item: int, **arguments: Any) -> Arrays:
    """Score the baselines of neighbouring cells for some cells of the sample."""
    return scored(*_neighbor_estimates(item, **arguments))


def diverge_neighbors(item: int, *, score_neighbors: Mapping[str, Any], **arguments: Any) -> Arrays:
    """Jensen-Shannon divergences of the same baselines."""
    return diverged(*_neighbor_estimates(item, **arguments), score_neighbors)


def _neighbor_estimates(
    item: int, *, sample: Arrays, sample_answers: Arrays, neighbors: Arrays, n_panel: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    order, rows = _queried(item, sample)
    n_genes = len(sample["profile"])
    answers = unpacked("answers", sample_answers, n_genes - n_panel)[order]
    if rows[0] >= rows[1]:
        nothing = np.empty((0, n_genes - n_panel))
        return nothing, [nothing] * len(NEIGHBORS)
    cells, above = unpacked("cells", sample, n_panel)[order], unpacked("spots", sample, n_genes)
    near = {name: neighbors[name][slice(*rows)] for name in NEAR}
    totals = row_sums(cells), row_sums(above[:, :n_panel])
    found = baseline_means(rows, above[:, n_panel:], sample["spot"][order], *totals, near)
    return dense_rows(answers[slice(*rows)]), [found[name] for name in NEIGHBORS]


def _queried(item: int, sample: Arrays) -> tuple[np.ndarray, tuple[int, int]]:
    """The sample in the order of the slide, and which of its cells one task takes."""
    order = np.argsort(sample["origin"])
    return order, (item * QUERIES, min(len(order), (item + 1) * QUERIES))
