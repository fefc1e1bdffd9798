from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from stdist.kernels.neighbor_average import donor_average, nearest_donors


@settings(max_examples=30)
@given(
    seed=st.integers(0, 10**6),
    n_cells=st.integers(1, 40),
    n_donors=st.integers(1, 80),
    n_neighbors=st.integers(1, 30),
)
def test_neighbours_are_those_of_a_tree(seed, n_cells, n_donors, n_neighbors):
    rng = np.random.default_rng(seed)
    points, donors = rng.normal(size=(n_cells, 5)), rng.normal(size=(n_donors, 5))
    found = nearest_donors(points, donors, n_neighbors)
    k = min(n_neighbors, n_donors)
    _, wanted = cKDTree(donors).query(points, k=list(range(1, k + 1)))
    assert (found == wanted).all()


def test_equal_donors_are_taken_in_order():
    assert nearest_donors([[0.0]], np.zeros((5, 1)), 3).tolist() == [[0, 1, 2]]


def test_the_average_is_over_the_neighbours():
    rng = np.random.default_rng(0)
    rates, neighbors = rng.random((20, 4)), rng.integers(0, 20, (10, 6))
    np.testing.assert_allclose(donor_average(neighbors, rates), rates[neighbors].mean(axis=1))
