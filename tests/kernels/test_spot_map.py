from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stdist.kernels.pair_simulation import pair_model
from stdist.kernels.spot_layout import cell_rows, crowded_spots, curve_order, spot_layout
from stdist.kernels.spot_map import nearest_spots, spots_within, transformed


@pytest.fixture(params=["map_1", "map_2"])
def golden(request, shared):
    return np.load(shared / "fixtures" / "siid" / f"{request.param}.npz")


def pairs(edges):
    cell = np.repeat(np.arange(len(edges.indptr) - 1), np.diff(edges.indptr))
    return set(zip(cell.tolist(), edges.spot.tolist(), strict=True))


def test_maps_are_those_of_the_reference(golden):
    """Its cell 0 lies at exactly 100 um from spot 0, cell 1 at 100.0001 um from its nearest."""
    spots = transformed(golden["spot_xy_raw"], golden["R"])
    np.testing.assert_allclose(spots, golden["spot_xy_aligned"], rtol=0, atol=1e-12)
    expected = set(zip(golden["flex4_rows"].tolist(), golden["flex4_cols"].tolist(), strict=True))
    assert (0, 0) in expected
    for coordinates in (spots, golden["spot_xy_aligned"]):
        found = nearest_spots(golden["cell_xy"], coordinates)
        np.testing.assert_array_equal(found.spot, golden["cell_spot"])
        assert pairs(spots_within(golden["cell_xy"], coordinates, 4)) == expected
        assert found.spot[1] == -1
        assert found.nearest[1] >= 0
        assert found.distance[1] == pytest.approx(100.0001, abs=1e-9)


def test_the_largest_distance_counts():
    found = nearest_spots([[60, 80], [60, 80.0001], [-30, 0]], [[0, 0]])
    assert found.spot.tolist() == [0, -1, 0]
    assert found.nearest.tolist() == [0, 0, 0]
    assert found.distance[0] == 100.0


def test_a_transformation_has_no_perspective():
    matrix = [[0, -2, 5], [2, 0, 7], [1, 1, 9]]
    np.testing.assert_array_equal(transformed([[1, 2], [3, 4]], matrix), [[1, 9], [-3, 13]])
    with pytest.raises(ValueError, match=r"\(3, 3\)"):
        transformed([[0, 0]], np.eye(2))


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    n_cells=st.integers(0, 60),
    n_spots=st.integers(1, 40),
    k=st.integers(1, 6),
    lattice=st.booleans(),
)
def test_maps_are_those_of_all_distances(seed, n_cells, n_spots, k, lattice):
    """On lattices most distances tie, so distances are compared, not spots."""
    rng = np.random.default_rng(seed)
    draw = (lambda n: rng.integers(0, 6, (n, 2)) * 50.0) if lattice else rng.random
    cells, spots = (draw(n) if lattice else 400 * rng.random((n, 2)) for n in (n_cells, n_spots))
    distance = np.sqrt(((cells[:, None] - spots) ** 2).sum(axis=2))
    found, edges = nearest_spots(cells, spots), spots_within(cells, spots, k)
    np.testing.assert_allclose(found.distance, distance.min(axis=1), rtol=1e-14)
    assert ((found.spot == found.nearest) == (distance.min(axis=1) <= 100.0)).all()
    assert (found.spot[found.spot != found.nearest] == -1).all()
    for i, row in enumerate(distance):
        mine = slice(edges.indptr[i], edges.indptr[i + 1])
        near = np.sort(row[row <= 100.0])[:k]
        np.testing.assert_allclose(row[edges.spot[mine]], near, rtol=1e-14)
        np.testing.assert_allclose(edges.distance[mine], near, rtol=1e-14)
        assert len(set(edges.spot[mine])) == len(near)


def test_a_cell_is_mapped_alike_in_any_block():
    rng = np.random.default_rng(3)
    cells, spots = rng.integers(0, 20, (500, 2)) * 25.0, rng.integers(0, 5, (30, 2)) * 100.0
    whole = nearest_spots(cells, spots)
    parts = [nearest_spots(cells[a : a + 37], spots) for a in range(0, 500, 37)]
    for name in whole._fields:
        joined = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(joined, getattr(whole, name))


