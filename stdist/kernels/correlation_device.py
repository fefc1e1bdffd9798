"""The sums of `correlation_pairs` on a device, as products of dense rows (CuPy).

Names and arguments are those of `correlation_pairs`, with expression and genes on the device; who
is whose neighbour is found on the host. Pairs of genes are picked from the product of all genes
that occur in them, and the neighbours' types stand beside each other: one product for a draw.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from stdist.kernels import correlation_pairs as on_host
from stdist.kernels.array_module import array_module
from stdist.kernels.correlation_pairs import Floats, Ints, Rows
from stdist.kernels.device_rows import Array, Matrix, dense_rows, sum_rows
from stdist.kernels.moments import membership_sums


@dataclass(frozen=True)
class GenePairs:
    """Pairs (gene of x, gene of z), in the order they were given.

    ``x_genes`` and ``z_genes`` are the genes that occur, ``place`` the places of the pairs in the
    product of the two.
    """

    x: Array
    z: Array
    x_genes: Array
    z_genes: Array
    place: tuple[Array, Array]
    order: ClassVar[slice] = slice(None)

    @classmethod
    def of(cls, x: Array, z: Array, n_genes: int) -> GenePairs:
        """Find the genes in pairs of gene numbers."""
        xp = array_module(x)
        (x_genes, row), (z_genes, column) = (xp.unique(g, return_inverse=True) for g in (x, z))
        return cls(x, z, x_genes, z_genes, (row, column))


@dataclass(frozen=True)
class NeighborSums:
    """Rows of z: `cell` and `pair` as on the host, ``values`` ``(n_rows, n_genes)`` float64."""

    cell: Rows
    pair: Rows
    values: Array


def neighbor_sums(
    cells: Rows,
    graph: tuple[Ints, Rows],
    types: Rows,
    pair_numbers: Rows,
    expression: Matrix,
    n_genes: int,
    depth: Floats | None = None,
    target: float = 1.0,
) -> NeighborSums:
    """Sum expression over the neighbours of each type."""
    n = len(types)
    # sums of the rows of the identity are the lists of neighbours
    identity = np.arange(n + 1), np.arange(n, dtype=np.int32), np.ones(n)
    lists = on_host.neighbor_sums(cells, graph, types, pair_numbers, identity, n)
    first = lists.indptr[:-1]
    sums = sum_rows(first, np.diff(lists.indptr), lists.genes, expression, n_genes)
    if depth is not None:
        xp = array_module(sums)
        around = np.add.reduceat(depth[lists.genes], first)
        sums = xp.log1p(target * sums / xp.asarray(np.where(around > 0, around, 1.0))[:, None])
    return NeighborSums(lists.cell, lists.pair, sums)


def cross_sums(
    rows: NeighborSums, expression: Matrix, pairs: GenePairs, n_type_pairs: int
) -> dict[str, Any]:
    """Sums of z, z^2 and x * z over the rows, and their number, by pair of types."""
    number = array_module(rows.values).asarray(rows.pair)
    unmoved = rows.cell[None, :]
    return {
        "z": membership_sums(number, n_type_pairs, rows.values),
        "zz": membership_sums(number, n_type_pairs, rows.values * rows.values),
        "xz": permuted_product_sums(rows, expression, pairs, n_type_pairs, unmoved)[0],
        "cells": np.bincount(rows.pair, minlength=n_type_pairs),
    }


def permuted_product_sums(
    rows: NeighborSums, expression: Matrix, pairs: GenePairs, n_type_pairs: int, place: Rows
) -> Array:
    """Sums of x * z where other cells stand in the places of the cells."""
    xp, n_genes = array_module(rows.values), rows.values.shape[1]
    total = xp.zeros((len(place), n_type_pairs, len(pairs.x)))
    if not rows.cell.size:
        return total
    cells, first, row = np.unique(rows.cell, return_index=True, return_inverse=True)
    numbers, beside = np.unique(rows.pair, return_inverse=True)
    z = xp.zeros((len(cells), len(numbers), len(pairs.z_genes)))
    z[xp.asarray(row), xp.asarray(beside)] = rows.values[:, pairs.z_genes]
    shape, found = (-1, *z.shape[1:]), xp.asarray(numbers)
    for draw, chosen in enumerate(place[:, first]):
        x = dense_rows(chosen, expression, n_genes)[:, pairs.x_genes]
        products = (x.T @ z.reshape(len(cells), -1)).reshape(shape)
        total[draw, found] = products.swapaxes(0, 1)[:, pairs.place[0], pairs.place[1]]
    return total
