"""Harmony with sequential updates, for parity: all cells in one task."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from stdist.graph import Each, Map
from stdist.kernels.harmony_sequential import harmonize
from stdist.kernels.harmony_settings import Settings, unit_rows
from stdist.kernels.keyed_random import stream_key, uniforms
from stdist.preprocess.bound import TileWorkspace
from stdist.preprocess.harmony_rounds import (
    FLOAT,
    SAMPLE,
    SINGLE,
    Stages,
    check_finite,
    start_centroids,
)
from stdist.store import Source


def cell_order(number: int, *, seed: int, n_cells: int) -> np.ndarray:
    """Order in which an inner round visits the cells."""
    return np.argsort(uniforms(stream_key(seed, "harmony order", number), 0, n_cells))


def harmonize_all(
    item: int,
    *,
    values: Source,
    strata: Source,
    key: str,
    n_clusters: int,
    seed: int,
    max_iterations: int,
    settings: Settings,
) -> dict[str, Any]:
    """Read all cells and correct them."""
    n_cells = values.shape[0]
    rows = check_finite(values.read(0, n_cells), (0, n_cells), key)
    drawn = uniforms(stream_key(seed, "harmony sample", 0), 0, n_cells) < SAMPLE / n_cells
    centroids = start_centroids(unit_rows(rows)[drawn], n_clusters, seed)
    order = partial(cell_order, seed=seed, n_cells=n_cells)
    codes = strata.read(0, n_cells)
    found = harmonize(rows, codes, centroids, order, settings, max_iterations=max_iterations)
    return {
        "corrected": found.corrected.astype(np.float32),
        "clusters": found.weights.astype(np.float32),
        "centroids": found.centroids,
        "observed": found.observed,
        "objective": np.array(found.objective),
        "inner_objective": np.array(found.inner_objective),
        "rounds": np.array(found.rounds),
        "converged": np.bool_(settings.converged(*found.objective[-2:])),
    }


def take_rows(
    rows: tuple[int, int], *, strata: np.ndarray, harmony: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Rows of a block of what was computed at once."""
    return {name: harmony[name][slice(*rows)] for name in ("corrected", "clusters")}


def sequential_stages(bound: Stages) -> tuple[Each, Map]:
    """Return the stages of the program; their memory grows with the cells, and the plan knows."""
    n_cells, n_dims = bound.values.shape
    n_clusters, spec = bound.n_clusters, bound.spec
    sources = {"values": bound.values, "strata": bound.strata}
    results = n_cells * SINGLE * (n_clusters + n_dims)
    compute = Each(
        "harmony",
        harmonize_all,
        sources,  # read by the kernel itself; here for the fingerprint
        options={
            **sources,
            "key": bound.key,
            "n_clusters": n_clusters,
            "seed": spec.rng,
            "max_iterations": spec.max_iterations,
            "settings": bound.settings,
        },
        workspace=TileWorkspace(0, n_cells * FLOAT * (6 * n_clusters + 8 * n_dims)),
        nanoseconds=n_cells * n_clusters * 200.0,
    )
    write = Map(
        "write",
        take_rows,
        {"strata": bound.strata},
        ("harmony",),
        workspace=TileWorkspace(0, 2 * results),
        writes=bound.writes,
        whole_blocks=True,
    )
    return compute, write