@pytest.mark.parametrize(
    ("cells", "spots", "options"),
    [
        ([[0, 0]], np.empty((0, 2)), {}),
        ([[0, 0, 0]], [[0, 0]], {}),
        ([[0, 0]], [0, 0], {}),
        ([[0, 0]], [[0, 0]], {"max_distance": 0.0}),
    ],
)
def test_what_cannot_be_meant_is_refused(cells, spots, options):
    with pytest.raises(ValueError, match=r"no spots|must be"):
        nearest_spots(cells, spots, **options)


@pytest.mark.parametrize("n", [1, 2, 8, 64])
def test_the_curve_steps_from_square_to_square(n):
    grid = np.stack(np.meshgrid(np.arange(n), np.arange(n)), axis=-1).reshape(-1, 2) * 70.0 - 9.0
    order = curve_order(grid)
    assert sorted(order) == list(range(n * n))
    steps = np.abs(np.diff(grid[order], axis=0)).sum(axis=1)
    np.testing.assert_allclose(steps, 70.0)


def test_points_at_one_place_keep_their_order():
    assert curve_order(np.full((6, 2), 3.5)).tolist() == list(range(6))
    assert curve_order(np.empty((0, 2))).tolist() == []


@settings(max_examples=80)
@given(
    seed=st.integers(0, 2**32 - 1),
    n_spots=st.integers(0, 120),
    tile_rows=st.sampled_from([1, 7, 64, 1024]),
    most=st.sampled_from([0, 1, 3, 40]),
)
def test_tiles_hold_whole_spots(seed, n_spots, tile_rows, most):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, min(most, tile_rows) + 1, n_spots)
    spots = rng.integers(0, 30, (n_spots, 2)).astype(float)
    nearest = rng.permutation(np.repeat(np.arange(n_spots), sizes))
    layout = spot_layout(sizes, spots, tile_rows)
    rows = cell_rows(nearest, layout)

    assert len(set(rows.tolist())) == len(rows)
    assert (rows // tile_rows == layout.tile[nearest]).all()
    assert rows.max(initial=-1) < layout.n_rows
    for spot in range(n_spots):
        mine = rows[nearest == spot]
        assert mine.tolist() == list(
            range(layout.first_row[spot], layout.first_row[spot] + len(mine))
        )

    assert (layout.spot_row == layout.tile * tile_rows + layout.place).all()
    assert len(set(layout.spot_row.tolist())) == n_spots
    assert (layout.place < tile_rows).all()
    assert layout.n_rows % tile_rows == 0
    along = curve_order(spots)
    breaks = np.flatnonzero(np.diff(layout.tile[along]))
    assert (np.diff(layout.tile[along])[breaks] == 1).all()
    for at in breaks:  # the next spot would not have fitted
        mine = layout.tile == layout.tile[along[at]]
        full = mine.sum() == tile_rows
        assert full or sizes[mine].sum() + sizes[along[at + 1]] > tile_rows
    for tile in range(layout.n_rows // tile_rows):
        mine = layout.tile == tile
        assert sorted(layout.place[mine]) == list(range(mine.sum()))
        assert sizes[mine].sum() <= tile_rows


def test_crowded_spots_are_named():
    sizes = np.array([1024, 1025, 0, 5000])
    assert crowded_spots(sizes).tolist() == [1, 3]
    with pytest.raises(ValueError, match="2 spots have more than 1024 cells, the first is 1"):
        spot_layout(sizes, np.zeros((4, 2)))
    with pytest.raises(ValueError, match="4 spots need as many numbers"):
        spot_layout([1, 2], np.zeros((4, 2)))


def test_little_is_padded_and_tiles_are_compact():
    pair = pair_model(n_cells=60_000, n_genes=2, cells_per_mm2=2800)
    cells, spots = pair.cells(0, 60_000).spatial, pair.spots(0, pair.n_spots).spatial
    nearest = nearest_spots(cells, spots).nearest
    layout = spot_layout(np.bincount(nearest, minlength=pair.n_spots), spots)
    assert layout.n_rows < 1.03 * 60_000
    rows = cell_rows(nearest, layout)
    spread = [np.ptp(cells[rows // 1024 == tile], axis=0).max() for tile in range(20)]
    assert np.median(spread) < 3 * np.sqrt(1024 / 2800e-6)
