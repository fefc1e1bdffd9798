"""What an alignment looks at: windows of the tissue with all their cells, and spots well inside."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from stdist.kernels.spot_layout import curve_order
from stdist.methods.siid.frames import spacing
from stdist.methods.siid.pair import Pair, read_counts
from stdist.methods.siid.sample import packed
from stdist.store import InputError

Arrays = dict[str, Any]
N_WINDOWS = 4
"""Windows of a slide with more cells than the sample: far from each other, so that angles show."""
MOST_SPOTS = 2000
"""Spots of the sample; of more, evenly spaced ones are taken."""


FINEST_PITCH = 50.0
"""um: spots nearer to each other are blurred and moved as if they were as far apart as this."""


class Windows(NamedTuple):
    """Discs of tissue.

    ``centre`` float64 ``(n_windows, 2)``; ``radius``: um, infinite for a whole slide; ``spots``
    int64 ``(n_spots,)``: rows of the spots whose surroundings lie within, ascending; ``window``
    int64 ``(n_spots,)``: the disc of each.
    """

    centre: np.ndarray
    radius: float
    spots: np.ndarray
    window: np.ndarray


def pitch_of(places: np.ndarray) -> float:
    """Median distance of a spot from the next one, um, but not less than `FINEST_PITCH`."""
    return max(spacing(places), FINEST_PITCH)


def windows_of(pair: Pair, sample_cells: int, reach: float) -> Windows:
    """Choose windows with at most so many cells.

    Spots nearer than `reach` to an edge of them stay out, and those without cells as given.
    """
    places, n_spots = pair.places, pair.spots.n_obs
    with_cells = pair.mapped_cells > 0
    if pair.cells.n_obs <= sample_cells:
        middle = (places.min(axis=0) + places.max(axis=0)) / 2
        spots = _thinned(np.flatnonzero(with_cells))
        return Windows(middle[None], np.inf, spots, np.zeros(len(spots), np.int64))
    middles = (2 * np.arange(N_WINDOWS) + 1) * n_spots // (2 * N_WINDOWS)
    centre = places[curve_order(places)[middles]]
    distance, window = cKDTree(centre).query(places)
    order = np.argsort(distance, kind="stable")
    fits = int(np.searchsorted(np.cumsum(pair.nearest_cells[order]), sample_cells, "right"))
    radius = float(distance[order[max(0, fits - 1)]])
    spots = _thinned(np.flatnonzero(with_cells & (distance + reach <= radius)))
    return Windows(centre, radius, spots, window[spots])


def _thinned(spots: np.ndarray) -> np.ndarray:
    if len(spots) <= MOST_SPOTS:
        return spots
    return spots[np.arange(MOST_SPOTS) * len(spots) // MOST_SPOTS]


def sample_cells(
    rows: tuple[int, int],
    *,
    counts: Any,
    spatial: np.ndarray,
    columns: np.ndarray,
    centre: np.ndarray,
    radius: float,
) -> Arrays:
    """Cells in the windows, to be appended."""
    points = np.asarray(spatial, np.float64)
    apart = np.linalg.norm(points[:, None] - centre, axis=2).min(axis=1)
    inside = np.flatnonzero(apart <= radius)
    return {
        "points": points[inside],
        "origin": rows[0] + inside,
        **packed("cells", read_counts(counts, rows, columns, "cells")[inside]),
    }


def require_counts(total: Arrays, *, slide: str, error: InputError) -> Arrays:
    """Raise the error of a slide where the sample has no count of it.

    Raises
    ------
    InputError
        If there is none.
    """
    if not len(total[f"{slide}_data"]):
        raise error
    return total


def sample_spots(
    rows: tuple[int, int], *, counts: Any, columns: np.ndarray, chosen: np.ndarray
) -> Arrays:
    """Counts of the chosen spots, to be appended."""
    mine = chosen[(chosen >= rows[0]) & (chosen < rows[1])] - rows[0]
    return packed("spots", read_counts(counts, rows, columns, "spots")[mine])
