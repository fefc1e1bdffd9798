from __future__ import annotations

import doctest

import numpy as np
import pytest
from scipy import sparse

from stdist.graph import fold
from stdist.kernels import raster

SIDE, BATCHES, GENES = 20, 3, 2


@pytest.fixture(scope="module")
def cells():
    rng = np.random.default_rng(3)
    n = 4000
    batch = rng.integers(-1, BATCHES, n)
    spatial = rng.normal(size=(n, 2)) * [30, 10] + [5, -400]
    spatial[rng.random(n) < 0.01, 0] = np.nan
    values = rng.poisson(0.3, (n, GENES)).astype(float)
    return spatial, batch, values


def bounds(spatial, batch):
    found = raster.coordinate_bounds(spatial, batch, BATCHES)
    return found["low"], raster.pixel_size(found["low"], found["high"], SIDE)


def partial(spatial, batch, values, low, size):
    pixel = raster.pixel_numbers(spatial, batch, low, size, SIDE)
    sums = raster.sums_per_pixel(pixel, values, BATCHES * SIDE * SIDE)
    return raster.cells_per_pixel(pixel), sums


def both(left, right):
    return (
        raster.merge(left[0], right[0]),
        raster.merge(left[1], right[1]),
    )


def oracle(spatial, batch, values):
    """Cells and counts, one cell at a time."""
    count = np.zeros((BATCHES, SIDE, SIDE), int)
    total = np.zeros((GENES, BATCHES, SIDE, SIDE))
    for b in range(BATCHES):
        inside = np.isfinite(spatial).all(1) & (batch == b)
        low = spatial[inside].min(0)
        size = (spatial[inside].max(0) - low).max() / SIDE
        for cell in np.flatnonzero(inside):
            x, y = np.minimum((spatial[cell] - low) // size, SIDE - 1).astype(int)
            count[b, y, x] += 1
            for g in range(GENES):
                total[g, b, y, x] += values[cell, g]
    return count, total


@pytest.mark.parametrize("length", [1, 7, 64, 1000, 4000])
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
def test_equals_the_oracle_for_any_block_length(cells, length, form):
    spatial, batch, values = cells
    low, size = bounds(spatial, batch)
    starts = range(0, len(batch), length) if length > 1 else range(300)
    used = slice(0, 300) if length == 1 else slice(None)
    parts = (
        partial(
            *(a[s : s + length] for a in (spatial, batch)), form(values[s : s + length]), low, size
        )
        for s in starts
    )
    count, total = fold(parts, both)
    whole = partial(spatial[used], batch[used], form(values[used]), low, size)
    for one, other in zip((count, total), whole, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])
    if length > 1:
        expected = oracle(spatial, batch, values)
        np.testing.assert_array_equal(raster.dense_panels(count, BATCHES, SIDE), expected[0])
        found = raster.dense_panels(total, GENES * BATCHES, SIDE)
        np.testing.assert_array_equal(found.reshape(expected[1].shape), expected[1])


def test_bounds_merge_and_leave_out_what_has_no_place(cells):
    spatial, batch, _ = cells
    whole = raster.coordinate_bounds(spatial, batch, BATCHES + 1)
    parts = [
        raster.coordinate_bounds(spatial[s], batch[s], BATCHES + 1)
        for s in (slice(900), slice(900, None))
    ]
    np.testing.assert_array_equal(np.minimum(parts[0]["low"], parts[1]["low"]), whole["low"])
    np.testing.assert_array_equal(np.maximum(parts[0]["high"], parts[1]["high"]), whole["high"])
    assert whole["cells"].sum() == (np.isfinite(spatial).all(1) & (batch >= 0)).sum()
    assert whole["cells"][-1] == 0
    assert raster.pixel_size(whole["low"], whole["high"], SIDE)[-1] > 0


def test_size_is_bounded_by_pixels_and_aspect_is_kept():
    rng = np.random.default_rng(0)
    spatial = rng.random((50_000, 2)) * [100, 25]
    batch = np.zeros(len(spatial), int)
    low, size = bounds(spatial, batch)
    count, total = partial(spatial, batch, np.ones((len(spatial), GENES)), low, size)
    assert len(count[0]) <= SIDE * (SIDE // 4 + 1)
    assert len(total[0]) == GENES * len(count[0])
    assert raster.dense_panels(count, BATCHES, SIDE)[0, SIDE // 4 + 1 :].sum() == 0


def test_no_cell_and_one_place():
    empty = partial(
        np.zeros((0, 2)),
        np.zeros(0, int),
        np.zeros((0, GENES)),
        *bounds(np.zeros((1, 2)), np.zeros(1, int)),
    )
    assert all(len(part[0]) == 0 for part in empty)
    low, size = bounds(np.full((3, 2), 7.0), np.zeros(3, int))
    count, _ = partial(np.full((3, 2), 7.0), np.zeros(3, int), np.zeros((3, GENES)), low, size)
    assert count[0].tolist() == [0]
    assert both(empty, empty)[0][0].size == 0


def test_examples():
    assert doctest.testmod(raster).failed == 0
