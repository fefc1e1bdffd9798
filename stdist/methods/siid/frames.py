"""Why two slides do not lie on each other: their extents, and what would bring them together."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.spatial import cKDTree

from stdist.kernels.spot_map import nearest_spots

PITCH = 100.0
"""Distance of neighbouring spots of a Visium slide, in um."""
FITS = 0.5
"""Share of the cells that an explanation must bring to a spot."""
_SAMPLE = 20_000


def describe_frames(corners: np.ndarray, places: np.ndarray) -> str:
    """Extents of cells and spots, and the distance of neighbouring spots.

    Parameters
    ----------
    corners
        Least and largest x and y of the cells, ``(2, 2)``.
    places
        Coordinates of the spots, ``(n_spots, 2)``.

    Examples
    --------
    >>> describe_frames(np.array([[0, 0], [500, 300]]), np.array([[0, 0], [100, 0], [200, 90]]))
    'cells at x 0 to 500, y 0 to 300; spots at x 0 to 200, y 0 to 90, 100 apart'
    """
    spots = np.array([places.min(axis=0), places.max(axis=0)])
    text = f"cells at {_extent(corners)}; spots at {_extent(spots)}"
    return f"{text}, {spacing(places):.4g} apart" if len(places) > 1 else text


def likely_cause(
    points: np.ndarray, corners: np.ndarray, places: np.ndarray, max_distance: float
) -> str:
    """Name the change of units, axes or origin that brings most cells to a spot.

    Parameters
    ----------
    points
        Coordinates of cells, of which at most some thousands are taken.
    corners, places
        As in `describe_frames`.
    max_distance
        Largest distance of a cell's spot.
    """
    some = points[:: -(-len(points) // _SAMPLE)]
    share, cause = 0.0, ""
    for text, cells, spots in _explanations(some, corners, places):
        mapped = float((nearest_spots(cells, spots, max_distance).spot >= 0).mean())
        if mapped > share:
            share, cause = mapped, text
    if share < FITS:
        return "no swap of axes, change of units or shift alone brings them together"
    return f"{cause}: this would bring {share:.0%} of the cells to a spot"


def _explanations(
    points: np.ndarray, corners: np.ndarray, places: np.ndarray
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    yield "x and y of one slide may be swapped", points, places[:, ::-1]
    if len(places) > 1:
        scale = PITCH / spacing(places)
        pixels = f"may be in pixels of {scale:.3g} um, if spots are {PITCH:g} um apart"
        yield f"the spots {pixels}", points, places * scale
        yield f"both slides {pixels}", points * scale, places * scale
    sizes = np.linalg.norm(np.ptp(corners, axis=0)), np.linalg.norm(np.ptp(places, axis=0))
    if min(sizes) > 0:
        scale = sizes[1] / sizes[0]
        yield f"the cells may be in units of about {scale:.3g} um", points * scale, places
        yield f"the spots may be in units of about {1 / scale:.3g} um", points, places / scale
    shift = corners.mean(axis=0) - (places.min(axis=0) + places.max(axis=0)) / 2
    text = f"the frames may differ in origin by about {shift[0]:.4g}, {shift[1]:.4g} um"
    yield text, points, places + shift


def _extent(corners: np.ndarray) -> str:
    (left, bottom), (right, top) = corners
    return f"x {left:.4g} to {right:.4g}, y {bottom:.4g} to {top:.4g}"


def spacing(places: np.ndarray) -> float:
    """Median distance of a spot to its nearest neighbour, of distinct places."""
    distinct = np.unique(places, axis=0)
    if len(distinct) < 2:
        return 1.0
    return float(np.median(cKDTree(distinct).query(distinct, k=2)[0][:, 1]))
