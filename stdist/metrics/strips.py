"""Slides in strips: pieces that one task holds, read with a margin.

A slide (one value of `slice_key`) is cut into strips across its longer edge, each with about as
many cells as one task holds; a strip is read with a margin (halo) as wide as its cells can see.
Rows of the store may be in any order: a strip is gathered from bands of rows. Where to cut follows
from the data alone, never from blocks or workers, and so do the sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from stdist.metrics.survey import BINS, SlideSources, Survey, stripe_of, stripes_of
from stdist.store import InputError

MOST_CELLS, MOST_ENTRIES = 2**17, 2**24
"""Cells, and non-zero entries of the chosen genes, that a strip holds without its margin."""
BAND = 16384
"""Rows read at once: the chunks of a dense element."""
CROWD = 5000
"""Expected cells around a cell above which the radius cannot be meant."""


@dataclass(frozen=True)
class Strip:
    """Stripes ``bins[0]:bins[1]`` of a slide, its rows ``rows[0]:rows[1]``, cells with margin."""

    slide: int
    rows: tuple[int, int]
    axis: int
    low: float
    width: float
    bins: tuple[int, int]
    n_cells: int
    n_entries: int
    n_around: float


def cut_strips(found: Survey, halo: float, radius: float, *, whole: bool = False) -> list[Strip]:
    """Cut every slide that has cells; with `whole`, each slide is one strip.

    Raises
    ------
    InputError
        If a circle of the radius holds more cells than can be meant.
    """
    strips: list[Strip] = []
    axes, lows, widths = stripes_of(found.low, found.high)
    for slide, profile in enumerate(found.profile):
        n = int(profile.sum())
        if not n:
            continue
        axis, low, width = int(axes[slide]), float(lows[slide]), float(widths[slide])
        around = _around(found, slide, profile, width, radius)
        entries = max(1, int(found.entries[slide].sum())) / n
        limit = n if whole else max(BAND // 4, min(MOST_CELLS, int(MOST_ENTRIES / entries)))
        margin = int(np.ceil(min(halo / width, BINS))) + 1
        for bins in _cuts(profile, limit):
            n_cells = int(profile[max(0, bins[0] - margin) : bins[1] + margin].sum())
            rows = int(found.first[slide]), int(found.stop[slide])
            size = n_cells, int(n_cells * entries)
            strips.append(Strip(slide, rows, axis, low, width, bins, *size, around))
    return strips


def _around(found: Survey, slide: int, profile: np.ndarray, width: float, radius: float) -> float:
    """Expected cells within the radius in the densest stripe as wide as the radius."""
    across = float((found.high[slide] - found.low[slide]).min())
    n_stripes = min(BINS, max(1, int(np.ceil(2 * radius / width))))
    crowded = np.convolve(profile, np.ones(n_stripes), mode="same").max()
    share = min(1.0, np.pi * radius / (2 * max(across, radius)))
    around = float(crowded * share)
    if around > CROWD:
        raise InputError(
            "radius-large",
            f"a circle of radius {radius:g} holds about {around:.0f} cells",
            place=f"slide {slide}",
            remedy="give the radius in the unit of the coordinates",
        )
    return around


def _cuts(profile: np.ndarray, limit: int) -> list[tuple[int, int]]:
    cuts, start, held = [], 0, 0
    for stripe, n in enumerate(profile):
        if held and held + n > limit:
            cuts.append((start, stripe))
            start, held = stripe, 0
        held += int(n)
    return [*cuts, (start, len(profile))]


@dataclass(frozen=True)
class StripCells:
    """Cells of a strip and its margin, in the order of their rows.

    ``points`` float64 ``(n_cells, 2)``, ``own`` bool (False in the margin), ``types`` int32,
    ``depth`` float64 total counts, ``indptr``, ``genes``, ``counts`` float64: the chosen columns
    as CSR rows, and ``values``: the same entries normalised (or as they are).
    """

    points: np.ndarray
    own: np.ndarray
    types: np.ndarray
    depth: np.ndarray
    n_columns: int
    indptr: np.ndarray
    genes: np.ndarray
    counts: np.ndarray
    values: np.ndarray

    @property
    def expression(self) -> sparse.csr_matrix:
        """The values as a matrix."""
        shape = (len(self.points), self.n_columns)
        return sparse.csr_matrix((self.values, self.genes, self.indptr), shape)


def read_strip(
    strip: Strip,
    sources: SlideSources,
    columns: np.ndarray,
    *,
    halo: float,
    target: float | None,
) -> StripCells:
    """Gather a strip from bands of rows; with `target`, values are log1p at that depth."""
    first = strip.rows[0] // BAND * BAND
    parts: list[tuple[Any, ...]] = []
    for start in range(first, strip.rows[1], BAND):
        rows = max(start, strip.rows[0]), min(start + BAND, strip.rows[1])
        place = np.asarray(sources.spatial.read(*rows), np.float64)[:, :2]
        along = place[:, strip.axis]
        near = along >= strip.low + strip.bins[0] * strip.width - halo * (1 + 1e-6)
        near &= along <= strip.low + strip.bins[1] * strip.width + halo * (1 + 1e-6)
        stripe = stripe_of(along, strip.low, strip.width)
        own = (stripe >= strip.bins[0]) & (stripe < strip.bins[1])
        taken = near | own
        if sources.slices is not None:
            taken &= sources.slices.read(*rows) == strip.slide
        chosen = np.flatnonzero(taken)
        if not len(chosen):
            continue
        counts = sources.counts.read(*rows)[chosen]
        types = np.zeros(len(chosen), np.int32)
        if sources.labels is not None:
            types = sources.labels.read(*rows)[chosen].astype(np.int32)
        depth = np.asarray(counts.sum(axis=1), np.float64).ravel()
        kept = sparse.csr_matrix(counts[:, columns])
        kept.eliminate_zeros()
        parts.append((place[chosen], own[chosen], types, depth, kept))
    points, own, types, depth = (
        np.concatenate(column) for column in list(zip(*parts, strict=True))[:4]
    )
    matrix = sparse.vstack([part[4] for part in parts], format="csr")
    del parts
    matrix.sort_indices()
    counts = matrix.data.astype(np.float64)
    values = counts
    indptr = matrix.indptr.astype(np.int64)
    if target is not None:
        scale = np.divide(target, depth, out=np.zeros_like(depth), where=depth > 0)
        values = np.log1p(counts * np.repeat(scale, np.diff(indptr)))
    genes = matrix.indices.astype(np.int32)
    return StripCells(points, own, types, depth, len(columns), indptr, genes, counts, values)


def strip_bytes(strip: Strip, n_vars: int, n_entries: int | None = None) -> int:
    """Bound on the bytes of reading a strip: its cells and entries, their copies, and a band."""
    entries = strip.n_entries if n_entries is None else n_entries
    graph = 12 * strip.n_cells * int(1 + strip.n_around)
    return 40 * entries + 120 * strip.n_cells + graph + 24 * BAND * n_vars
