"""Moran's I: how much neighbouring cells agree in a gene."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from stdist.graph import Each, Program, run_in_memory
from stdist.kernels.array_module import array_module, host_array
from stdist.kernels.spatial_autocorrelation import moran_sums
from stdist.kernels.spatial_autocorrelation import morans_i as index_of
from stdist.kernels.spatial_neighbors import nearest_within
from stdist.methods.data import open_data
from stdist.metrics.neighborhoods import check_crowd, no_neighbours
from stdist.metrics.passes import check_positive, columns_of, executor_of
from stdist.metrics.strips import Strip, cut_strips, read_strip, strip_bytes
from stdist.metrics.survey import SlideSources, open_slides, survey
from stdist.preprocess.bound import TileWorkspace


def sum_strip(
    item: int,
    *,
    strips: list[Strip],
    sources: SlideSources,
    columns: Any,
    radius: float,
    n_neighbors: int,
    target: float | None,
) -> dict[str, Any]:
    """Sums of one strip; its margin is twice the radius: neighbours need their neighbours.

    Genes are summed where `columns` are; reading and the search for neighbours are the host's.
    """
    xp = array_module(columns)
    strip, halo = strips[item], 2 * radius
    cells = read_strip(strip, sources, host_array(columns), halo=halo, target=target)
    check_crowd(cells, radius)
    graph = nearest_within(cells.points, radius, n_neighbors)
    expression = xp.asarray(cells.indptr), xp.asarray(cells.genes), xp.asarray(cells.values)
    return moran_sums(cells.own, graph, expression, len(columns))


def join_slides(parts: list[dict[str, Any]], *, strips: list[Strip]) -> dict[str, np.ndarray]:
    """Add the strips of each slide; rows are the slides that have cells, in order."""
    slides = sorted({strip.slide for strip in strips})
    total = {}
    for name in parts[0]:
        sums = [
            sum(part[name] for part, strip in zip(parts, strips, strict=True) if strip.slide == one)
            for one in slides
        ]
        total[name] = np.stack(sums)
    return total | {"slide": np.array(slides)}


def morans_i(
    data: Any,
    *,
    genes: Sequence[str] | None = None,
    slice_key: str | None = None,
    spatial_key: str = "spatial",
    layer: str | None = None,
    n_neighbors: int = 6,
    radius: float = 30.0,
    normalize: bool = True,
    client: Any = None,
) -> pd.DataFrame:
    """Moran's I of genes in each slice.

    Parameters
    ----------
    data
        Path of a store, a lazy AnnData of `stdist.io.open`, or an AnnData.
    genes
        Names of genes; default: all.
    slice_key
        Column of ``obs`` with the slice; cells of different slices are no neighbours. Default:
        all cells are one slice.
    spatial_key
        Entry of ``obsm`` with x and y.
    layer
        Layer with counts; default ``X``.
    n_neighbors
        Nearest neighbours of a cell, itself excluded.
    radius
        Neighbours farther away are dropped; in the unit of the coordinates.
    normalize
        Take ``log1p(count / depth * median depth)``; False: the layer's values as they are.
    client
        `distributed.Client`; default as in `stdist.tl.crescendo`.

    Returns
    -------
    pandas.DataFrame
        One row per slice and gene: ``morans_i``, ``z`` and ``p_value`` (one-sided, for clustering,
        under normality), NaN where a gene does not vary; ``expected``, ``n_cells``.

    Raises
    ------
    InputError
        If a key or gene is unknown, values or coordinates are wrong, or no cell has a neighbour.

    Notes
    -----
    Weights are row-standardised, as in `squidpy.gr.spatial_autocorr` and `esda.Moran`; cells
    without neighbours stay among the cells. Neighbours are exact, slices of any size are read in
    strips, and memory does not grow with them.

    Examples
    --------
    >>> morans_i("cohort.zarr", genes=["Gad1"], slice_key="slide")  # doctest: +SKIP
    """
    check_positive(radius=radius, n_neighbors=n_neighbors)
    opened = open_data(data)
    names = [str(gene) for gene in (opened.var_names if genes is None else genes)]
    columns = columns_of(opened, names)
    slides = open_slides(opened, layer, spatial_key, slice_key)
    with executor_of(opened, client) as executor:
        found = survey(opened, slides, columns, executor, counts=normalize)
        strips = cut_strips(found, 2 * radius, radius)
        most = max(strip_bytes(strip, opened.n_vars) for strip in strips)
        stage = Each(
            "sums",
            sum_strip,
            slides.sources.named(),
            options={
                "strips": strips,
                "sources": slides.sources,
                "columns": columns,
                "radius": float(radius),
                "n_neighbors": int(n_neighbors),
                "target": found.target if normalize else None,
            },
            workspace=TileWorkspace(0, most + 80 * len(columns)),
            nanoseconds=1e4 * max(strip.n_cells for strip in strips),
            n_items=len(strips),
            on_device=True,
            collect=partial(join_slides, strips=strips),
        )
        sums = run_in_memory(Program("morans_i", (stage,), results=_sums), executor)
    if not sums["w"].any():
        raise no_neighbours(radius)
    tables = []
    for place, slide in enumerate(sums.pop("slide")):
        measured = index_of({name: value[place] for name, value in sums.items()})
        n_cells = int(sums["n"][place])
        table = {name: measured[name] for name in ("morans_i", "z", "p_value", "expected")}
        index = pd.MultiIndex.from_product([[slides.names[slide]], names], names=["slice", "gene"])
        tables.append(pd.DataFrame(table | {"n_cells": n_cells}, index=index))
    return pd.concat(tables)


def _sums(values: Any) -> dict[str, Any]:
    return values["sums"]
