"""Rasters of cells: sparse, mergeable sums per pixel, however many cells there are.

A partial raster is a pair ``(pixel, sum)``: sorted distinct pixel numbers and one sum for each.
Sums of counts are exact, so neither tiles nor blocks can change a bit, and a pixel is in the
raster of a gene as soon as one of its cells expresses it. The size is bounded by the pixels. Pixel
``(panel, y, x)`` has the number ``(panel * side + y) * side + x``; a panel is one picture (a batch,
or a gene of a batch).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Raster = tuple[Ints, NDArray[Any]]


def coordinate_bounds(spatial: Any, batch: NDArray[Any], n_batches: int) -> dict[str, NDArray[Any]]:
    """Range of the coordinates in each batch.

    Parameters
    ----------
    spatial
        Coordinates, ``(n_cells, 2)``; cells with a coordinate that is not finite are left out.
    batch
        Codes of the batches, ``(n_cells,)`` integers; negative codes are left out.
    n_batches
        Number of batches.

    Returns
    -------
    dict
        ``low`` and ``high``, ``(n_batches, 2)`` float64 (infinities for a batch without cells),
        and ``cells``, ``(n_batches,)`` int64. Merge with minimum, maximum and sum.

    Examples
    --------
    >>> coordinate_bounds(np.array([[1.0, 5.0], [3.0, 4.0]]), np.array([0, 0]), 1)["low"]
    array([[1., 4.]])
    """
    spatial = np.asarray(spatial, dtype=np.float64)
    placed = _placed(spatial, batch)
    low, high = np.full((n_batches, 2), np.inf), np.full((n_batches, 2), -np.inf)
    np.minimum.at(low, batch[placed], spatial[placed])
    np.maximum.at(high, batch[placed], spatial[placed])
    cells = np.bincount(batch[placed], minlength=n_batches).astype(np.int64)
    return {"low": low, "high": high, "cells": cells}


def pixel_size(low: Floats, high: Floats, side: int) -> Floats:
    """Width of a pixel in each batch, ``(n_batches,)``: the longer edge has `side` pixels.

    Examples
    --------
    >>> pixel_size(np.zeros((1, 2)), np.array([[50.0, 20.0]]), 100)
    array([0.5])
    """
    longest = (high - low).max(axis=1)  # -inf for a batch without cells
    return np.where(longest > 0, longest, 1.0) / side


def pixel_numbers(spatial: Any, batch: NDArray[Any], low: Floats, size: Floats, side: int) -> Ints:
    """Pixel of each cell in the panel of its batch, ``(n_cells,)`` int64; -1 for cells left out.

    Examples
    --------
    >>> pixel_numbers(np.array([[0.0, 2.0]]), np.array([0]), np.zeros((1, 2)), np.ones(1), 3)
    array([6])
    """
    spatial = np.asarray(spatial, dtype=np.float64)
    placed = _placed(spatial, batch)
    at = batch[placed]
    column_row = np.floor((spatial[placed] - low[at]) / size[at, None]).astype(np.int64)
    column, row = np.clip(column_row, 0, side - 1).T
    number = np.full(len(batch), -1, dtype=np.int64)
    number[placed] = (at.astype(np.int64) * side + row) * side + column
    return number


def cells_per_pixel(pixel: Ints) -> Raster:
    """Count the cells of each pixel (int64).

    Examples
    --------
    >>> cells_per_pixel(np.array([4, 4, 2, -1]))
    (array([2, 4]), array([1, 2]))
    """
    number, cells = np.unique(pixel[pixel >= 0], return_counts=True)
    return number, cells.astype(np.int64)


def sums_per_pixel(pixel: Ints, values: Any, n_pixels: int) -> Raster:
    """Sum the values of each pixel, column by column.

    Parameters
    ----------
    pixel
        Pixel of each cell, ``(n_cells,)`` int64; -1 leaves a cell out.
    values
        Non-negative values, ``(n_cells, n_columns)``, dense or CSR; a pixel whose cells are all
        zero is left out.
    n_pixels
        Pixels of all panels; column `g` uses the numbers from ``g * n_pixels``.

    Returns
    -------
    tuple
        Sorted pixel numbers (int64) and the sum of each (float64, exact for counts).

    Examples
    --------
    >>> sums_per_pixel(np.array([3, 3]), np.array([[1, 0], [2, 0]]), 9)
    (array([3]), array([3.]))
    """
    if sparse.issparse(values):
        entries = values.tocoo()
        cell, column, value = entries.row, entries.col, entries.data
    else:
        cell, column = np.nonzero(values)
        value = values[cell, column]
    drawn = (pixel[cell] >= 0) & (value > 0)
    number = column[drawn].astype(np.int64) * n_pixels + pixel[cell[drawn]]
    return _grouped(number, value[drawn].astype(np.float64))


def merge(left: Raster, right: Raster) -> Raster:
    """Merge two partial rasters.

    Examples
    --------
    >>> cells = np.array([1, 1])
    >>> merge((np.array([2, 4]), cells), (np.array([4, 7]), cells))
    (array([2, 4, 7]), array([1, 2, 1]))
    """
    number = np.concatenate([left[0], right[0]])
    return _grouped(number, np.concatenate([left[1], right[1]]))


def dense_panels(raster: Raster, n_panels: int, side: int) -> NDArray[Any]:
    """Pictures ``(n_panels, side, side)`` with rows along y; 0 where nothing is drawn.

    Examples
    --------
    >>> dense_panels((np.array([1]), np.array([5])), 1, 2)
    array([[[0, 5],
            [0, 0]]])
    """
    number, value = raster
    panels = np.zeros(n_panels * side * side, dtype=value.dtype)
    panels[number] = value
    return panels.reshape(n_panels, side, side)


def _placed(spatial: Floats, batch: NDArray[Any]) -> NDArray[np.bool_]:
    return np.isfinite(spatial).all(axis=1) & (batch >= 0)


def _grouped(number: Ints, value: NDArray[Any]) -> Raster:
    if not len(number):
        return number, value
    order = np.argsort(number, kind="stable")
    number = number[order]
    first = np.flatnonzero(np.r_[True, number[1:] != number[:-1]])
    return number[first], np.add.reduceat(value[order], first)
