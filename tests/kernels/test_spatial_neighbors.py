from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from stdist.kernels.spatial_neighbors import nearest_of_other_types, nearest_within


def lists(graph):
    indptr, neighbours = graph
    return [neighbours[a:b].tolist() for a, b in itertools.pairwise(indptr)]


def by_definition(points, radius, k, types=None):
    """All distances, sorted by distance and row; the text of the paper, cell by cell."""
    points = np.asarray(points, float)
    squared = ((points[:, None] - points[None]) ** 2).sum(axis=2)
    found = []
    for i in range(len(points)):
        order = [j for j in np.lexsort((np.arange(len(points)), squared[i])) if j != i]
        if types is None:
            near = order[:k]
        else:
            near = []
            for other in sorted(set(types) - {types[i]}):
                nearest = [j for j in order if types[j] in (types[i], other)][:k]
                near += [j for j in nearest if types[j] == other]
        found.append([int(j) for j in near if squared[i, j] <= radius * radius])
    return found


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(0, 90),
    k=st.integers(1, 12),
    radius=st.sampled_from([0.3, 1.0, 2.5, 40.0]),
    lattice=st.booleans(),
    stretch=st.sampled_from([1.0, 0.0, 1e4]),
)
@settings(max_examples=120)
def test_neighbours_are_those_of_the_definition(seed, n, k, radius, lattice, stretch):
    """On lattices, where most distances tie, on lines, and over wide ranges."""
    rng = np.random.default_rng(seed)
    points = rng.integers(-3, 4, (n, 2)).astype(float) if lattice else rng.normal(size=(n, 2)) * 3
    points[:, 1] *= stretch
    types = rng.integers(0, 4, n)
    assert lists(nearest_within(points, radius, k)) == by_definition(points, radius, k)
    typed = nearest_of_other_types(points, types, radius, k)
    assert lists(typed) == by_definition(points, radius, k, types.tolist())


def test_neighbours_are_those_of_a_tree():
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.random((3000, 2)) * 800, 400 + rng.normal(size=(1500, 2)) * 6])
    graph = lists(nearest_within(points, 30.0, 8))
    _, nearest = cKDTree(points).query(points, 9, distance_upper_bound=30.0)
    expected = [[j for j in row[1:].tolist() if j < len(points)] for row in nearest]
    assert graph == expected
    assert max(map(len, graph)) == 8
    assert min(map(len, graph)) < 8


def test_only_queried_cells_have_neighbours():
    points = np.random.default_rng(1).random((50, 2))
    query = np.arange(50) % 3 == 0
    whole = lists(nearest_within(points, 0.4, 5))
    part = lists(nearest_within(points, 0.4, 5, query))
    assert part == [near if asked else [] for near, asked in zip(whole, query, strict=True)]


@pytest.mark.parametrize(
    ("points", "radius", "k"), [([[0, 0]], 0, 1), ([[0, 0]], 1, 0), ([0.0], 1, 1)]
)
def test_what_cannot_be_meant_is_refused(points, radius, k):
    with pytest.raises(ValueError, match="must be"):
        nearest_within(points, radius, k)
