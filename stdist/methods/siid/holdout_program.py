"""One fold as a program: the fit without its genes, and their scores as the only result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from stdist.graph import Each, Program, Reduce, State, by_name
from stdist.kernels.keyed_random import stream_key, uniforms
from stdist.methods.siid.fit import TILE
from stdist.methods.siid.holdout_tiles import (
    NEIGHBORS,
    QUERIES,
    STREAMED,
    merge_all,
    merged,
    place_cells_and_answers,
    sample_answers,
    score_neighbors,
    score_tile,
)
from stdist.methods.siid.pair import Pair
from stdist.methods.siid.program import FLOAT, Bound
from stdist.methods.siid.sample import append
from stdist.preprocess.bound import TileWorkspace
from stdist.store import TILE_ROWS

RESULT = "uns/holdout"
_COPIES = 16  # float64 tables of a tile's held-out genes, at most


class FoldProgram(Bound):
    """The genes that a pair holds out, fitted without and scored.

    Parameters
    ----------
    pair
        Cells and spots, with `held_out` genes of the cells.
    controls
        Whether baselines are scored too.
    n_neighbors
        Cells in the baselines of neighbours.
    permuted
        Whether spots give their counts to other spots' places.
    """

    def __init__(
        self, pair: Pair, *, controls: bool, n_neighbors: int = 10, permuted: bool = False
    ) -> None:
        super().__init__(pair)
        self.controls, self.n_neighbors, self.permuted = controls, n_neighbors, permuted
        column = {name: number for number, name in enumerate(map(str, pair.cells.var_names))}
        self.held = np.array([column[str(name)] for name in pair.genes[pair.n_panel :]])
        self.held_entries = self.cell_entries * len(self.held) / pair.n_panel

    def program(self, target: Path | None = None) -> Program:
        """Return the program; on stores its result is the only element of a new one."""
        layout, place_cells, place_spots = self._lay_out()
        if self.permuted:
            own = layout.options["spot_row"]
            key = stream_key(self.spec.rng, "siid permuted spots", 0)
            other = own[np.argsort(uniforms(key, 0, len(own)), kind="stable")]
            layout = replace(layout, options={**layout.options, "spot_row": other})
        place_cells = replace(
            place_cells,
            kernel=place_cells_and_answers,
            options={**place_cells.options, "held": self.held},
            updates=(*place_cells.updates, "answers", "xy"),
        )
        stages: list[Any] = [layout, place_cells, place_spots, *self._solutions(), self._score()]
        if self.controls:
            sample = self._restarts()[0]
            if self.spec.solver == "adam":  # whose runs take no sample
                stages.append(sample)
            stages += self._neighbors(sample)
        return Program(
            "siid_holdout",
            tuple(stages),
            {"held_out": self.spec.held, "permuted": self.permuted},
            target,
            creates=True,
            results=partial(_results, names=("score", *(("neighbors",) if self.controls else ()))),
            state=self.states() | self._answers(),
        )

    def _answers(self) -> dict[str, State]:
        answers = State((len(self.held),), "float32", entries=self.held_entries)
        return {"answers": answers, "xy": State((2,), "float64")}

    def _score(self) -> Reduce:
        n_estimates = 1 + len(self.solutions) + (len(STREAMED) if self.controls else 0)
        options = {
            "n_panel": self.pair.n_panel,
            "solutions": self.solutions,
            "controls": self.controls,
        }
        return Reduce(
            "score",
            score_tile,
            uses=self.solutions,
            options=options,
            combine=merged,
            workspace=TileWorkspace((_COPIES + n_estimates) * FLOAT * len(self.held)),
            nanoseconds=20.0 * n_estimates * len(self.held),
            partial_bytes=9 * FLOAT * n_estimates * len(self.held),
            rows=self.places,
            recalls=(*TILE, "answers", *(f"{name}_rows" for name in self.solutions)),
        )

    def _neighbors(self, sample: Reduce) -> list[Any]:
        """Neighbours among the cells that the restarts have sampled."""
        rows = (self.places // TILE_ROWS // self.every + 1) * TILE_ROWS
        appended = ("xy", *(f"answers_{part}" for part in ("data", "genes", "lengths")))
        answers = int(rows * (12 * self.held_entries + 3 * FLOAT))
        most = min(rows, self.pair.cells.n_obs)
        return [
            Reduce(
                "sample_answers",
                sample_answers,
                options={"every": self.every},
                combine=by_name(**dict.fromkeys(appended, append)),
                gathers=True,
                partial_bytes=answers,
                rows=self.places,
                recalls=("answers", "xy", "origin"),
            ),
            Each(
                "neighbors",
                score_neighbors,
                uses=("sample", "sample_answers"),
                options={"n_panel": self.pair.n_panel, "n_neighbors": self.n_neighbors},
                workspace=TileWorkspace(
                    0,
                    3 * (sample.partial_bytes + answers)
                    + QUERIES * FLOAT * (_COPIES + len(NEIGHBORS)) * len(self.held),
                ),
                nanoseconds=QUERIES * rows * self.cell_entries,
                n_items=-(-most // QUERIES),
                collect=merge_all,
            ),
        ]


def _results(values: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {RESULT: {name: dict(values[name]) for name in names}}
