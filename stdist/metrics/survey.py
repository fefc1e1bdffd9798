"""What a measure of neighbourhoods must know of the slides before it cuts them into strips."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from stdist.graph import Program, Reduce, run_in_memory
from stdist.methods.checks import check_codes, check_counts
from stdist.methods.data import Data
from stdist.preprocess.bound import tile_workspace
from stdist.preprocess.normalize import depth_table, median_depth, merge_tables
from stdist.store import InputError, Source

BINS = 1024
"""Stripes of a slide between which strips are cut."""


@dataclass(frozen=True)
class SlideSources:
    """Where the cells of slides are read from; `slices` None: all cells are one slide."""

    counts: Source
    spatial: Source
    slices: Source | None = None
    labels: Source | None = None

    def named(self) -> dict[str, Source]:
        """Sources by the names that kernels use."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Slides:
    """Sources of the slides, and the names of slides and types (one of each where not asked).

    `keys` are the names of the slide's, the type's and the coordinates' entry, for errors.
    """

    sources: SlideSources
    names: list[str]
    types: list[str]
    keys: tuple[str, str, str]


def open_slides(
    opened: Data,
    layer: str | None,
    spatial_key: str,
    slice_key: str | None,
    label_key: str | None = None,
) -> Slides:
    """Find the layer, the coordinates, the slides and the types in the data."""
    slides = None if slice_key is None else opened.labels(slice_key)
    labels = None if label_key is None else opened.labels(label_key)
    sources = SlideSources(
        opened.matrix(layer),
        opened.embedding(spatial_key),
        None if slides is None else slides.codes,
        None if labels is None else labels.codes,
    )
    return Slides(
        sources,
        ["all"] if slides is None else slides.names,
        ["all"] if labels is None else labels.names,
        (slice_key or "", label_key or "", spatial_key),
    )


@dataclass(frozen=True)
class Survey:
    """What the strips follow from.

    ``cells`` ``(n_slides, n_types)``; ``entries`` ``(n_slides, n_columns)`` non-zeros of the
    chosen columns; ``low``, ``high`` ``(n_slides, 2)`` corners; ``first``, ``stop`` rows;
    ``profile`` ``(n_slides, BINS)`` cells by stripe along the longer edge; ``target`` the median
    depth.
    """

    cells: np.ndarray
    entries: np.ndarray
    low: np.ndarray
    high: np.ndarray
    first: np.ndarray
    stop: np.ndarray
    profile: np.ndarray
    target: float


def survey(
    opened: Data,
    slides: Slides,
    columns: np.ndarray,
    executor: Any,
    *,
    counts: bool,
) -> Survey:
    """Two passes over the cells: rows, corners, depths and types; then stripes.

    Parameters
    ----------
    counts
        True where the layer must hold counts (it will be normalised).

    Raises
    ------
    InputError
        If coordinates, labels or values are wrong; names the row.
    """
    sources, keys = slides.sources, slides.keys
    n_slides, n_types = len(slides.names), len(slides.types)
    if len(sources.spatial.shape) != 2 or sources.spatial.shape[1] < 2:
        raise InputError(
            "spatial-shape",
            f"coordinates have shape {sources.spatial.shape}, not (n_cells, 2)",
            place=f"obsm {keys[2]!r}",
            remedy="name the entry of obsm that holds x and y",
        )
    shape = {"n_slides": n_slides, "n_types": n_types}
    whole = Reduce(
        "slides",
        survey_tile,
        sources.named(),
        options={"columns": columns, "keys": keys, "check": counts, **shape},
        combine=merge_surveys,
        workspace=tile_workspace(opened.n_vars, 2),
        nanoseconds=2.0 * opened.n_vars,
        partial_bytes=2**21 + 8 * n_slides * (n_types + len(columns) + 8),
    )
    places = sources.named()
    stripes = Reduce(
        "stripes",
        stripe_tile,
        {name: places[name] for name in ("spatial", "slices") if name in places},
        uses=("slides",),
        options={"n_slides": n_slides},
        nanoseconds=40.0,
        partial_bytes=8 * BINS * n_slides,
    )
    program = Program("survey", (whole, stripes), results=_found)
    found = run_in_memory(program, executor)
    target = float(median_depth(found, target_sum=None)["target"]) if counts else 1.0
    names = ("entries", "low", "high", "first", "stop", "profile")
    return Survey(cells=found["n"], target=target, **{name: found[name] for name in names})


