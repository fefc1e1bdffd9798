"""Harmony as stages over blocks: sample, then correct and rounds in a loop, then write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from stdist.graph import Loop, Map, Reduce, State, by_name, one_thread
from stdist.kernels.array_module import array_module
from stdist.kernels.harmony_cells import corrected_rows, soft_clusters
from stdist.kernels.harmony_rounds import (
    after_correction,
    after_round,
    assignment,
    begin,
    correct_pass,
    finish,
    round_pass,
)
from stdist.kernels.harmony_settings import Settings, unit_rows
from stdist.kernels.keyed_random import stream_key, uniforms
from stdist.kernels.kmeans import kmeans
from stdist.preprocess.bound import TileWorkspace
from stdist.preprocess.harmony_spec import HarmonySpec
from stdist.store import InputError, Output, Source

SAMPLE = 50_000
"""Cells among which the initial centroids are found."""
FLOAT, SINGLE = 8, 4


def check_finite(values: np.ndarray, rows: tuple[int, int], key: str) -> np.ndarray:
    """Return rows of an embedding as float32.

    Raises
    ------
    InputError
        With code embedding-nonfinite, and the first cell.
    """
    with np.errstate(over="ignore"):
        single = np.ascontiguousarray(values, np.float32)
    bad = np.flatnonzero(~np.isfinite(single).all(axis=1))
    if len(bad):
        raise InputError(
            "embedding-nonfinite",
            "the embedding has values that are NaN, infinite or too large for float32",
            place=f"obsm {key!r}, row {rows[0] + int(bad[0])}",
            remedy="compute it again, or filter these cells out",
        )
    return single


def start_tile(
    rows: tuple[int, int], *, values: np.ndarray, key: str, share: float, seed: int
) -> dict[str, np.ndarray]:
    """Unit rows, and those drawn by key for the initial centroids."""
    unit = unit_rows(check_finite(values, rows, key))
    drawn = uniforms(stream_key(seed, "harmony sample", 0), rows[0], len(unit)) < share
    return {"rows": unit[drawn], "unit": unit}


def append(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Combine sampled rows."""
    return np.concatenate([left, right])


def start_centroids(sample: np.ndarray, n_clusters: int, seed: int) -> np.ndarray:
    """k-means++ and Lloyd on unit rows."""
    with one_thread():
        return kmeans(sample, n_clusters, seed=seed)[0]


def start_state(total: Any, *, n_clusters: int, seed: int, settings: Settings) -> dict[str, Any]:
    """State before the first iteration."""
    return begin(start_centroids(total["rows"], n_clusters, seed), settings)


def correct_tile(
    rows: tuple[int, int],
    *,
    values: np.ndarray,
    strata: np.ndarray,
    unit: np.ndarray,
    harmony: Mapping[str, np.ndarray],
    settings: Settings,
) -> dict[str, Any]:
    """Correct the rows of a tile; sums for the first round."""
    values = array_module(values).ascontiguousarray(values, np.float32)
    new, sums = correct_pass(values, unit, strata, harmony, settings)
    return {"unit": new, **sums}


