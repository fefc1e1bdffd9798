from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.spatial import cKDTree
from scipy.stats import kstest, norm

from stdist.kernels.pair_simulation import pair_model
from stdist.kernels.spot_map import nearest_spots


@pytest.fixture(scope="module")
def pair():
    return pair_model(n_cells=9001, n_genes=12, n_panel=9, n_types=5, square=60.0, seed=4)


@pytest.fixture(scope="module")
def cells(pair):
    return pair.cells(0, pair.n_cells)


@pytest.fixture(scope="module")
def spots(pair):
    return pair.spots(0, pair.n_spots)


def joined(parts, name):
    arrays = [getattr(part, name) for part in parts]
    return sparse.vstack(arrays) if sparse.issparse(arrays[0]) else np.concatenate(arrays)


def same(found, expected):
    if sparse.issparse(expected):
        found, expected = found.toarray(), expected.toarray()
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == expected.dtype


@settings(max_examples=15)
@given(cuts=st.lists(st.floats(0, 1), max_size=5))
def test_any_split_into_blocks_gives_the_same_pair(pair, cells, spots, cuts):
    for whole, make, n in ((cells, pair.cells, pair.n_cells), (spots, pair.spots, pair.n_spots)):
        edges = sorted([0, *(int(cut * n) for cut in cuts), n])
        parts = [make(start, stop) for start, stop in pairwise(edges)]
        for name in whole._fields:
            same(joined(parts, name), getattr(whole, name))


def test_types_and_shapes(pair):
    cells, spots = pair.cells(10, 60), pair.spots(3, 8)
    assert [(a.dtype.name, a.shape) for a in cells] == [
        ("uint16", (50, 9)),
        ("float32", (50, 2)),
        ("int16", (50,)),
        ("float64", (50,)),
        ("int32", (50,)),
    ]
    assert [(a.dtype.name, a.shape) for a in spots] == [
        ("uint32", (5, 12)),
        ("float32", (5, 2)),
        ("float64", (5, 5)),
        ("int32", (5,)),
    ]
    assert sparse.isspmatrix_csr(cells.counts)
    assert pair.cells(7, 7).counts.shape == (0, 9)
    assert pair.spots(7, 7).type_total.shape == (0, 5)


def test_spots_capture_the_cells_nearest_to_them(pair, cells, spots):
    found = nearest_spots(cells.spatial, spots.spatial)
    np.testing.assert_array_equal(cells.spot, found.spot)
    some = cells.spot >= 0
    assert 0.99 < some.mean() < 1
    n_cells = np.bincount(cells.spot[some], minlength=pair.n_spots)
    np.testing.assert_array_equal(spots.n_cells, n_cells)
    totals = np.zeros_like(spots.type_total)
    np.add.at(totals, (cells.spot[some], cells.cell_type[some]), cells.total[some])
    np.testing.assert_array_equal(spots.type_total, totals)


