"""Spatial cross-correlation index between genes of neighbouring cell types."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from stdist.graph import Each, Program, run_in_memory
from stdist.kernels import correlation_device, correlation_pairs
from stdist.kernels.array_module import array_module, host_array
from stdist.methods.data import open_data
from stdist.metrics.neighborhoods import (
    MOST_RESULTS,
    ChosenGenes,
    TypePairs,
    check_size,
    choose_gene_pairs,
    choose_type_pairs,
    no_neighbours,
    typed_graph,
)
from stdist.metrics.passes import check_positive, executor_of
from stdist.metrics.strips import Strip, cut_strips, read_strip, strip_bytes
from stdist.metrics.survey import Slides, SlideSources, Survey, open_slides, survey
from stdist.preprocess.bound import TileWorkspace
from stdist.store import InputError

if TYPE_CHECKING:
    import xarray

PANEL_NUMBERS = 2**23
"""Sums of products that one task holds."""
CHUNK_ENTRIES = 2**22
"""Entries of neighbour sums that are held at once."""


def sum_strips(
    item: int, *, groups: list[list[Strip]], gene_x: Any, panel_size: int, **settings: Any
) -> dict[str, Any]:
    """Sums of a group of strips of one slide, for one panel of gene pairs."""
    n_panels = -(-len(gene_x) // panel_size)
    group, panel = groups[item // n_panels], item % n_panels
    chosen = slice(panel * panel_size, (panel + 1) * panel_size)
    total: dict[str, Any] = {}
    for strip in group:
        for name, value in _sum_strip(strip, chosen, gene_x=gene_x, **settings).items():
            total[name] = total[name] + value if name in total else value
    return total


def _sum_strip(
    strip: Strip,
    chosen: slice,
    *,
    sources: SlideSources,
    columns: Any,
    gene_x: Any,
    gene_z: Any,
    types: TypePairs,
    radius: float,
    n_neighbors: int,
    target: float | None,
    pooled: bool,
) -> dict[str, Any]:
    """Sums of a strip: of x by type, of z by pair of types, of x z for one panel of gene pairs.

    Neighbours are summed where `columns` and the pairs (`gene_x`, `gene_z`: places among them)
    are; reading, the search for neighbours and the sums of x are the host's.
    """
    xp = array_module(columns)
    kernel: Any = correlation_pairs if xp is np else correlation_device
    n_genes, n_types, n_pairs = len(columns), len(types.numbers), len(types)
    pairs = kernel.GenePairs.of(gene_x[chosen], gene_z[chosen], n_genes)
    cells = read_strip(strip, sources, host_array(columns), halo=radius, target=target)
    graph = typed_graph(cells, radius, n_neighbors)
    own, step = np.flatnonzero(cells.own).astype(np.int32), _chunk(strip)
    if xp is not np:  # dense rows: a chunk of one source type has few pairs of types
        own = own[np.argsort(cells.types[own], kind="stable")]
        step = max(64, CHUNK_ENTRIES // (n_types * n_genes))
    x = xp.asarray(cells.indptr), xp.asarray(cells.genes), xp.asarray(cells.values)
    summed = (*x[:2], xp.asarray(cells.counts)) if pooled else x
    depth = (cells.depth, target or 1.0) if pooled else (None, 1.0)
    kind = np.where(cells.own, cells.types, -1).repeat(np.diff(cells.indptr))
    counted, by_type = kind >= 0, (n_types, n_genes)
    of_x = kind[counted], cells.genes[counted], cells.values[counted]
    total = {
        "x": _sum_by(*of_x, by_type),
        "xx": _sum_by(*of_x[:2], of_x[2] ** 2, by_type),
        "z": xp.zeros((n_pairs, n_genes)),
        "zz": xp.zeros((n_pairs, n_genes)),
        "xz": xp.zeros((n_pairs, len(pairs.z))),
        "cells": np.zeros(n_pairs, np.int64),
    }
    for start in range(0, len(own), step):
        chunk = own[start : start + step]
        rows = kernel.neighbor_sums(
            chunk, graph, cells.types, types.numbers, summed, n_genes, *depth
        )
        for name, value in kernel.cross_sums(rows, x, pairs, n_pairs).items():
            total[name] += value
    total["xz"] = total["xz"][:, pairs.order]
    return total


def _chunk(strip: Strip) -> int:
    """Cells whose neighbour sums are held at once."""
    entries = strip.n_entries / max(1, strip.n_cells) * max(1.0, strip.n_around)
    return max(64, int(CHUNK_ENTRIES / max(1.0, entries)))


def _sum_by(
    group: np.ndarray, column: np.ndarray, values: np.ndarray, shape: tuple[int, int]
) -> np.ndarray:
    at = group.astype(np.int64) * shape[1] + column
    return np.bincount(at, values, shape[0] * shape[1]).reshape(shape)


def join_groups(
    parts: list[dict[str, np.ndarray]], *, slide_of: list[int], n_slides: int
) -> dict[str, np.ndarray]:
    """Add the groups of strips of each slide, and join the panels of gene pairs."""
    n_panels = len(parts) // len(slide_of)
    total: dict[str, np.ndarray] = {}
    for name in parts[0]:
        panels = [
            _added([part[name] for part in parts[panel::n_panels]], slide_of, n_slides)
            for panel in range(n_panels if name == "xz" else 1)
        ]
        total[name] = np.concatenate(panels, axis=-1)
    return total


def _added(values: list[np.ndarray], slide_of: list[int], n_slides: int) -> np.ndarray:
    total = np.zeros((n_slides, *values[0].shape), values[0].dtype)
    for slide, value in zip(slide_of, values, strict=True):
        total[slide] += value
    return total


def _group(strips: list[Strip], numbers: int) -> list[list[Strip]]:
    """Strips of one slide that one task adds up: as few as the client can hold the sums of."""
    slides = [[strip for strip in strips if strip.slide == s] for s in {x.slide for x in strips}]
    most = max(1, MOST_RESULTS // max(1, numbers * len(slides)))
    groups = []
    for mine in slides:
        cuts = np.array_split(np.arange(len(mine)), min(most, len(mine)))
        groups += [[mine[at] for at in cut] for cut in cuts]
    return groups


def sci(
    data: Any,
    *,
    label_key: str,
    slice_key: str | None = None,
    spatial_key: str = "spatial",
    layer: str | None = None,
    pairs: Any = None,
    genes: Sequence[str] | None = None,
    type_pairs: Sequence[tuple[str, str]] | None = None,
    n_neighbors: int = 30,
    radius: float = 30.0,
    normalize: bool = True,
    sums_of: str = "normalized",
    cells: str = "source",
    client: Any = None,
) -> xarray.Dataset:
    """Spatial cross-correlation index (SCI) of pairs of genes between neighbouring cell types.

    Parameters
    ----------
    data
        Path of a store, a lazy AnnData of `stdist.io.open`, or an AnnData.
    label_key
        Column of ``obs`` with the cell type.
    slice_key
        Column of ``obs`` with the slice; cells of different slices are no neighbours. Default:
        all cells are one slice.
    spatial_key
        Entry of ``obsm`` with x and y.
    layer
        Layer with counts; default ``X``.
    pairs
        Pairs (gene in the cell, gene in its neighbours): a sequence of pairs, or a data frame or
        the path of a CSV file with these two columns first.
    genes
        In place of `pairs`: all ordered pairs of these genes; default: of all genes.
    type_pairs
        Ordered pairs (type of the cell, type of its neighbours); default: all.
    n_neighbors
        Nearest neighbours of a cell, among the cells of the two types, itself excluded.
    radius
        Neighbours farther away are dropped; in the unit of the coordinates (um in the paper).
    normalize
        Correlate ``log1p(count / depth * median depth)``; False: the layer's values as they are.
    sums_of
        ``"normalized"``: z sums the normalised values of the neighbours. ``"counts"``: the counts
        of the neighbours are summed and then normalised like those of one cell.
    cells
        Correlate over the cells of the first type (``"source"``), or over the cells of both
        types, each with its neighbours of the other (``"both"``).
    client
        `distributed.Client`; default as in `stdist.tl.crescendo`.

    Returns
    -------
    xarray.Dataset
        ``sci`` ``(slice, types, genes)`` float64, NaN where a gene does not vary; ``n_cells``
        ``(slice, types)``, the cells that are correlated, and ``n_with_neighbors``, those of them
        that have a neighbour of the other type. Coordinates ``source`` and ``target`` name the
        pairs of types, ``gene`` and ``neighbor_gene`` those of genes; ``to_dataframe()`` gives a
        tidy table.

    Raises
    ------
    InputError
        If a key, gene or type is unknown, values or coordinates are wrong, no cell has a
        neighbour, or the result would not fit in memory.

    Notes
    -----
    Millard et al., Genome Biology 2025: among the cells of the two types, the nearest neighbours
    of each cell that are of the other type and within the radius; Pearson's correlation of the
    expression x of one gene with the sum z of another over these neighbours (0 without any).
    Neighbours are exact. Slices are cut into strips that are read with a margin of `radius`;
    memory does not grow with the slices. Each strip reads the blocks of its slice that hold one of
    its cells, once for every panel of gene pairs, so cells that are stored in the order of their
    places are read about once.

    Examples
    --------
    >>> pairs = [("Gad1", "Slc17a7")]
    >>> sci("cohort.zarr", label_key="type", slice_key="slide", pairs=pairs)  # doctest: +SKIP
    """
    check_positive(radius=radius, n_neighbors=n_neighbors)
    for name, value, known in (
        ("sums_of", sums_of, ("normalized", "counts")),
        ("cells", cells, ("source", "both")),
    ):
        if value not in known or (value == "counts" and not normalize):
            raise InputError(
                "parameter-range",
                f"{name} is {value!r}" + ("" if value not in known else " without normalize"),
                place=name,
                remedy=f"use one of: {', '.join(known)}; sums of counts are normalised",
            )
    opened = open_data(data)
    chosen = choose_gene_pairs(opened, pairs, genes)
    slides = open_slides(opened, layer, spatial_key, slice_key, label_key)
    with executor_of(opened, client) as executor:
        found = survey(opened, slides, chosen.columns, executor, counts=normalize)
        types = choose_type_pairs(type_pairs, slides.types, found.cells.any(axis=0))
        check_size(len(slides.names), len(types), len(chosen))
        summed = types.with_reverse() if cells == "both" else types
        stage = _stage(
            opened.n_vars,
            slides,
            found,
            chosen,
            summed,
            radius=float(radius),
            n_neighbors=int(n_neighbors),
            target=found.target if normalize else None,
            pooled=sums_of == "counts",
        )
        sums = run_in_memory(Program("sci", (stage,), results=_sums), executor)
    if not sums["cells"].any():
        raise no_neighbours(radius)
    return _dataset(sums, found, slides, chosen, types, summed, both=cells == "both")


def _stage(
    n_vars: int,
    slides: Slides,
    found: Survey,
    genes: ChosenGenes,
    types: TypePairs,
    *,
    radius: float,
    **settings: Any,
) -> Each:
    strips = cut_strips(found, radius, radius)
    size = max(1, min(len(genes), PANEL_NUMBERS // len(types)))
    n_genes, n_codes = len(genes.columns), len(types.numbers)
    sums = 8 * len(types) * (size + 2 * n_genes) + 16 * n_codes * n_genes
    most = max(strip_bytes(strip, n_vars) for strip in strips)
    n_panels = -(-len(genes) // size)
    groups = _group(strips, len(types) * (len(genes) + 2 * n_genes) + 2 * n_codes * n_genes)
    at_once = max(int(strip.n_entries * (1 + strip.n_around)) for strip in strips)
    return Each(
        "sums",
        sum_strips,
        slides.sources.named(),
        options={
            "groups": groups,
            "sources": slides.sources,
            "columns": genes.columns,
            "gene_x": genes.x,
            "gene_z": genes.z,
            "panel_size": size,
            "types": types,
            "radius": radius,
            **settings,
        },
        workspace=TileWorkspace(0, most + 4 * sums + 40 * min(CHUNK_ENTRIES, at_once)),
        nanoseconds=1e4 * max(sum(strip.n_cells for strip in group) for group in groups),
        n_items=len(groups) * n_panels,
        on_device=True,
        collect=partial(
            join_groups, slide_of=[group[0].slide for group in groups], n_slides=len(slides.names)
        ),
    )


def _sums(values: Any) -> dict[str, Any]:
    return values["sums"]


def _dataset(
    sums: dict[str, np.ndarray],
    found: Survey,
    slides: Slides,
    genes: ChosenGenes,
    types: TypePairs,
    summed: TypePairs,
    *,
    both: bool,
) -> xarray.Dataset:
    import xarray

    a, b = types.source, types.target
    pair = summed.numbers[a, b]
    reverse = summed.numbers[b, a]
    n_cells, n_with = found.cells[:, a], sums["cells"][:, pair]
    if both:
        n_cells, n_with = n_cells + found.cells[:, b], n_with + sums["cells"][:, reverse]
    index = np.empty((len(slides.names), len(types), len(genes)))
    for slide, n in enumerate(n_cells):
        of_type = [sums[name][slide][:, genes.x] for name in ("x", "xx")]
        of_pair = [sums[name][slide][:, genes.z] for name in ("z", "zz")]
        of_pair.append(sums["xz"][slide])
        parts = [*(value[a] for value in of_type), *(value[pair] for value in of_pair)]
        if both:
            others = [*(value[b] for value in of_type), *(value[reverse] for value in of_pair)]
            parts = [own + other for own, other in zip(parts, others, strict=True)]
        index[slide] = correlation_pairs.correlations(n[:, None], *parts)
    names = np.asarray(slides.types, dtype=object)
    return xarray.Dataset(
        {
            "sci": (("slice", "types", "genes"), index),
            "n_cells": (("slice", "types"), n_cells),
            "n_with_neighbors": (("slice", "types"), n_with),
        },
        {
            "slice": np.asarray(slides.names, dtype=object),
            "source": ("types", names[a]),
            "target": ("types", names[b]),
            "gene": ("genes", genes.names["gene"].to_numpy(object)),
            "neighbor_gene": ("genes", genes.names["neighbor_gene"].to_numpy(object)),
        },
    )