def round_tile(
    rows: tuple[int, int],
    *,
    strata: np.ndarray,
    unit: np.ndarray,
    settings: Settings,
    values: np.ndarray | None = None,
    **before: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """Sums of a tile in an inner round; `before` is the value of the stage before."""
    (state,) = before.values()
    if values is not None:
        values = array_module(values).ascontiguousarray(values, np.float32)
    return round_pass(unit, strata, state, settings, values)


def _advance(total: Any, *, step: Any, settings: Settings, **before: Any) -> dict[str, Any]:
    (state,) = before.values()
    return step(total, state, settings)


def _converged(previous: Any, current: Any) -> bool:
    return bool(current["converged"])


def write_tile(
    rows: tuple[int, int],
    *,
    values: np.ndarray,
    strata: np.ndarray,
    unit: np.ndarray,
    harmony: Mapping[str, np.ndarray],
    settings: Settings,
    clusters: bool,
) -> dict[str, np.ndarray]:
    """Corrected rows and soft clusters."""
    tables = assignment(harmony, settings)
    values = array_module(values).ascontiguousarray(values, np.float32)
    corrected = corrected_rows(values, unit, strata, tables, harmony["shift"])
    return {"corrected": corrected} | (
        {"clusters": soft_clusters(unit, strata, tables)} if clusters else {}
    )


@dataclass(frozen=True)
class Stages:
    """What the stages share.

    Attributes
    ----------
    values, strata
        Embedding and stratum of each cell.
    key
        Entry of ``obsm`` that the embedding is.
    writes
        Outputs ``corrected`` and, if wanted, ``clusters``.
    """

    values: Source
    strata: Source
    key: str
    settings: Settings
    n_clusters: int
    spec: HarmonySpec
    writes: Mapping[str, Output]

    @property
    def states(self) -> dict[str, State]:
        """Rows that stay with the blocks: unit rows of the corrected embedding."""
        return {"unit": State((self.values.shape[1],), "float32")}

    def all(self) -> tuple[Any, ...]:
        """Return the stages of the program."""
        rounds = self.settings.inner_rounds
        names = ["correct", *(f"round{number}" for number in range(1, rounds + 1))]
        pairs = pairwise(names)
        later = [self._round(name, before, last=name == names[-1]) for before, name in pairs]
        body = (self._correct(), *later)
        loop = Loop("harmony", body, "start", _converged, self.spec.max_iterations)
        return self._start(), loop, self._write()

    @property
    def _tile(self) -> TileWorkspace:
        """Soft clusters of a tile, its rows a few times, and the tables."""
        n_dims, strata = self.values.shape[1], self.settings.strata
        tables = (len(strata.cells) + strata.n_levels) * self.n_clusters * (n_dims + 4) * FLOAT
        return TileWorkspace(SINGLE * (self.n_clusters + 6 * n_dims), 2 * tables)

    def _table_bytes(self, n_rows: int) -> int:
        return (n_rows + len(self.settings.strata.cells)) * self.n_clusters * FLOAT

    def _start(self) -> Reduce:
        n_cells, n_dims = self.values.shape
        share = min(1.0, SAMPLE / n_cells)
        return Reduce(
            "start",
            start_tile,
            {"values": self.values},
            options={"key": self.key, "share": share, "seed": self.spec.rng},
            combine=by_name(rows=append),
            gathers=True,
            finalize=partial(
                start_state, n_clusters=self.n_clusters, seed=self.spec.rng, settings=self.settings
            ),
            workspace=TileWorkspace(SINGLE * 3 * n_dims),
            nanoseconds=n_dims * 2.0,
            partial_bytes=int(2 * share * n_cells) * n_dims * SINGLE,
            updates=("unit",),
        )

    def _correct(self) -> Reduce:
        return Reduce(
            "correct",
            correct_tile,
            {"values": self.values, "strata": self.strata},
            ("harmony",),
            {"settings": self.settings},
            finalize=partial(_advance, step=after_correction, settings=self.settings),
            workspace=self._tile,
            nanoseconds=2.5 * self.n_clusters * (1 + self.values.shape[1] / 10),
            partial_bytes=self._table_bytes(self.values.shape[1]),
            recalls=("unit",),
            on_device=True,
            updates=("unit",),
        )

    def _round(self, name: str, before: str, *, last: bool) -> Reduce:
        n_dims, settings = self.values.shape[1], self.settings
        reads = {"strata": self.strata} | ({"values": self.values} if last else {})
        sums = n_dims * (settings.strata.n_levels + 1) if last else n_dims
        return Reduce(
            name,
            round_tile,
            reads,
            (before,),
            {"settings": settings},
            finalize=partial(_advance, step=finish if last else after_round, settings=settings),
            workspace=self._tile,
            nanoseconds=self.n_clusters * (1 + n_dims / 15),
            partial_bytes=self._table_bytes(sums),
            recalls=("unit",),
            on_device=True,
        )

    def _write(self) -> Map:
        return Map(
            "write",
            write_tile,
            {"values": self.values, "strata": self.strata},
            ("harmony",),
            {"settings": self.settings, "clusters": "clusters" in self.writes},
            workspace=self._tile,
            nanoseconds=2.0 * self.n_clusters * (1 + self.values.shape[1] / 10),
            writes=self.writes,
            recalls=("unit",),
            on_device=True,
        )