def survey_tile(
    rows: tuple[int, int],
    *,
    counts: Any,
    spatial: np.ndarray,
    slices: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    columns: np.ndarray,
    n_slides: int,
    n_types: int,
    keys: tuple[str, str, str],
    check: bool,
) -> dict[str, np.ndarray]:
    """Rows, corners, cells of each type and entries of each slide; distinct depths."""
    place = _places(spatial, rows, keys[2])
    slide, kind = _codes(slices, rows, keys[0]), _codes(labels, rows, keys[1])
    _check_values(counts, rows, check)
    low, high = np.full((n_slides, 2), np.inf), np.full((n_slides, 2), -np.inf)
    np.minimum.at(low, slide, place)
    np.maximum.at(high, slide, place)
    first, stop = np.full(n_slides, np.iinfo(np.int64).max), np.zeros(n_slides, np.int64)
    number = np.arange(*rows)
    np.minimum.at(first, slide, number)
    np.maximum.at(stop, slide, number + 1)
    member = sparse.csr_matrix(
        (np.ones(len(slide), np.int64), (slide, np.arange(len(slide)))), (n_slides, len(slide))
    )
    group = slide.astype(np.int64) * n_types + kind
    chosen = counts[:, columns] != 0
    entries = member @ chosen.astype(np.int64)
    table = depth_table(rows, counts=counts) if check else {}
    return table | {
        "n": np.bincount(group, minlength=n_slides * n_types).reshape(n_slides, n_types),
        "entries": entries.toarray() if sparse.issparse(entries) else np.asarray(entries),
        "low": low,
        "high": high,
        "first": first,
        "stop": stop,
    }


def merge_surveys(left: Any, right: Any) -> dict[str, np.ndarray]:
    """Merge two surveys."""
    merged = merge_tables(left, right) if "depth" in left else {}
    for name in ("n", "entries"):
        merged[name] = left[name] + right[name]
    for name, rule in (
        ("low", np.minimum),
        ("first", np.minimum),
        ("high", np.maximum),
        ("stop", np.maximum),
    ):
        merged[name] = rule(left[name], right[name])
    return merged


def stripe_tile(
    rows: tuple[int, int],
    *,
    spatial: np.ndarray,
    slices: np.ndarray | None = None,
    slides: dict[str, np.ndarray],
    n_slides: int,
) -> dict[str, np.ndarray]:
    """Cells of each slide by stripe along its longer edge."""
    slide = _codes(slices, rows, "")
    axis, low, width = stripes_of(slides["low"], slides["high"])
    along = np.asarray(spatial, np.float64)[np.arange(len(slide)), axis[slide]]
    stripe = stripe_of(along, low[slide], width[slide])
    counted = np.bincount(slide * np.int64(BINS) + stripe, minlength=n_slides * BINS)
    return {"profile": counted.reshape(n_slides, BINS)}


def stripes_of(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Longer axis of each slide, its lower end, and the width of a stripe."""
    extent = np.where(np.isfinite(low), high - low, 0.0)
    axis = extent.argmax(axis=1)
    each = np.arange(len(axis))
    longest = extent[each, axis]
    return axis, low[each, axis], np.where(longest > 0, longest, 1.0) / BINS


def stripe_of(along: np.ndarray, low: Any, width: Any) -> np.ndarray:
    """Stripe of each coordinate, the same wherever it is computed."""
    return np.clip(((along - low) / width).astype(np.int64), 0, BINS - 1)


def _found(values: Any) -> dict[str, Any]:
    return values["slides"] | values["stripes"]


def _places(spatial: np.ndarray, rows: tuple[int, int], key: str) -> np.ndarray:
    place = np.asarray(spatial, np.float64)[:, :2]
    wrong = np.flatnonzero(~np.isfinite(place).all(axis=1))
    if len(wrong):
        raise InputError(
            "coordinates-nonfinite",
            f"the coordinates of a cell are {place[wrong[0]].tolist()}",
            place=f"obsm {key!r}, row {rows[0] + int(wrong[0])}",
            remedy="filter these cells out",
        )
    return place


def _codes(codes: np.ndarray | None, rows: tuple[int, int], key: str) -> np.ndarray:
    if codes is None:
        return np.zeros(rows[1] - rows[0], np.int64)
    check_codes(codes, rows, key)
    return codes


def _check_values(values: Any, rows: tuple[int, int], counts: bool) -> None:
    if counts:
        check_counts(values, rows)
        return
    stored = values.data if sparse.issparse(values) else values
    if stored.dtype.kind == "f" and not np.isfinite(stored).all():
        raise InputError(
            "values-nonfinite",
            "the layer holds values that are not finite",
            place=f"rows {rows[0]}:{rows[1]}",
            remedy="name a layer of finite values",
        )