@pytest.mark.parametrize("lattice", ["hexagonal", "square"])
@pytest.mark.parametrize("n_cells", [1, 40, 700, 3000])
@pytest.mark.parametrize("capture_radius", [27.5, 100.0, np.inf])
def test_lattices_are_those_of_a_tree(lattice, n_cells, capture_radius):
    pair = pair_model(
        n_cells=n_cells, n_genes=2, lattice=lattice, capture_radius=capture_radius, seed=n_cells
    )
    cells, spots = pair.cells(0, n_cells), pair.spots(0, pair.n_spots)
    assert (spots.spatial >= 0).all() or pair.tissue.width < 100
    assert (spots.spatial <= pair.tissue.width).all() or pair.tissue.width < 100
    if pair.n_spots > 1:
        nearest = cKDTree(spots.spatial).query(spots.spatial, 2)[0][:, 1]
        np.testing.assert_allclose(nearest, 100.0, atol=1e-3)
    found = nearest_spots(cells.spatial, spots.spatial, capture_radius)
    np.testing.assert_array_equal(cells.spot, found.spot)
    assert spots.n_cells.sum() == (cells.spot >= 0).sum()
    halves = [pair.spots(0, pair.n_spots // 2), pair.spots(pair.n_spots // 2, pair.n_spots)]
    same(joined(halves, "type_total"), spots.type_total)


def test_squares_differ_from_their_neighbours_and_types_are_as_frequent():
    for n_types in (2, 3, 8):
        model = pair_model(n_cells=2_000_000, n_genes=2, n_types=n_types, square=80.0)
        types = model.tissue.square_type
        assert (types[1:] != types[:-1]).all()
        assert (types[:, 1:] != types[:, :-1]).all()
        share = np.bincount(types.ravel()) / types.size
        np.testing.assert_allclose(share, 1 / n_types, atol=0.01)


def test_cells_have_the_type_of_their_square(pair, cells):
    column, row = (cells.spatial // 60.0).astype(int).T
    last = len(pair.tissue.square_type) - 1
    expected = pair.tissue.square_type[np.minimum(row, last), np.minimum(column, last)]
    np.testing.assert_array_equal(cells.cell_type, expected)
    for axis in range(2):
        assert kstest(cells.spatial[:, axis] / pair.tissue.width, "uniform").pvalue > 1e-4
    assert cells.spatial.min() >= 0
    assert cells.spatial.max() <= pair.tissue.width
    assert kstest(np.log(cells.total / 200), norm(-0.125, 0.5).cdf).pvalue > 1e-4


def deviates(counts, mean):
    """Standardised sums over rows, and the mean square of the Pearson residuals."""
    counts = counts.toarray().astype(float)
    sums = (counts.sum(axis=0) - mean.sum(axis=0)) / np.sqrt(mean.sum(axis=0))
    return np.abs(sums).max(), ((counts - mean) ** 2 / mean)[mean > 1].mean()


def test_counts_are_poisson_around_their_means(pair, cells, spots):
    mean = cells.total[:, None] * pair.profiles[cells.cell_type][:, :9]
    largest, dispersion = deviates(cells.counts, mean)
    assert largest < 4
    assert dispersion == pytest.approx(1.0, abs=0.02)
    zero = np.exp(-mean)
    n_zero = mean.size - cells.counts.nnz
    assert abs(n_zero - zero.sum()) < 4.5 * np.sqrt((zero * (1 - zero)).sum())

    mean = (spots.type_total @ pair.profiles) * pair.platform_factor
    largest, dispersion = deviates(spots.counts, mean)
    assert largest < 4
    assert dispersion == pytest.approx(1.0, abs=4.5 * np.sqrt(2 / mean.size))


def test_slides_are_drawn_independently(pair, cells, spots):
    """The Visium counts are not sums of the very Xenium counts."""
    mine, some = np.zeros((pair.n_spots, 9)), cells.spot >= 0
    np.add.at(mine, cells.spot[some], cells.counts[some].toarray())
    panel = pair.profiles[:, :9]
    expected = spots.type_total @ panel
    above = (mine - expected) / np.sqrt(expected)
    other = expected * pair.platform_factor[:9]
    visium = (spots.counts[:, :9].toarray() - other) / np.sqrt(other)
    assert abs((above * visium).mean()) < 4.5 / np.sqrt(above.size)
    # nor do a cell and a spot of the same row share their random numbers
    means = cells.total[: pair.n_spots, None] * panel[cells.cell_type[: pair.n_spots]]
    xenium = (cells.counts[: pair.n_spots].toarray() - means) / np.sqrt(means)
    assert abs((xenium * visium).mean()) < 4.5 / np.sqrt(above.size)


def test_a_shift_moves_coordinates_only():
    straight, moved = (
        pair_model(n_cells=900, n_genes=5, seed=2, shift=shift) for shift in ((0, 0), (30, -20))
    )
    one, other = (pair.spots(0, pair.n_spots) for pair in (straight, moved))
    np.testing.assert_allclose(
        other.spatial - one.spatial, [[30, -20]] * len(one.n_cells), atol=1e-3
    )
    for name in ("counts", "type_total", "n_cells"):
        same(getattr(other, name), getattr(one, name))
    for name, array in straight.cells(0, 900)._asdict().items():
        same(getattr(moved.cells(0, 900), name), array)


def test_profiles_may_be_given():
    given_profiles = np.array([[1.0, 3.0, 0.0], [0.0, 2.0, 6.0]])
    pair = pair_model(n_cells=3000, profiles=given_profiles, mean_total=50.0, platform_sigma=0.0)
    np.testing.assert_array_equal(pair.profiles, [[0.25, 0.75, 0.0], [0.0, 0.25, 0.75]])
    cells = pair.cells(0, 3000)
    for t, profile in enumerate(pair.profiles):
        counts = cells.counts[cells.cell_type == t].toarray()
        assert not counts[:, profile == 0].any()
        np.testing.assert_allclose(counts.sum(axis=0) / counts.sum(), profile, atol=0.01)


def test_profiles_and_factors_have_the_requested_spread():
    pair = pair_model(n_cells=100, n_genes=4000, platform_sigma=0.3, rate_sigma=1.2, type_sigma=0.7)
    assert np.log(pair.platform_factor).std() == pytest.approx(0.3, rel=0.05)
    log_profile = np.log(pair.profiles)
    assert log_profile.std() == pytest.approx(np.hypot(1.2, 0.7), rel=0.05)
    assert log_profile.std(axis=0, ddof=1).mean() == pytest.approx(0.7, rel=0.1)


def test_seed_decides_everything():
    first, again, other = (
        pair_model(n_cells=500, n_genes=6, seed=seed).cells(0, 500) for seed in (5, 5, 6)
    )
    for name in first._fields:
        same(getattr(again, name), getattr(first, name))
        if name != "spot":
            a, b = getattr(first, name), getattr(other, name)
            assert (a != b).sum() > 0


def test_the_million_of_the_benchmark_is_made_by_rows():
    pair = pair_model(n_cells=1_000_000, n_genes=300, cells_per_mm2=5774, seed=1)
    assert 19_500 < pair.n_spots < 20_500
    block = pair.spots(10_000, 10_064)
    assert block.n_cells.mean() == pytest.approx(50, rel=0.05)
    assert (pair.cells(999_990, 1_000_000).spot >= 0).any()


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_cells": 0},
        {"n_panel": 301},
        {"n_types": 1},
        {"profiles": [[1.0, -1.0], [1.0, 0.0]]},
        {"profiles": [[1.0, 1.0], [0.0, 0.0]]},
        {"square": 0.0},
        {"cells_per_mm2": -1.0},
        {"mean_total": float("nan")},
        {"total_sigma": -0.1},
        {"platform_sigma": float("inf")},
        {"lattice": "triangular"},
        {"pitch": 0.0},
        {"capture_radius": 0.0},
        {"shift": (float("nan"), 0.0)},
        {"seed": -1},
    ],
    ids=str,
)
def test_bad_parameters_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=f"out of range: {next(iter(wrong))}="):
        pair_model(**{"n_cells": 1000, **wrong})


def test_means_beyond_the_stored_type_are_refused():
    with pytest.raises(ValueError, match="too many for 16 bits"):
        pair_model(n_cells=1000, mean_total=1e6)


@pytest.mark.parametrize(("start", "stop"), [(-1, 5), (5, 4), (0, 9002)])
def test_rows_outside_the_simulation_are_refused(pair, start, stop):
    with pytest.raises(ValueError, match="are not within"):
        pair.cells(start, stop)
    with pytest.raises(ValueError, match="are not within"):
        pair.spots(start, stop)
