"""Means of genes by batch and cell type, before and after: what a correction brings together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stdist.graph import Program, Reduce
from stdist.kernels.group_sums import sum_by_group
from stdist.methods.data import open_data
from stdist.plots.passes import gene_columns, layer_reads, run_pass, stacked
from stdist.plots.style import (
    GROUPS,
    INK,
    SOFT,
    WIDTH,
    Sheet,
    clean,
    literal,
    require_matplotlib,
    short,
)
from stdist.preprocess.bound import tile_workspace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_TYPES = 24
LARGEST_COUNT = 8
"""Counts from here on share one bin."""


def counts_by_batch(
    data: Any,
    *,
    genes: str | Sequence[str],
    batch_key: str,
    label_key: str | None = None,
    layers: Sequence[str | None] = (None, "crescendo"),
    client: Any = None,
) -> Figure:
    """Draw how the counts of genes differ between batches, before and after a correction.

    Parameters
    ----------
    data
        Path of a store, a lazy AnnData of `stdist.io.open`, or an AnnData.
    genes
        Names of genes, one row each.
    batch_key
        Column of ``obs`` with the batch, a colour each.
    label_key
        Column of ``obs`` with the cell type. With it: the mean count per cell at mean depth of
        every batch in every type. Without it: the share of cells with 0, 1, 2 ... counts.
    layers
        Layers with counts, one column each; None is ``X``. The depth of a cell is its total
        count in the first.
    client
        `distributed.Client`; default as in `stdist.tl.crescendo`.

    Returns
    -------
    matplotlib.figure.Figure
        The axes of a gene share their scale. Of more than 24 types the largest are drawn.

    Raises
    ------
    InputError
        If a gene or key is unknown, or matplotlib is not installed.

    Examples
    --------
    >>> counts_by_batch("cohort.zarr", genes=["Gad1"], batch_key="slide")  # doctest: +SKIP
    """
    require_matplotlib()
    opened = open_data(data)
    names, columns = gene_columns(opened, genes)
    batch = opened.labels(batch_key)
    labels = opened.labels(label_key) if label_key else None
    reads = {"batch": batch.codes, **layer_reads(opened, layers)}
    if labels is not None:
        reads["labels"] = labels.codes
    n_batches, n_types = len(batch.names), len(labels.names) if labels else 1
    panels = len(columns) * len(layers)
    sums = Reduce(
        "sums",
        sum_tile,
        reads,
        options={"columns": columns, "n_batches": n_batches, "n_types": n_types},
        workspace=tile_workspace(4 * panels + 8),
        nanoseconds=2.0 * opened.n_vars + 40.0 * panels,
        partial_bytes=8 * n_batches * (n_types * (panels + 2) + panels * (LARGEST_COUNT + 1)),
    )
    program = Program("counts_by_batch", (sums,), results=_results)
    found = run_pass(program, opened, client)
    shown = [
        ("before", "after")[i] if len(layers) == 2 else layer or "X"
        for i, layer in enumerate(layers)
    ]
    if labels is None:
        cells = np.maximum(found["cells"].sum(axis=0), 1)
        table = found["bins"].reshape(n_batches, LARGEST_COUNT + 1, len(layers), len(names))
        shares = _without_rare(table / cells[:, None, None, None])
        return _draw(shares.transpose(3, 2, 1, 0), names, shown, batch.names, None)
    types = np.sort(np.argsort(-found["cells"].sum(axis=1), kind="stable")[:MOST_TYPES])
    scale = found["depth"].sum() / max(1, found["cells"].sum())
    sums_by = found["counts"].reshape(n_types, n_batches, len(layers), len(names))
    depth = found["depth"][:, :, None, None]
    means = np.full_like(sums_by, np.nan)
    np.divide(sums_by * scale, depth, out=means, where=depth > 0)
    ordered = means[types].transpose(3, 2, 0, 1)
    return _draw(ordered, names, shown, batch.names, [labels.names[t] for t in types])


def sum_tile(
    rows: tuple[int, int],
    *,
    batch: np.ndarray,
    labels: np.ndarray | None = None,
    columns: np.ndarray,
    n_batches: int,
    n_types: int,
    **layers: Any,
) -> dict[str, np.ndarray]:
    """Sums by (type, batch), and cells by batch and count; missing labels are left out."""
    depth, counts = stacked(layers, columns)
    types = np.zeros_like(batch) if labels is None else labels
    kept = (batch >= 0) & (types >= 0)
    group = np.where(kept, types.astype(np.int64) * n_batches + batch, -1)
    shape, n_groups = (n_types, n_batches), n_types * n_batches
    dense = counts.toarray() if hasattr(counts, "toarray") else counts
    bins = np.clip(np.rint(dense), 0, LARGEST_COUNT).astype(np.int64)
    wide = LARGEST_COUNT + 1
    found = np.stack(
        [
            np.bincount(batch[kept] * wide + column[kept], minlength=n_batches * wide)
            for column in bins.T
        ],
        axis=1,
    )
    return {
        "counts": sum_by_group(group, n_groups, dense).reshape(*shape, -1),
        "depth": np.bincount(group[kept], depth[kept], n_groups).reshape(shape),
        "cells": np.bincount(group[kept], minlength=n_groups).reshape(shape),
        "bins": found.reshape(n_batches, wide, -1),
    }


def _results(values: Any) -> dict[str, Any]:
    return values["sums"]


def _draw(
    values: np.ndarray,
    genes: list[str],
    layers: list[str],
    batches: list[str],
    types: list[str] | None,
) -> Figure:
    """Draw ``values`` of shape ``(n_genes, n_layers, n_places, n_batches)``."""
    n_genes, n_layers = values.shape[:2]
    left, gap, head, height = 0.95, 0.35, 0.75, 1.45
    foot = 0.5 if types is None else 0.25 + 0.07 * min(16, max(map(len, types)))
    width = (WIDTH - left - 0.15 - gap * (n_layers - 1)) / n_layers
    sheet = Sheet(WIDTH, head + n_genes * (height + 0.4) - 0.4 + foot)
    _legend(sheet, left, batches)
    for gene, name in enumerate(genes):
        top = head + gene * (height + 0.4)
        limit = max(float(np.nanmax(values[gene], initial=0.0)), 1e-9)
        for layer, title in enumerate(layers):
            at = left + layer * (width + gap)
            axes = clean(sheet.axes(at, top, width, height), grid="y")
            _panel(axes, values[gene, layer], types)
            last = gene == n_genes - 1
            ticks = (
                _ticks(values.shape[2]) if types is None else [literal(short(t, 16)) for t in types]
            )
            turned: dict[str, Any] = {} if types is None else {"rotation": 90}
            axes.set_xticks(range(len(ticks)), ticks if last else [""] * len(ticks), **turned)
            axes.set_ylim(0, 1.08 * limit if types else 1.0)
            if layer:
                axes.set_yticklabels([])
            sheet.text(at, top - 0.24, short(name, 30), fontsize=9.5, fontweight="bold")
            sheet.text(at + width, top - 0.23, title, fontsize=9, color=SOFT, ha="right")
            if last and types is None:
                axes.set_xlabel("counts in a cell", fontsize=8.5, color=INK)
    axis = "mean count at mean depth" if types else "share of cells"
    middle = head + (n_genes * (height + 0.4) - 0.4) / 2
    sheet.text(0.25, middle, axis, rotation=90, va="center", ha="center", fontsize=9)
    return sheet.figure


def _without_rare(shares: np.ndarray) -> np.ndarray:
    """Join the last bins that hold less than a hundredth of the cells in every batch and gene."""
    common = np.flatnonzero((shares >= 0.01).any(axis=(0, 2, 3)))
    last = max(2, int(common[-1]) if len(common) else 0)
    return np.concatenate([shares[:, :last], shares[:, last:].sum(axis=1, keepdims=True)], axis=1)


def _panel(axes: Axes, values: np.ndarray, types: list[str] | None) -> None:
    n_places, n_batches = values.shape
    for batch in range(n_batches):
        colour = _colour(batch, n_batches)
        if types is None:
            axes.plot(range(n_places), values[:, batch], "o-", color=colour, markersize=3.5, lw=1.1)
            continue
        shift = (batch - (n_batches - 1) / 2) * min(0.14, 0.7 / n_batches)
        places = np.arange(n_places) + shift
        axes.scatter(places, values[:, batch], s=17, color=colour, linewidths=0, zorder=3)
    if types is not None:
        axes.set_xlim(-0.6, n_places - 0.4)


def _ticks(n_bins: int) -> list[str]:
    return [*map(str, range(n_bins - 1)), f"{n_bins - 1}+"]


def _colour(batch: int, n_batches: int) -> str:
    return GROUPS[batch] if n_batches <= len(GROUPS) else SOFT


def _legend(sheet: Sheet, left: float, batches: list[str]) -> None:
    if len(batches) > len(GROUPS):
        sheet.text(left, 0.12, f"{len(batches)} batches", fontsize=8.5, color=SOFT)
        return
    for number, name in enumerate(batches):
        at = left + number * (WIDTH - left) / len(GROUPS)
        sheet.text(at, 0.12, "●", color=GROUPS[number], fontsize=8)
        sheet.text(at + 0.15, 0.12, short(name, 13), fontsize=8.5, color=SOFT)
