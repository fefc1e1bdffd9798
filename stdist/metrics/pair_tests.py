"""Ligand-receptor pairs between neighbouring cell types, tested by permutation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control

from stdist.graph import Each, Program, run_in_memory
from stdist.kernels import correlation_device, correlation_pairs
from stdist.kernels.array_module import array_module, host_array
from stdist.kernels.correlation_pairs import correlations, keyed_permutation
from stdist.kernels.group_sums import sum_by_group
from stdist.kernels.keyed_random import stream_key
from stdist.methods.data import Data, open_data
from stdist.metrics.neighborhoods import (
    ChosenGenes,
    TypePairs,
    check_size,
    choose_gene_pairs,
    choose_type_pairs,
    no_neighbours,
    read_pairs,
    typed_graph,
)
from stdist.metrics.passes import check_positive, executor_of
from stdist.metrics.strips import Strip, StripCells, cut_strips, read_strip, strip_bytes
from stdist.metrics.survey import Slides, Survey, open_slides, survey
from stdist.preprocess.bound import TileWorkspace
from stdist.store import InputError

PANEL = 512
"""Pairs of genes that one task tests on one slide."""
BATCH = 32
"""Permutations that are summed together."""
CHUNK_ENTRIES = 2**22
"""Entries of neighbour sums that are held at once."""
ROUNDING = 1e-9
SIDES = ("greater", "two-sided")
Entries = tuple[Any, Any, Any]


def score_slide(
    item: int,
    *,
    strips: list[Strip],
    slides: Slides,
    ligands: Any,
    receptors: Any,
    types: TypePairs,
    radius: float,
    n_neighbors: int,
    target: float,
    n_permutations: int,
    two_sided: bool,
    seed: int,
) -> dict[str, np.ndarray]:
    """Scores and permutations of one slide for one panel of pairs, ``(n_type_pairs, n_pairs)``.

    Sums are taken where the pairs (`ligands`, `receptors`: columns) are; reading, the search for
    neighbours and the permutations themselves are the host's.
    """
    xp = array_module(ligands)
    n_panels = -(-len(ligands) // PANEL)
    strip, first = strips[item // n_panels], item % n_panels * PANEL
    both = xp.concatenate([genes[first : first + PANEL] for genes in (ligands, receptors)])
    columns, local = xp.unique(both, return_inverse=True)
    x, z = local.reshape(2, -1)
    kernel: Any = correlation_pairs if xp is np else correlation_device
    pairs = kernel.GenePairs.of(x, z, len(columns))
    cells = read_strip(strip, slides.sources, host_array(columns), halo=0.0, target=target)
    graph = typed_graph(cells, radius, n_neighbors)
    entries = xp.asarray(cells.indptr), xp.asarray(cells.genes), xp.asarray(cells.values)
    of_x = _columns_with(pairs.x, len(columns), entries)
    shape = len(types), len(pairs.z)
    found = {"score": np.full(shape, np.nan), "reached": np.zeros(shape, np.int64)}
    found |= {"cells": np.zeros(len(types), np.int64), "with": np.zeros(len(types), np.int64)}
    for source in np.unique(types.source):
        asked = np.flatnonzero(types.source == source)
        of_source = TypePairs.of(
            [(source, other) for other in types.target[asked]], len(types.numbers)
        )
        name = f"{slides.names[strip.slide]}\t{slides.types[source]}"
        keys = [stream_key(seed, "ligand receptor", name, draw) for draw in range(n_permutations)]
        parts = _score_source(
            cells, graph, entries, of_x, pairs, of_source, np.array(keys, np.uint64), two_sided
        )
        for part, value in parts.items():
            found[part][asked] = value
    return found


def _score_source(
    cells: StripCells,
    graph: tuple[np.ndarray, np.ndarray],
    entries: Entries,
    of_x: Entries,
    pairs: Any,
    types: TypePairs,
    keys: np.ndarray,
    two_sided: bool,
) -> dict[str, np.ndarray]:
    """Score the pairs of one source type, and count the permutations that reach each score.

    `entries` are the CSR rows of all genes, `of_x` those of the ligands.
    """
    xp = array_module(pairs.z)
    kernel: Any = correlation_pairs if xp is np else correlation_device
    own = np.flatnonzero(cells.types == types.source[0]).astype(np.int32)
    n_genes, n_types = cells.n_columns, len(types)
    if xp is np:
        held = np.diff(graph[0])[own] * (int(np.diff(cells.indptr).mean()) + 1)
    else:  # dense rows
        held = np.full(len(own), n_types * n_genes)
    chunks = _chunks(own, held)

    def rows_of(chunk: np.ndarray) -> Any:
        return kernel.neighbor_sums(chunk, graph, cells.types, types.numbers, entries, n_genes)

    total = {
        "z": xp.zeros((n_types, n_genes)),
        "zz": xp.zeros((n_types, n_genes)),
        "xz": xp.zeros((n_types, len(pairs.z))),
        "cells": np.zeros(n_types, np.int64),
    }
    for chunk in chunks:
        for name, value in kernel.cross_sums(rows_of(chunk), of_x, pairs, n_types).items():
            total[name] += value
    z, zz, xz = total["z"][:, pairs.z], total["zz"][:, pairs.z], total["xz"]
    everyone, expression = np.zeros(len(own), np.int64), cells.expression[own]
    x, xx = (
        xp.asarray(sum_by_group(everyone, 1, expression, squares=squares))[0, pairs.x]
        for squares in (False, True)
    )
    chance = x * z / max(1, len(own))
    least = xp.abs(xz - chance) if two_sided else xz - chance
    least = least - ROUNDING * xp.sqrt(xx * zz)
    reached = xp.zeros(xz.shape, np.int64)
    for start in range(0, len(keys), BATCH):
        batch = keys[start : start + BATCH]
        orders = np.stack([own[keyed_permutation(key, len(own))] for key in batch])
        drawn = xp.zeros((len(batch), *xz.shape)) - chance
        for chunk in chunks:
            rows = rows_of(chunk)
            place = orders[:, np.searchsorted(own, rows.cell)]
            drawn += kernel.permuted_product_sums(rows, of_x, pairs, n_types, place)
        reached += ((xp.abs(drawn) if two_sided else drawn) >= least).sum(axis=0)
    return {
        "score": correlations(len(own), *map(host_array, (x, xx, z, zz, xz)))[:, pairs.order],
        "reached": host_array(reached)[:, pairs.order],
        "cells": np.full(n_types, len(own)),
        "with": total["cells"],
    }


def _columns_with(columns: Any, n_columns: int, entries: Entries) -> Entries:
    """Only the entries of these columns, in the same numbering."""
    (indptr, genes, values), xp = entries, array_module(columns)
    kept, before = xp.zeros(n_columns, np.bool_), xp.zeros(len(genes) + 1, np.int64)
    kept[columns] = True
    chosen = kept[genes]
    before[1:] = xp.cumsum(chosen, dtype=np.int64)
    return before[indptr], genes[chosen], values[chosen]


def _chunks(own: np.ndarray, held: np.ndarray) -> list[np.ndarray]:
    """Cut cells so that their neighbour sums, of so many entries each, stay small."""
    bound = np.cumsum(held)
    last = int(bound[-1]) if len(bound) else 0
    cuts = np.searchsorted(bound, np.arange(CHUNK_ENTRIES, last, CHUNK_ENTRIES))
    return [chunk for chunk in np.split(own, cuts) if len(chunk)]


def join_slides(parts: list[dict[str, np.ndarray]], *, n_panels: int) -> dict[str, np.ndarray]:
    """Join panels of pairs, and stack slides."""
    joined: dict[str, list[np.ndarray]] = {name: [] for name in parts[0]}
    for first in range(0, len(parts), n_panels):
        panels = parts[first : first + n_panels]
        for name, values in joined.items():
            own = [part[name] for part in panels]
            values.append(np.concatenate(own, axis=1) if own[0].ndim == 2 else own[0])
    return {name: np.stack(values) for name, values in joined.items()}


def ligand_receptor(
    data: Any,
    *,
    pairs: Any,
    label_key: str,
    slice_key: str | None = None,
    spatial_key: str = "spatial",
    layers: Sequence[str | None] = (None,),
    type_pairs: Sequence[tuple[str, str]] | None = None,
    n_neighbors: int = 30,
    radius: float = 30.0,
    n_permutations: int = 1000,
    alternative: str = "greater",
    rng: int = 0,
    client: Any = None,
) -> pd.DataFrame:
    """Score ligand-receptor pairs between neighbouring cell types, and test them by permutation.

    Parameters
    ----------
    data
        Path of a store, a lazy AnnData of `stdist.io.open`, or an AnnData.
    pairs
        Path of a CSV file, or a data frame, with the columns ``ligand`` and ``receptor``. Pairs
        with a gene that is not in the data are left out, and listed in
        ``table.attrs["absent"]``.
    label_key
        Column of ``obs`` with the cell type.
    slice_key, spatial_key, type_pairs, n_neighbors, radius
        As in `sci`: the ligand is looked for in the cells of the first type of a pair, the
        receptor in their neighbours of the second.
    layers
        One layer with counts (None is ``X``), or two: before and after a correction.
    n_permutations
        Permutations of the cells of one type within one slice.
    alternative
        ``"greater"`` or ``"two-sided"``.
    rng
        Seed of the permutations.
    client
        `distributed.Client`; default as in `stdist.tl.crescendo`.

    Returns
    -------
    pandas.DataFrame
        One row per slice, ordered pair of types, and pair of genes: ``score`` (the SCI), ``z``
        (score over its standard deviation under permutation), ``p_value``, ``fdr`` (Benjamini
        and Hochberg over all rows), ``n_cells`` and ``n_with_neighbors`` of the source type. With
        two layers the first four end in ``_before`` and ``_after``. NaN where a gene does not
        vary.

    Raises
    ------
    InputError
        If the table of pairs cannot be used, no pair is in the data, or as for `sci`.

    Notes
    -----
    The null hypothesis: within one type and slice, a cell's ligand is independent of the
    receptors around it. The expression of the source cells is permuted, neighbourhoods stay, so
    that only the sum of products changes; ``p = (1 + reached) / (1 + n_permutations)``. Spatial
    trends that both genes follow within a type count as association. The smallest possible p is
    ``1 / (1 + n_permutations)``: with many rows and few permutations the FDR cannot be small;
    ask for fewer types or more permutations.
    The same `rng` gives the same permutations for any pairs, blocks and workers. Each task holds
    one slide and the genes of 512 pairs.

    Examples
    --------
    >>> layers = (None, "crescendo")
    >>> ligand_receptor(
    ...     "cohort.zarr", pairs="pairs.csv", label_key="cell_type", layers=layers
    ... )  # doctest: +SKIP
    """
    check_positive(radius=radius, n_neighbors=n_neighbors, n_permutations=n_permutations)
    if alternative not in SIDES or len(layers) not in (1, 2):
        raise InputError(
            "parameter-range",
            f"alternative is {alternative!r} and there are {len(layers)} layers",
            place="alternative, layers",
            remedy=f"use one of: {', '.join(SIDES)}; and one or two layers",
        )
    opened = open_data(data)
    genes, absent = _chosen_pairs(opened, pairs)
    settings: dict[str, Any] = {"radius": float(radius), "n_neighbors": int(n_neighbors)}
    settings |= {"n_permutations": int(n_permutations), "seed": int(rng)}
    settings |= {"two_sided": alternative == "two-sided"}
    with executor_of(opened, client) as executor:
        tables = []
        for layer in layers:
            slides = open_slides(opened, layer, spatial_key, slice_key, label_key)
            tables.append(_score_layer(opened, slides, genes, type_pairs, settings, executor))
    table = tables[0] if len(tables) == 1 else _beside(*tables)
    table.attrs["absent"] = absent
    return table


def _score_layer(
    opened: Data,
    slides: Slides,
    genes: ChosenGenes,
    type_pairs: Sequence[tuple[str, str]] | None,
    settings: dict[str, Any],
    executor: Any,
) -> pd.DataFrame:
    found = survey(opened, slides, genes.columns, executor, counts=True)
    types = choose_type_pairs(type_pairs, slides.types, found.cells.any(axis=0))
    check_size(len(slides.names), len(types), len(genes))
    strips = cut_strips(found, 0.0, settings["radius"], whole=True)
    n_panels = -(-len(genes) // PANEL)
    stage = Each(
        "tests",
        score_slide,
        slides.sources.named(),
        options={
            "strips": strips,
            "slides": slides,
            "ligands": genes.columns[genes.x],
            "receptors": genes.columns[genes.z],
            "types": types,
            "target": found.target,
            **settings,
        },
        workspace=TileWorkspace(0, _most_bytes(found, strips, genes, opened.n_vars)),
        nanoseconds=max(s.n_cells for s in strips) * (1e4 + 50.0 * settings["n_permutations"]),
        n_items=len(strips) * n_panels,
        on_device=True,
        collect=partial(join_slides, n_panels=n_panels),
    )
    program = Program("ligand_receptor", (stage,), results=_tests)
    tests = run_in_memory(program, executor)
    if not tests["with"].any():
        raise no_neighbours(settings["radius"])
    return _table(tests, strips, slides, genes, types, settings["n_permutations"])


def _most_bytes(found: Survey, strips: list[Strip], genes: ChosenGenes, n_vars: int) -> int:
    """Bound on the bytes of a task: a slide, neighbour sums of a chunk, and permutations."""
    most = 0
    places = [
        np.unique(np.concatenate([genes.x[first : first + PANEL], genes.z[first : first + PANEL]]))
        for first in range(0, len(genes), PANEL)
    ]
    for strip in strips:
        entries = max(int(found.entries[strip.slide, used].sum()) for used in places)
        draws = 4 * BATCH * (int(found.cells[strip.slide].max()) + CHUNK_ENTRIES // 8)
        most = max(most, strip_bytes(strip, n_vars, entries) + 12 * entries + draws)
    most += 40 * CHUNK_ENTRIES + 24 * BATCH * found.cells.shape[1] * min(PANEL, len(genes))
    return most


def _chosen_pairs(opened: Data, pairs: Any) -> tuple[ChosenGenes, list[tuple[str, str]]]:
    table, place = read_pairs(pairs)
    if not {"ligand", "receptor"} <= set(table.columns):
        raise InputError(
            "pairs-columns",
            f"the table of pairs has the columns {', '.join(map(str, table.columns))}",
            place=place,
            remedy="name its columns ligand and receptor",
        )
    table = table[["ligand", "receptor"]].dropna().astype(str).drop_duplicates()
    known = table.isin(set(opened.var_names)).all(axis=1)
    absent = list(table[~known].itertuples(index=False, name=None))
    if not known.any():
        raise InputError(
            "pairs-absent",
            f"none of {len(table)} pairs has both genes in the data",
            place=place,
            remedy=f"use the gene names of the data: {', '.join(map(str, opened.var_names[:3]))}",
        )
    return choose_gene_pairs(opened, table[known]), absent


def _table(
    tests: dict[str, np.ndarray],
    strips: list[Strip],
    slides: Slides,
    genes: ChosenGenes,
    types: TypePairs,
    n_permutations: int,
) -> pd.DataFrame:
    shape = tests["score"].shape
    slide, pair, gene = (place.ravel() for place in np.indices(shape))
    names = [slides.names[strip.slide] for strip in strips]
    score = tests["score"].ravel()
    n_cells = tests["cells"][slide, pair]
    p = np.where(np.isnan(score), np.nan, (1 + tests["reached"].ravel()) / (1 + n_permutations))
    fdr = p.copy()
    tested = ~np.isnan(p)
    fdr[tested] = false_discovery_control(p[tested])
    kinds = np.arange(len(slides.types))
    named = {
        "slice": pd.Categorical.from_codes(slide, names),
        "source": pd.Categorical(types.source[pair], kinds).rename_categories(slides.types),
        "target": pd.Categorical(types.target[pair], kinds).rename_categories(slides.types),
        "ligand": genes.names["gene"].to_numpy(object)[gene],
        "receptor": genes.names["neighbor_gene"].to_numpy(object)[gene],
    }
    measured = {
        "score": score,
        "z": score * np.sqrt(np.maximum(n_cells - 1, 0)),
        "p_value": p,
        "fdr": fdr,
        "n_cells": n_cells,
        "n_with_neighbors": tests["with"][slide, pair],
    }
    return pd.DataFrame(named | measured)


def _beside(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """Put the tests of two layers of the same cells side by side: rows agree."""
    tested = ["score", "z", "p_value", "fdr"]
    kept = [name for name in before.columns if name not in tested]
    sides = [
        table[tested].add_suffix(when) for table, when in ((before, "_before"), (after, "_after"))
    ]
    return pd.concat([before[kept], *sides], axis=1)


def _tests(values: Any) -> dict[str, Any]:
    return values["tests"]
