from __future__ import annotations

import numpy as np
from scipy import sparse

from stdist.kernels.correlation_pairs import (
    GenePairs,
    correlations,
    keyed_permutation,
    neighbor_sums,
    permuted_product_sums,
    product_sums,
)
from stdist.kernels.group_sums import sum_by_group
from stdist.kernels.keyed_random import stream_key
from stdist.kernels.spatial_neighbors import nearest_of_other_types

N, GENES, TYPES = 160, 7, 3


def example(seed=0):
    rng = np.random.default_rng(seed)
    dense = rng.normal(size=(N, GENES)) * (rng.random((N, GENES)) < 0.4)
    dense[:, 6] = 0
    types = rng.integers(0, TYPES, N).astype(np.int32)
    graph = nearest_of_other_types(rng.random((N, 2)), types, 0.2, 6)
    matrix = sparse.csr_matrix(dense)
    rows = matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32), matrix.data
    numbers = np.full((TYPES, TYPES), -1, np.int32)
    numbers[[0, 0, 2], [1, 2, 1]] = [0, 1, 2]
    return dense, types, graph, rows, numbers


def dense_sums(dense, types, graph, numbers):
    """z of each pair of types: rows of all cells, zero where there is no neighbour."""
    found = np.zeros((3, N, GENES))
    for i in range(N):
        for j in graph[1][graph[0][i] : graph[0][i + 1]]:
            if numbers[types[i], types[j]] >= 0:
                found[numbers[types[i], types[j]], i] += dense[j]
    return found


def test_sums_are_those_of_dense_arrays():
    dense, types, graph, rows, numbers = example()
    cells = np.arange(N, dtype=np.int32)
    found = neighbor_sums(cells, graph, types, numbers, rows, GENES)
    z = dense_sums(dense, types, graph, numbers)
    matrix = sparse.csr_matrix((found.values, found.genes, found.indptr), (len(found.cell), GENES))
    np.testing.assert_allclose(matrix.toarray(), z[found.pair, found.cell], atol=1e-12)
    assert len(set(zip(found.cell.tolist(), found.pair.tolist(), strict=True))) == len(found.cell)
    x, of_z = np.array([4, 0, 6, 0, 4]), np.array([1, 2, 0, 0, 4])
    pairs = GenePairs.of(x, of_z, GENES)
    products = product_sums(found, rows, pairs, 3)[:, pairs.order]
    expected = np.einsum("ip,qip->qp", dense[:, x], z[:, :, of_z])
    np.testing.assert_allclose(products, expected, atol=1e-12)


def test_pooled_neighbours_are_normalised_as_one_cell():
    rng = np.random.default_rng(1)
    _, types, graph, rows, numbers = example()
    depth, counts = rng.uniform(1, 9, N), np.ceil(np.abs(rows[2]))
    rows = (*rows[:2], counts)
    dense = sparse.csr_matrix((counts, rows[1], rows[0]), (N, GENES)).toarray()
    cells = np.arange(N, dtype=np.int32)
    found = neighbor_sums(cells, graph, types, numbers, rows, GENES, depth, 4.0)
    around = dense_sums(np.column_stack([dense, depth])[:, -GENES:], types, graph, numbers)[..., -1]
    z = dense_sums(dense, types, graph, numbers)[found.pair, found.cell]
    expected = np.log1p(4.0 * z / around[found.pair, found.cell, None])
    matrix = sparse.csr_matrix((found.values, found.genes, found.indptr), expected.shape)
    np.testing.assert_allclose(matrix.toarray(), expected, rtol=1e-12)


def test_permutations_move_the_expression_of_the_given_cells():
    dense, types, graph, rows, numbers = example(2)
    own = np.flatnonzero(types == 0).astype(np.int32)
    found = neighbor_sums(own, graph, types, numbers, rows, GENES)
    pairs = GenePairs.of([0, 3, 5], [1, 2, 5], GENES)
    keys = np.array([stream_key(0, "test", "pair", draw) for draw in range(4)], np.uint64)
    orders = np.stack([own[keyed_permutation(key, len(own))] for key in keys])
    place = orders[:, np.searchsorted(own, found.cell)]
    drawn = permuted_product_sums(found, rows, pairs, 3, place)
    z = dense_sums(dense, types, graph, numbers)
    for order, sums in zip(orders, drawn, strict=True):
        moved = dense.copy()
        moved[own] = dense[order]
        expected = np.einsum("ip,qip->qp", moved[own][:, [0, 3, 5]], z[:, own][:, :, [1, 2, 5]])
        np.testing.assert_allclose(sums[:2], expected[:2], atol=1e-12)


def test_permutations_are_uniform():
    keys = [stream_key(1, "test", "permutation", draw) for draw in range(6000)]
    orders = np.array([keyed_permutation(key, 3) for key in keys])
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 6
    assert ((counts - 1000) ** 2 / 1000).sum() < 20.5  # chi-square, 5 degrees: p = 0.001


def test_correlations_are_pearsons():
    rng = np.random.default_rng(3)
    x, z = rng.random((2, 50)) + 3
    sums = [np.array([*values, 7.0 * 50]) for values in ([x.sum()], [z.sum()])]
    xx, zz = np.array([x @ x, 49.0 * 50]), np.array([z @ z, 49.0 * 50])
    found = correlations(50, sums[0], xx, sums[1], zz, np.array([x @ z, 49.0 * 50]))
    np.testing.assert_allclose(found[0], np.corrcoef(x, z)[0, 1], rtol=1e-10)
    assert np.isnan(found[1])


def test_group_sums_of_dense_and_csr_rows():
    rng = np.random.default_rng(4)
    counts = rng.poisson(0.7, (200, 5)).astype(np.uint16)
    codes = rng.integers(-1, 4, 200)
    for squares in (False, True):
        values = counts.astype(float) ** (2 if squares else 1)
        expected = np.stack([values[codes == group].sum(axis=0) for group in range(4)])
        for rows in (counts, sparse.csr_matrix(counts), counts.astype(np.float32)):
            found = sum_by_group(codes, 4, rows, squares=squares)
            np.testing.assert_array_equal(found, expected)
