"""Cells and spots to their places by spot, and results of cells back to where they came from."""

from __future__ import annotations

from typing import Any

import numpy as np

from stdist.kernels.spot_map import nearest_spots
from stdist.methods.siid.pair import read_counts
from stdist.store import InputError

Arrays = dict[str, Any]


def lay_out(item: int, **layout: np.ndarray) -> Arrays:
    """Return the layout as a value, which travels to each worker once."""
    return layout


def place_cells(
    rows: tuple[int, int],
    *,
    counts: Any,
    spatial: np.ndarray,
    layout: Arrays,
    columns: np.ndarray,
    max_distance: float,
) -> Arrays:
    """Send each cell to its nearest spot; ``spot`` is its place in the tile, 1 for the first."""
    found = nearest_spots(np.asarray(spatial, np.float64), layout["points"], max_distance)
    place = layout["place"][found.nearest] + 1
    return {
        "position": layout["first_row"][found.nearest],
        "cells": read_counts(counts, rows, columns, "cells"),
        "origin": np.arange(*rows) + 1,
        "spot": np.where(found.spot >= 0, place, 0).astype(np.int16),
        "spot_number": found.spot,
    }


def place_spots(
    rows: tuple[int, int], *, counts: Any, layout: Arrays, columns: np.ndarray
) -> Arrays:
    """Send the counts of each spot to the place of a spot, its own by default."""
    number = layout["spot_number"][slice(*rows)]
    return {
        "position": layout["spot_row"][number],
        "spots": read_counts(counts, rows, columns, "spots"),
        "spot_origin": number + 1,
    }


def total_counts(rows: tuple[int, int], *, cells: Any, spots: Any, n_panel: int) -> Arrays:
    """Counts of the panel in some tiles, of either slide."""
    counts = {"cells": cells.sum(), "spots": spots[:, :n_panel].sum()}
    return {slide: np.float64(total) for slide, total in counts.items()}


def refuse_empty(total: Arrays, *, errors: dict[str, InputError]) -> Arrays:
    """Raise the error of a slide without counts.

    Raises
    ------
    InputError
        If there is one.
    """
    for slide, error in errors.items():
        if not total[slide]:
            raise error
    return total


def take_back(
    rows: tuple[int, int], *, origin: np.ndarray, spot_number: np.ndarray, **factors: np.ndarray
) -> Arrays:
    """Send what is known of each cell back to its own row."""
    taken = origin > 0
    back = {f"{name}_back": values[taken] for name, values in factors.items()}
    return {"position": origin[taken] - 1, "spot_back": spot_number[taken], **back}
