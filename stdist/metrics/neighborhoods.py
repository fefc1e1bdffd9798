"""What measures of neighbouring cell types ask for: slides, pairs of types, pairs of genes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stdist.kernels.spatial_neighbors import nearest_of_other_types
from stdist.methods.data import Data
from stdist.metrics.passes import columns_of
from stdist.metrics.strips import CROWD, StripCells
from stdist.store import InputError

MOST_RESULTS = 2**27
"""Numbers of a result that are kept in memory at once."""
MOST_IN_SQUARE = 2 * CROWD
"""Cells in a square as wide as the radius above which coordinates cannot be right."""


@dataclass(frozen=True)
class TypePairs:
    """Ordered pairs of types: codes of source and target, and the number of each pair."""

    source: np.ndarray
    target: np.ndarray
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.source)

    @classmethod
    def of(cls, pairs: Iterable[tuple[int, int]], n_types: int) -> TypePairs:
        """Number ordered pairs of codes."""
        source, target = np.array(list(pairs), np.int64).reshape(-1, 2).T
        numbers = np.full((n_types, n_types), -1, np.int32)
        numbers[source, target] = np.arange(len(source))
        return cls(source, target, numbers)

    def with_reverse(self) -> TypePairs:
        """These pairs, then those among their reverses that are not among them."""
        asked = list(zip(self.source.tolist(), self.target.tolist(), strict=True))
        reverse = [(b, a) for a, b in asked if self.numbers[b, a] < 0]
        return TypePairs.of(asked + reverse, len(self.numbers))


def choose_type_pairs(
    asked: Sequence[tuple[str, str]] | None, names: list[str], present: np.ndarray
) -> TypePairs:
    """Ordered pairs of different types: those asked for, or all among the types present.

    Raises
    ------
    InputError
        If a type is unknown, a pair is of one type, or there are no two types.
    """
    if asked is None:
        codes = np.flatnonzero(present).tolist()
        pairs = [(a, b) for a in codes for b in codes if a != b]
        if not pairs:
            raise InputError(
                "types-too-few",
                "there are no two cell types",
                place="label_key",
                remedy="name a column with the cell types",
            )
        return TypePairs.of(pairs, len(names))
    number = {name: code for code, name in enumerate(names)}
    wrong = [pair for pair in asked if len(set(pair)) != 2 or not set(pair) <= set(number)]
    if wrong or not asked:
        raise InputError(
            "types-unknown",
            f"{len(wrong)} pairs are not of two known cell types, first {wrong[0]}"
            if wrong
            else "no pair of cell types is named",
            place="type_pairs",
            remedy=f"pair two of: {', '.join(names[:8])} ({len(names)} types)",
        )
    distinct = dict.fromkeys((number[a], number[b]) for a, b in asked)
    return TypePairs.of(distinct, len(names))


@dataclass(frozen=True)
class ChosenGenes:
    """Pairs of genes by name, the columns they need, and their places among these columns."""

    names: pd.DataFrame
    columns: np.ndarray
    x: np.ndarray
    z: np.ndarray

    def __len__(self) -> int:
        return len(self.x)


def read_pairs(pairs: Any) -> tuple[pd.DataFrame, str]:
    """Table of pairs, of a CSV file where a path is given; and where it is, for errors.

    Raises
    ------
    InputError
        If the file cannot be read.
    """
    if not isinstance(pairs, (str, Path)):
        return pd.DataFrame(pairs), "pairs"
    try:
        return pd.read_csv(pairs), str(pairs)
    except (OSError, ValueError) as error:
        raise InputError(
            "pairs-unreadable",
            f"the table of pairs cannot be read ({error})",
            place=str(pairs),
            remedy="give a CSV file with a column for each gene of a pair, under a header",
        ) from error


def choose_gene_pairs(opened: Data, pairs: Any, genes: Sequence[str] | None = None) -> ChosenGenes:
    """Pairs as given (two columns), or all ordered pairs of a list of genes, or of all genes.

    Raises
    ------
    InputError
        If a gene is not in the data, or both a list and pairs are given.
    """
    if pairs is None:
        listed = [str(g) for g in (opened.var_names if genes is None else genes)]
        columns_of(opened, listed)
        table = pd.MultiIndex.from_product([listed, listed]).to_frame(index=False)
    elif genes is None:
        table, place = read_pairs(pairs)
        if table.shape[1] < 2:
            raise InputError(
                "pairs-columns",
                f"the table of pairs has {table.shape[1]} columns",
                place=place,
                remedy="give two: the gene in the cell, and that in its neighbours",
            )
        table = table.iloc[:, :2].astype(str)
    else:
        raise InputError(
            "parameter-conflict",
            "both pairs and genes are given",
            place="pairs, genes",
            remedy="give pairs, or a list of genes of which all pairs are wanted",
        )
    table = table.set_axis(["gene", "neighbor_gene"], axis=1).drop_duplicates(ignore_index=True)
    found = columns_of(opened, [*table["gene"], *table["neighbor_gene"]])
    columns, places = np.unique(found, return_inverse=True)
    x, z = places.reshape(2, -1)
    return ChosenGenes(table, columns, x, z)


def typed_graph(
    strip: StripCells, radius: float, n_neighbors: int
) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours of other types of a strip's own cells."""
    check_crowd(strip, radius)
    return nearest_of_other_types(strip.points, strip.types, radius, n_neighbors, strip.own)


def check_crowd(strip: StripCells, radius: float) -> None:
    """Refuse many cells on one spot, whose neighbours would take hours.

    Raises
    ------
    InputError
        With code cells-crowded, and the place.
    """
    squares = np.floor(strip.points / radius).astype(np.int64)
    _, first, n = np.unique(squares @ [2**32, 1], return_index=True, return_counts=True)
    if n.max(initial=0) > MOST_IN_SQUARE:
        x, y = strip.points[first[n.argmax()]]
        raise InputError(
            "cells-crowded",
            f"{n.max()} cells lie in one square with edges of {radius:g}",
            place=f"around ({x:g}, {y:g}) in obsm",
            remedy="filter out cells without a place of their own, or give a smaller radius",
        )


def check_size(n_slides: int, n_type_pairs: int, n_gene_pairs: int) -> None:
    """Refuse results that do not fit in memory.

    Raises
    ------
    InputError
        With code pairs-too-many.
    """
    size = n_slides * n_type_pairs * n_gene_pairs
    if size > MOST_RESULTS:
        raise InputError(
            "pairs-too-many",
            f"{n_slides} slides x {n_type_pairs} pairs of types x {n_gene_pairs} pairs of genes "
            f"are {size} numbers",
            place="pairs, type_pairs",
            remedy="name fewer pairs of genes, or of types",
        )


def no_neighbours(radius: float) -> InputError:
    """Error: no cell has a neighbour of another type."""
    return InputError(
        "neighbours-none",
        f"no cell has a neighbour within {radius:g}",
        place="radius",
        remedy="give the radius in the unit of the coordinates",
    )
