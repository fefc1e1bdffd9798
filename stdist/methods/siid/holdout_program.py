"""The hold-out as a program: for every fold the fit without its genes, and their scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from stdist.graph import Each, Program, Rearrange, Reduce, State, add, by_name, scoped
from stdist.methods.checks import wrong_parameter
from stdist.methods.data import Data
from stdist.methods.siid.edges import EdgeBound
from stdist.methods.siid.fit import TILE
from stdist.methods.siid.holdout_folds import chosen_folds
from stdist.methods.siid.holdout_results import JS, holdout_results
from stdist.methods.siid.holdout_tiles import (
    NEAR,
    NEIGHBORS,
    QUERIES,
    STREAMED,
    all_neighbors,
    diverge_neighbors,
    diverge_tile,
    find_neighbors,
    merge_all,
    merged,
    place_cells_and_answers,
    sample_answers,
    score_neighbors,
    score_tile,
    sum_all,
)
from stdist.methods.siid.holdout_types import known_proportions
from stdist.methods.siid.laid_out import FLOAT
from stdist.methods.siid.pair import Pair
from stdist.methods.siid.program import Bound
from stdist.methods.siid.sample import append
from stdist.methods.siid.spec import SiidSpec
from stdist.preprocess.bound import TileWorkspace
from stdist.store import TILE_ROWS

_COPIES = 16  # float64 tables of a tile's held-out genes, at most


def holdout_program(
    cells: Data,
    spots: Data,
    key_added: str,
    *,
    n_folds: int = 10,
    folds: Any = None,
    fold_of_gene: Mapping[str, int] | None = None,
    controls: bool = True,
    n_neighbors: int = 10,
    proportions: str | None = None,
    target: Path | None = None,
    **options: Any,
) -> Program:
    """Bind the hold-out to a pair; on a `target` its tables are all that this new store has.

    Raises
    ------
    InputError
        As of `stdist.tl.siid_holdout`.
    """
    for name, remedy in (
        ("held_out", "nothing: folds say what is held out"),
        ("deconvolve", "nothing: types are told where their proportions are given"),
    ):
        if options.pop(name, None):
            raise wrong_parameter("siid_holdout", name, "given", remedy)
    if n_neighbors < 1:
        raise wrong_parameter("siid_holdout", "n_neighbors", n_neighbors, "at least 1")
    whole = Pair(cells, spots, SiidSpec(**options, deconvolve=proportions is not None))
    known = None if proportions is None else known_proportions(spots, proportions)
    genes_of = chosen_folds(whole, n_folds, folds, fold_of_gene, whole.spec.rng)
    kind = EdgeFold if whole.spec.n_spots_per_cell > 1 else Fold
    base = kind(whole, controls=controls, n_neighbors=n_neighbors)
    stages: list[Any] = base.lay_out()[:1]  # the same for all folds
    states: dict[str, State] = {}
    for fold, genes in genes_of.items():
        bound = kind(whole.like(held_out=genes), controls=controls, n_neighbors=n_neighbors)
        own, kept = scoped(f"fold{fold}", *bound.stages())
        stages += own
        states |= kept
    given = {
        "n_folds": n_folds if fold_of_gene is None else None,
        "folds": list(genes_of),
        "controls": controls,
        "n_neighbors": n_neighbors,
        "proportions": proportions,
        **options,
    }
    parameters = {"spots": str(spots.path)}
    parameters |= {name: value for name, value in given.items() if value is not None}
    recorded = {"data": str(cells.path), "key_added": key_added, **parameters}
    if fold_of_gene is not None:
        recorded["fold_of_gene"] = {str(name): int(fold) for name, fold in fold_of_gene.items()}
    return Program(
        "siid_holdout",
        tuple(stages),
        recorded,
        cells.path if target is None else target,
        creates=target is not None,
        results=partial(
            holdout_results,
            key=f"uns/{key_added}",
            parameters=parameters,
            genes_of=genes_of,
            n_solutions=whole.spec.n_solutions,
            controls=controls,
            known=known,
            notes=[*whole.notes, *(_sampled(base) if controls else [])],
        ),
        result_keys=(f"uns/{key_added}",),
        state=states,
    )


class Fold(Bound):
    """The genes that a pair holds out, fitted without and scored.

    Parameters
    ----------
    pair
        Cells and spots, with `held_out` genes of the cells.
    controls
        Whether baselines, and the same fit with the spots permuted, are scored too.
    n_neighbors
        Cells in the baselines of neighbours.
    """

    def __init__(self, pair: Pair, *, controls: bool, n_neighbors: int) -> None:
        super().__init__(pair)
        self.controls, self.n_neighbors = controls, n_neighbors
        column = {name: number for number, name in enumerate(map(str, pair.cells.var_names))}
        self.held = np.array([column[str(name)] for name in pair.genes[pair.n_panel :]])
        self.held_entries = self.cell_entries * len(self.held) / pair.n_panel

    def place_cells(self) -> Rearrange:
        """With the counts of the held-out genes."""
        found = super().place_cells()
        return replace(
            found,
            kernel=partial(place_cells_and_answers, place=found.kernel),
            options={**found.options, "held": self.held},
            updates=(*found.updates, "answers", "xy"),
        )

    def stages(self) -> tuple[list[Any], dict[str, State]]:
        """Stages after the layout, and the states that they keep."""
        _, *placing = self.lay_out()
        stages: list[Any] = [*placing, *self._solutions(), *self._scores(controls=self.controls)]
        if self.spec.deconvolve:
            stages += [*self._deconvolve(), self._spot_loadings()]
        if not self.controls:
            return stages, self.states()
        sample = self._restarts()[0]
        if self.spec.solver == "adam":  # whose runs take no sample
            stages.append(sample)
        stages += self._neighbors(sample)
        alone = self.pair.like(deconvolve=False)
        control = type(self)(alone, controls=False, n_neighbors=self.n_neighbors)
        fits = [*control._solutions(), *control._scores(controls=False)]
        permuted, states = control.permuted(fits)
        return stages + permuted, self.states() | states

    def states(self) -> dict[str, State]:
        """With what is known of the held-out genes."""
        answers = State((len(self.held),), "float32", entries=self.held_entries)
        return {**super().states(), "answers": answers, "xy": State((2,), "float64")}

    def _scores(self, *, controls: bool) -> list[Reduce]:
        score = self._score(controls=controls)
        diverge = replace(
            score,
            name=score.name + JS,
            kernel=diverge_tile,
            uses=(*score.uses, score.name),
            combine=add,
        )
        return [score, diverge]

    def _score(self, *, controls: bool) -> Reduce:
        n_estimates = 1 + len(self.solutions) + (len(STREAMED) if controls else 0)
        options = {
            "n_panel": self.pair.n_panel,
            "solutions": self.solutions,
            "controls": controls,
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
        common: dict[str, Any] = {"n_items": -(-most // QUERIES)}
        opened = 3 * (sample.partial_bytes + answers)
        neighbors = Each(
            "neighbors",
            find_neighbors,
            uses=("sample", "sample_answers"),
            options={"n_panel": self.pair.n_panel, "n_neighbors": self.n_neighbors},
            workspace=TileWorkspace(0, opened),
            nanoseconds=QUERIES * rows * self.cell_entries,
            collect=all_neighbors,
            **common,
        )
        found = len(NEAR) * self.n_neighbors * FLOAT * rows
        scores = QUERIES * FLOAT * (_COPIES + len(NEIGHBORS)) * len(self.held)
        score = Each(
            "score_neighbors",
            score_neighbors,
            uses=("sample", "sample_answers", "neighbors"),
            options={"n_panel": self.pair.n_panel},
            workspace=TileWorkspace(0, opened + found + scores),
            nanoseconds=QUERIES * self.n_neighbors * 100.0,
            collect=merge_all,
            **common,
        )
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
            neighbors,
            score,
            replace(
                score,
                name=score.name + JS,
                kernel=diverge_neighbors,
                uses=(*score.uses, score.name),
                collect=sum_all,
            ),
        ]


class EdgeFold(Fold, EdgeBound):
    """The same where a cell may belong to several spots; baselines know the nearest only."""


def _sampled(fold: Fold) -> list[str]:
    """Say so where neighbours are looked for in a sample."""
    if fold.every == 1:
        return []
    return [
        f"[baselines-sampled] neighbours are looked for, and scored, among about "
        f"{fold.spec.sample_cells} of {fold.pair.cells.n_obs} cells"
    ]
