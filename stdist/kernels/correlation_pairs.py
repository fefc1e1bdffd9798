"""Correlations between a gene in cells of one type and a gene in their neighbours of another.

For the ordered pair (a, b) of cell types, x is the expression of a gene in the cells of type a,
and z the sum of the expression of another over the neighbours of type b of each of these cells
(0 without such neighbours). Pearson's correlation of x and z needs sums of x, z, x^2, z^2 and xz,
which add up over blocks of cells. Rows of x and z are sparse (CSR), the pairs of genes are listed
by the gene of x, and an ordered pair of types has a number: cost and memory grow with the
expressed genes, not with the square of the panel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from stdist.kernels.keyed_random import uniform

Ints = NDArray[np.int64]
Rows = NDArray[np.int32]
Floats = NDArray[np.float64]
Csr = tuple[Ints, Rows, Floats]

_FLAT = 1e-12
"""Share of the sum of squares below which a variance is rounding."""


@dataclass(frozen=True)
class GenePairs:
    """Pairs (gene of x, gene of z), sorted by the gene of x.

    ``start`` ``(n_genes + 1,)`` int64: the pairs of gene `g` are ``start[g]:start[g + 1]``;
    ``z`` ``(n_pairs,)`` int64 their genes of z; ``order``: the pairs in the order they were given
    are ``sorted_values[..., order]``.
    """

    start: Ints
    z: Ints
    order: Ints

    @property
    def x(self) -> Ints:
        """Genes of x, ``(n_pairs,)``."""
        return np.repeat(np.arange(len(self.start) - 1), np.diff(self.start))

    @classmethod
    def of(cls, x: ArrayLike, z: ArrayLike, n_genes: int) -> GenePairs:
        """Sort pairs of gene numbers.

        Examples
        --------
        >>> GenePairs.of([2, 0, 2], [1, 1, 0], 3).z
        array([1, 1, 0])
        """
        first, second = np.asarray(x, np.int64), np.asarray(z, np.int64)
        by_x = np.argsort(first, kind="stable")
        start = np.concatenate([[0], np.cumsum(np.bincount(first, minlength=n_genes))])
        order = np.empty_like(by_x)
        order[by_x] = np.arange(len(by_x))
        return cls(start.astype(np.int64), second[by_x], order)


@dataclass(frozen=True)
class NeighborSums:
    """Rows of z: one for each cell and each type among its neighbours.

    ``cell`` int32 and ``pair`` int32 (ordered pair of types) of each row, ``(n_rows,)``; the rows
    themselves as CSR: ``indptr``, ``genes``, ``values``.
    """

    cell: Rows
    pair: Rows
    indptr: Ints
    genes: Rows
    values: Floats

    @property
    def csr(self) -> Csr:
        """The rows of z."""
        return self.indptr, self.genes, self.values


def neighbor_sums(
    cells: Rows,
    graph: tuple[Ints, Rows],
    types: Rows,
    pair_numbers: Rows,
    expression: Csr,
    n_genes: int,
    depth: Floats | None = None,
    target: float = 1.0,
) -> NeighborSums:
    """Sum expression over the neighbours of each type.

    Parameters
    ----------
    cells
        Cells whose neighbours are summed, int32.
    graph
        Neighbours sorted by type (`stdist.kernels.spatial_neighbors.nearest_of_other_types`).
    types
        Codes of all cells, ``(n_cells,)`` int32.
    pair_numbers
        ``(n_types, n_types)`` int32: number of the ordered pair of types, -1 to leave it out.
    expression
        CSR rows of all cells: ``indptr`` int64, ``genes`` int32, ``values`` float64.
    n_genes
        Number of columns.
    depth
        ``(n_cells,)`` float64. If given, the sums are of counts, and become
        ``log1p(target * counts / depth)`` of the neighbours taken together.
    target
        Depth after this scaling.

    Examples
    --------
    >>> graph = np.array([0, 2, 2, 2]), np.array([1, 2], np.int32)
    >>> types, numbers = np.array([0, 1, 1], np.int32), np.array([[-1, 0], [-1, -1]], np.int32)
    >>> rows = np.array([0, 0, 1, 2]), np.array([1, 1], np.int32), np.array([2.0, 3.0])
    >>> neighbor_sums(np.array([0], np.int32), graph, types, numbers, rows, 2).csr
    (array([0, 1]), array([1], dtype=int32), array([5.]))
    """
    depths = np.empty(0) if depth is None else depth
    arguments = (cells, *graph, types, pair_numbers, *expression, n_genes, depths, target)
    return NeighborSums(*_neighbor_sums(*arguments))


@njit(nogil=True, cache=True)
def _neighbor_sums(
    cells: Rows,
    graph_start: Ints,
    neighbours: Rows,
    types: Rows,
    pair_numbers: Rows,
    indptr: Ints,
    genes: Rows,
    values: Floats,
    n_genes: int,
    depth: Floats,
    target: float,
) -> tuple[Rows, Rows, Ints, Rows, Floats]:
    most = 0
    for i in cells:
        most += graph_start[i + 1] - graph_start[i]
    z_cell, z_pair = np.empty(most, np.int32), np.empty(most, np.int32)
    z_start, n_rows = np.zeros(most + 1, np.int64), 0
    z_genes, z_values, filled = np.empty(1024, np.int32), np.empty(1024), 0
    total, touched = np.zeros(n_genes), np.empty(n_genes, np.int32)
    last_row = np.full(n_genes, -1)
    for i in cells:
        at = graph_start[i]
        while at < graph_start[i + 1]:
            kind, n, around = types[neighbours[at]], 0, 0.0
            number = pair_numbers[types[i], kind]
            while at < graph_start[i + 1] and types[neighbours[at]] == kind:
                j = neighbours[at]
                at += 1
                if number < 0:
                    continue
                if len(depth):
                    around += depth[j]
                for entry in range(indptr[j], indptr[j + 1]):
                    gene = genes[entry]
                    if last_row[gene] != n_rows:
                        last_row[gene] = n_rows
                        touched[n] = gene
                        n += 1
                    total[gene] += values[entry]
            if number < 0:
                continue
            if filled + n > len(z_genes):
                size = max(2 * len(z_genes), filled + n)
                longer_genes, longer_values = np.empty(size, np.int32), np.empty(size)
                longer_genes[:filled], longer_values[:filled] = z_genes[:filled], z_values[:filled]
                z_genes, z_values = longer_genes, longer_values
            for place in range(n):
                gene = touched[place]
                value = total[gene]
                total[gene] = 0.0
                z_genes[filled] = gene
                z_values[filled] = np.log1p(target * value / around) if len(depth) else value
                filled += 1
            z_cell[n_rows], z_pair[n_rows] = i, number
            n_rows += 1
            z_start[n_rows] = filled
    return (
        z_cell[:n_rows].copy(),
        z_pair[:n_rows].copy(),
        z_start[: n_rows + 1].copy(),
        z_genes[:filled].copy(),
        z_values[:filled].copy(),
    )


def cross_sums(
    rows: NeighborSums, expression: Csr, pairs: GenePairs, n_type_pairs: int
) -> dict[str, NDArray[Any]]:
    """Sums of z, z^2 and x * z over the rows, and their number, by pair of types.

    Returns
    -------
    dict
        ``z`` and ``zz`` ``(n_type_pairs, n_genes)`` float64, ``xz`` as in `product_sums`, and
        ``cells`` ``(n_type_pairs,)`` int64.
    """
    n_genes = len(pairs.start) - 1
    shape, size = (n_type_pairs, n_genes), n_type_pairs * n_genes
    at = np.repeat(rows.pair, np.diff(rows.indptr)).astype(np.int64) * n_genes + rows.genes
    return {
        "z": np.bincount(at, rows.values, size).reshape(shape),
        "zz": np.bincount(at, rows.values**2, size).reshape(shape),
        "xz": product_sums(rows, expression, pairs, n_type_pairs),
        "cells": np.bincount(rows.pair, minlength=n_type_pairs),
    }


def product_sums(
    rows: NeighborSums, expression: Csr, pairs: GenePairs, n_type_pairs: int
) -> Floats:
    """Sums of x * z over the cells, ``(n_type_pairs, n_pairs)`` float64, pairs as in `pairs.z`.

    Examples
    --------
    >>> rows = NeighborSums(np.array([0], np.int32), np.array([0], np.int32), np.array([0, 1]),
    ...                     np.array([1], np.int32), np.array([5.0]))
    >>> x = np.array([0, 1]), np.array([0], np.int32), np.array([2.0])
    >>> product_sums(rows, x, GenePairs.of([0], [1], 2), 1)
    array([[10.]])
    """
    return permuted_product_sums(rows, expression, pairs, n_type_pairs, rows.cell[None, :])[0]


def permuted_product_sums(
    rows: NeighborSums, expression: Csr, pairs: GenePairs, n_type_pairs: int, place: Rows
) -> Floats:
    """Sums of x * z where other cells stand in the places of the cells.

    Parameters
    ----------
    rows, expression, pairs, n_type_pairs
        As in `product_sums`.
    place
        ``(n_draws, n_rows)`` int32: the cell whose x meets each row of z.

    Returns
    -------
    ndarray
        ``(n_draws, n_type_pairs, n_pairs)`` float64.
    """
    total = np.zeros((len(place), n_type_pairs, len(pairs.z)))
    z = np.zeros(len(pairs.start) - 1)
    _add_products(place, rows.pair, *rows.csr, *expression, pairs.start, pairs.z, z, total)
    return total


@njit(nogil=True, cache=True)
def _add_products(
    place: Rows,
    z_pair: Rows,
    z_start: Ints,
    z_genes: Rows,
    z_values: Floats,
    indptr: Ints,
    genes: Rows,
    values: Floats,
    pair_start: Ints,
    pair_z: Ints,
    z: Floats,
    total: Floats,
) -> None:
    """Add x * z for every draw; `z` is a scratch row of zeros."""
    for row in range(len(z_pair)):
        for entry in range(z_start[row], z_start[row + 1]):
            z[z_genes[entry]] = z_values[entry]
        for draw in range(len(place)):
            i, sums = place[draw, row], total[draw, z_pair[row]]
            for entry in range(indptr[i], indptr[i + 1]):
                x, gene = values[entry], genes[entry]
                for pair in range(pair_start[gene], pair_start[gene + 1]):
                    sums[pair] += x * z[pair_z[pair]]
        for entry in range(z_start[row], z_start[row + 1]):
            z[z_genes[entry]] = 0.0


@njit(nogil=True, cache=True)
def keyed_permutation(key: np.uint64, n: int) -> Ints:
    """Permutation of ``0 .. n - 1``, int64: Fisher and Yates's shuffle on keyed uniforms.

    Examples
    --------
    >>> sorted(keyed_permutation(np.uint64(7), 4).tolist())
    [0, 1, 2, 3]
    """
    order = np.arange(n)
    for last in range(n - 1, 0, -1):
        other = int(uniform(key, np.uint64(last)) * (last + 1))
        order[last], order[other] = order[other], order[last]
    return order


def correlations(
    n: ArrayLike, x: ArrayLike, xx: ArrayLike, z: ArrayLike, zz: ArrayLike, xz: ArrayLike
) -> Floats:
    """Pearson's correlation from the number of cells and sums; NaN where a variance is zero.

    Examples
    --------
    >>> correlations(3, 3.0, 5.0, 6.0, 20.0, 10.0)
    array(1.)
    """
    count = np.asarray(n, np.float64)
    x_square, z_square = np.asarray(xx, np.float64), np.asarray(zz, np.float64)
    x_spread = count * x_square - np.square(x)
    z_spread = count * z_square - np.square(z)
    varies = (x_spread > _FLAT * count * x_square) & (z_spread > _FLAT * count * z_square)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (count * np.asarray(xz) - np.multiply(x, z)) / np.sqrt(x_spread * z_spread)
    return np.where(varies, found, np.nan)
