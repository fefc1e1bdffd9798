"""The alignment of spots as a program: sample windows of both slides, fit, judge."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import numpy as np

from stdist.graph import Each, Program, Reduce, by_name
from stdist.kernels.spot_alignment import rigid
from stdist.methods.siid.align_fit import BLUR, COARSE, DRAWS, align, join_starts
from stdist.methods.siid.align_sample import (
    Windows,
    pitch_of,
    require_counts,
    sample_cells,
    sample_spots,
    windows_of,
)
from stdist.methods.siid.align_spec import AlignSpec, doubts
from stdist.methods.siid.pair import Pair
from stdist.methods.siid.sample import append
from stdist.preprocess.bound import TileWorkspace
from stdist.store import InputError, StdistWarning

FLOAT = 8
MOST_MOVES = 30_000
FEWEST_SPOTS = 10


def align_program(pair: Pair, spec: AlignSpec) -> Program:
    """Bind the alignment to a pair of slides.

    Raises
    ------
    InputError
        If the search is too large, or no spot has its surroundings in the sample.
    """
    pitch = pitch_of(pair.places)
    middle = (pair.places.min(axis=0) + pair.places.max(axis=0)) / 2
    far = float(np.linalg.norm(pair.places - middle, axis=1).max())
    reach = spec.max_shift + float(np.deg2rad(spec.max_angle)) * far + pitch
    windows = windows_of(pair, spec.sample_cells, reach)
    n_moves = _n_moves(spec, pitch, far, windows)
    for note in pair.notes:
        warnings.warn(note, StdistWarning, stacklevel=3)
    rules = {"cells": ("points", "origin"), "spots": ()}
    appended = {
        name: by_name(
            **dict.fromkeys(
                (*more, *(f"{name}_{part}" for part in ("data", "genes", "lengths"))), append
            )
        )
        for name, more in rules.items()
    }
    n_cells = min(pair.cells.n_obs, spec.sample_cells)
    cell_entries = pair.row_entries["cells"] * pair.n_panel / pair.cells.n_vars
    spot_entries = pair.row_entries["spots"] * pair.n_panel / pair.spots.n_vars
    cell_bytes = int(1.2 * n_cells * (12 * cell_entries + 32))
    spot_bytes = int(len(windows.spots) * (12 * spot_entries + 8))
    stages = (
        Reduce(
            "cells",
            sample_cells,
            {"counts": pair.counts, "spatial": pair.spatial},
            options={
                "columns": pair.panel_columns,
                "centre": windows.centre,
                "radius": windows.radius,
            },
            combine=appended["cells"],
            gathers=True,
            finalize=partial(require_counts, slide="cells", error=pair.without_counts("cells")),
            partial_bytes=cell_bytes,
            workspace=TileWorkspace(64 + int(24 * cell_entries)),
            nanoseconds=2000.0,
        ),
        Reduce(
            "spots",
            sample_spots,
            {"counts": pair.spot_counts},
            options={"columns": pair.spot_columns[: pair.n_panel], "chosen": windows.spots},
            combine=appended["spots"],
            gathers=True,
            finalize=partial(require_counts, slide="spots", error=pair.without_counts("spots")),
            partial_bytes=spot_bytes,
            workspace=TileWorkspace(64 + int(24 * pair.row_entries["spots"])),
            nanoseconds=2000.0,
        ),
        Each(
            "alignment",
            align,
            uses=("cells", "spots"),
            options={
                "n_panel": pair.n_panel,
                "n_factors": spec.n_factors,
                "places": pair.places[windows.spots],
                "window": windows.window,
                "middle": windows.centre,
                "pitch": pitch,
                "max_shift": float(spec.max_shift),
                "max_angle": float(spec.max_angle),
                "tolerance": float(spec.tolerance),
                "seed": spec.first_seed,
            },
            workspace=TileWorkspace(
                0,
                2 * (cell_bytes + spot_bytes)
                + _fit_bytes(spec, n_cells, windows, pair.places, reach, pitch)
                + 3 * FLOAT * n_moves * (len(windows.spots) + DRAWS),
            ),
            nanoseconds=n_cells * cell_entries * spec.n_factors * 200.0,
            n_items=spec.n_starts,
            collect=join_starts,
        ),
    )
    return Program(
        "siid_align",
        stages,
        {"data": str(pair.cells.path), "spots": str(pair.spots.path), **spec.to_parameters()},
        pair.cells.path,
        results=partial(alignment_results, spec=spec, notes=pair.notes, step=COARSE * pitch / 2),
        result_keys=(f"uns/{spec.key_added}",),
    )


def _n_moves(spec: AlignSpec, pitch: float, far: float, windows: Windows) -> int:
    """Moves of the search, and those around its optimum."""
    step = COARSE * pitch
    turns = 2 * np.ceil(np.deg2rad(spec.max_angle) * far / step) + 1
    moves = int(np.pi * (spec.max_shift / step + 1) ** 2 * turns)
    if moves > MOST_MOVES:
        raise InputError(
            "parameter-range",
            f"up to {spec.max_shift:g} um and {spec.max_angle:g} degrees there are {moves} moves",
            place="siid_align",
            remedy="lower max_shift or max_angle, and bring the slides nearer beforehand",
        )
    if len(windows.spots) < FEWEST_SPOTS:
        raise InputError(
            "sample-small",
            f"{len(windows.spots)} spots have their surroundings in the sample",
            place=f"siid_align, sample_cells={spec.sample_cells}",
            remedy="sample more cells, or lower max_shift or max_angle",
        )
    return moves + 1000


def _fit_bytes(
    spec: AlignSpec, n_cells: int, windows: Windows, places: np.ndarray, reach: float, pitch: float
) -> int:
    """Bytes of the rows of the factors and of the fields."""
    width = (spec.n_factors + 7) // 8 * 8
    whole = float(np.ptp(places, axis=0).max()) / 2
    edge = reach + (whole if np.isinf(windows.radius) else windows.radius)
    nodes = len(windows.centre) * (2 * edge / (BLUR * pitch / 2) + 2) ** 2
    return int(FLOAT * width * (8 * n_cells + 2 * nodes))


def alignment_results(
    values: Any, spec: AlignSpec, notes: list[str], step: float
) -> dict[str, Any]:
    """Transform, whether to trust it, and the numbers behind it; says so where not."""
    found = values["alignment"]
    given = np.eye(3) if spec.matrix is None else np.array(spec.matrix)
    reasons = doubts(found, spec, step)
    (best,) = rigid(np.asarray(found["move"])[None], found["centre"], float(found["radius"]))
    shift = float(np.hypot(*found["move"][:2]))
    angle = float(np.rad2deg(found["move"][2] / found["radius"]))
    error = float(found["standard_error"])
    place = f"{shift:.1f} um and {angle:.2f} degrees (standard error {error:.1f} um)"
    if reasons:
        message = (
            f"[not-aligned] where the spots lie cannot be told within {spec.tolerance:g} um: the "
            f"best move, of {place}, is not to be trusted, because {'; '.join(reasons)}"
        )
        warnings.warn(message, StdistWarning, stacklevel=2)
    else:
        message = f"the spots move by {place}"
    numbers = {
        name: float(found[name])
        for name in (
            "standard_error", "share", "halves", "starts", "lead", "gain", "gain_as_given",
            "gain_mirrored", "background",
        )
    }  # fmt: skip
    return {
        f"uns/{spec.key_added}": {
            "params": {k: v for k, v in spec.to_parameters().items() if v is not None},
            "transform": given if reasons else best @ given,
            "recovered": not reasons,
            "message": message,
            "best_transform": best @ given,
            "shift": np.asarray(found["move"])[:2],
            "angle": angle,
            "n_spots": int(found["n_spots"]),
            **numbers,
            **({"notes": notes} if notes else {}),
        }
    }
