"""The passes behind the maps: places of the batches, then pixels of the chosen genes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from stdist.graph import Program, Reduce, by_name
from stdist.kernels import raster
from stdist.kernels.group_sums import sum_by_group
from stdist.methods.data import Data, open_data
from stdist.plots.passes import gene_columns, layer_reads, run_pass, stacked
from stdist.preprocess.bound import tile_workspace
from stdist.store import InputError

FEWEST_PIXELS, MOST_PIXELS = 32, 160
CELLS_PER_PIXEL = 1.5
TINY = np.finfo(np.float64).tiny


@dataclass(frozen=True)
class GeneRasters:
    """Pictures of genes in batches.

    ``tissue`` ``(n_batches, side, side)`` int64 counts cells; ``expression``
    ``(n_layers, n_genes, n_batches, side, side)`` float64 is the ``log1p`` of the count at mean
    depth; ``mean`` ``(n_layers, n_genes, n_batches)`` the mean count at mean depth;
    ``size`` the width of a pixel; ``n_batches`` the number of batches, drawn or not.
    """

    genes: list[str]
    layers: list[str]
    batches: list[str]
    cells: np.ndarray
    tissue: np.ndarray
    expression: np.ndarray
    mean: np.ndarray
    size: np.ndarray
    n_batches: int


def rasterise(
    data: Any,
    *,
    genes: str | Sequence[str],
    batch_key: str,
    layers: Sequence[str | None],
    spatial_key: str = "spatial",
    pixels: int | None = None,
    shown: int = 8,
    client: Any = None,
) -> GeneRasters:
    """Compute the pictures of `stdist.pl.gene_maps`: two passes, whatever the number of cells."""
    opened = open_data(data)
    names, columns = gene_columns(opened, genes)
    batch = opened.labels(batch_key)
    place = opened.embedding(spatial_key)
    if len(place.shape) != 2 or place.shape[1] < 2:
        raise InputError(
            "spatial-shape",
            f"coordinates have shape {place.shape}, not (n_cells, 2)",
            place=f"obsm {spatial_key!r}",
            remedy="name the entry of obsm that holds x and y",
        )
    program = _program(opened, columns, batch, place, layers, pixels, shown)
    found = run_pass(program, opened, client)
    drawn, side = found["drawn"], int(found["side"])
    n_layers, n_genes = len(layers), len(names)
    scale = found["depth"].sum() / max(1, found["n"].sum())
    counts = found["total"].T.reshape(n_layers, n_genes, -1) * scale
    depth = found["depth"]
    n_pictures = n_layers * n_genes * len(drawn)
    sums = raster.dense_panels((found["gene_pixel"], found["gene_sum"]), n_pictures, side)
    weight = raster.dense_panels((found["depth_pixel"], found["depth_sum"]), len(drawn), side)
    sums = sums.reshape(n_layers, n_genes, len(drawn), side, side)
    rate = np.divide(sums, weight, out=np.zeros_like(sums), where=weight > 0)
    return GeneRasters(
        genes=names,
        layers=["X" if layer is None else layer for layer in layers],
        batches=[batch.names[code] for code in drawn],
        cells=found["cells"],
        tissue=raster.dense_panels((found["cell_pixel"], found["density"]), len(drawn), side),
        expression=np.log1p(scale * rate),
        mean=np.divide(counts, depth, out=np.zeros_like(counts), where=depth > 0),
        size=found["size"],
        n_batches=len(batch.names),
    )


def _program(
    opened: Data,
    columns: np.ndarray,
    batch: Any,
    place: Any,
    layers: Sequence[str | None],
    pixels: int | None,
    shown: int,
) -> Program:
    shown = min(shown, len(batch.names))
    most = shown * (pixels or MOST_PIXELS) ** 2
    panels = len(columns) * len(layers)
    bounds = Reduce(
        "bounds",
        bounds_tile,
        {"spatial": place, "batch": batch.codes},
        options={"n_batches": len(batch.names)},
        combine=by_name(low=np.minimum, high=np.maximum),
        finalize=partial(choose_grid, pixels=pixels, shown=shown),
        workspace=tile_workspace(4),
        nanoseconds=40.0,
        partial_bytes=40 * len(batch.names),
    )
    pictures = Reduce(
        "pictures",
        raster_tile,
        {"spatial": place, "batch": batch.codes, **layer_reads(opened, layers)},
        uses=("bounds",),
        options={"columns": columns},
        combine=merge_tiles,
        workspace=tile_workspace(4 * panels + 8),
        nanoseconds=2.0 * opened.n_vars + 60.0 * panels,
        partial_bytes=min(most, opened.n_obs) * 16 * (2 + panels),
    )
    return Program("gene_maps", (bounds, pictures), results=_results)


def bounds_tile(
    rows: tuple[int, int], *, spatial: Any, batch: np.ndarray, n_batches: int
) -> dict[str, Any]:
    """Range of the coordinates of each batch."""
    return raster.coordinate_bounds(np.asarray(spatial)[:, :2], batch, n_batches)


def choose_grid(total: dict[str, Any], *, pixels: int | None, shown: int) -> dict[str, Any]:
    """Choose the batches that are drawn (the largest), and pixels that a single cell can fill."""
    drawn = np.sort(np.argsort(-total["cells"], kind="stable")[:shown])
    recode = np.full(len(total["cells"]) + 1, -1)  # the last entry is for code -1
    recode[drawn] = np.arange(len(drawn))
    cells = total["cells"][drawn]
    low, high = total["low"][drawn], total["high"][drawn]
    extent = np.where(cells[:, None] > 0, high - low, 1.0)
    slimness = extent.max(axis=1) / np.maximum(extent.min(axis=1), extent.max(axis=1) / 20 + TINY)
    wanted = int(np.sqrt(cells * slimness / CELLS_PER_PIXEL).max(initial=0))
    side = pixels or min(MOST_PIXELS, max(FEWEST_PIXELS, wanted))
    return {
        "drawn": drawn,
        "recode": recode,
        "cells": cells,
        "low": low,
        "size": raster.pixel_size(low, high, side),
        "side": np.int64(side),
    }


def raster_tile(
    rows: tuple[int, int],
    *,
    spatial: Any,
    batch: np.ndarray,
    bounds: dict[str, np.ndarray],
    columns: np.ndarray,
    **layers: Any,
) -> dict[str, Any]:
    """Cells, depth and counts per pixel, and sums per batch."""
    batch = bounds["recode"][batch]
    side, n_batches = int(bounds["side"]), len(bounds["drawn"])
    depth, counts = stacked(layers, columns)
    place = np.asarray(spatial)[:, :2]
    pixel = raster.pixel_numbers(place, batch, bounds["low"], bounds["size"], side)
    n_pixels = n_batches * side * side
    cell_pixel, density = raster.cells_per_pixel(pixel)
    depth_pixel, depth_sum = raster.sums_per_pixel(pixel, depth[:, None], n_pixels)
    gene_pixel, gene_sum = raster.sums_per_pixel(pixel, counts, n_pixels)
    kept = batch >= 0
    return {
        "cell_pixel": cell_pixel,
        "density": density,
        "depth_pixel": depth_pixel,
        "depth_sum": depth_sum,
        "gene_pixel": gene_pixel,
        "gene_sum": gene_sum,
        "total": sum_by_group(batch, n_batches, counts),
        "depth": np.bincount(batch[kept], depth[kept], n_batches),
        "n": np.bincount(batch[kept], minlength=n_batches),
    }


def merge_tiles(left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
    """Merge pictures and add sums."""
    merged = {name: left[name] + right[name] for name in ("total", "depth", "n")}
    for pixel, value in (
        ("cell_pixel", "density"),
        ("depth_pixel", "depth_sum"),
        ("gene_pixel", "gene_sum"),
    ):
        sides = ((part[pixel], part[value]) for part in (left, right))
        merged[pixel], merged[value] = raster.merge(*sides)
    return merged


def _results(values: Any) -> dict[str, Any]:
    return values["pictures"] | values["bounds"]
