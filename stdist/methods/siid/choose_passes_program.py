"""The choice of the number of passes as a program: score genes held out as the fits go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from stdist.graph import Program, Reduce, State, scoped
from stdist.kernels.imputation_scores import gene_scores
from stdist.methods.siid.choose_factors_program import choice_notes
from stdist.methods.siid.edges import EdgeBound
from stdist.methods.siid.fit import never
from stdist.methods.siid.held_out import CONTROLS, PERMUTED
from stdist.methods.siid.holdout_folds import chosen_folds
from stdist.methods.siid.holdout_program import Fold
from stdist.methods.siid.holdout_tiles import STREAMED, score_tile
from stdist.methods.siid.pair import Pair
from stdist.methods.siid.verdicts import held_out_notes

Arrays = dict[str, Any]
FOLDS = 4
"""Folds by default: with one, on the breast pair, the choice is worse than 20 passes. They are the
last ones, because the check beside a fit scores the first."""


def passes_program(
    pair: Pair, candidates: list[int], *, n_folds: int, folds: Sequence[int] | None
) -> Program:
    """Bind the choice to a pair of slides.

    Raises
    ------
    InputError
        If folds are none of the shared genes'.
    """
    kind = EdgeMilestones if pair.spec.n_spots_per_cell > 1 else Milestones
    genes_of = chosen_folds(pair, n_folds, folds, None, pair.spec.rng, "siid_choose_passes")
    if folds is None:
        genes_of = dict(list(genes_of.items())[-FOLDS:])
    controls = pair.spec.controls
    whole = kind(pair, controls=controls, n_neighbors=1)
    stages: list[Any] = whole.lay_out()[:1]  # the same for all folds
    states: dict[str, State] = {}
    for fold, genes in genes_of.items():
        bound = kind(pair.like(held_out=genes), controls=controls, n_neighbors=1)
        own, kept = scoped(f"fold{fold}", *bound.milestones(candidates))
        stages += own
        states |= kept
    spec, key = pair.spec, pair.spec.key_added
    own_parameters = {"passes": candidates, "n_folds": n_folds, "folds": list(genes_of)}
    return Program(
        "siid_choose_passes",
        tuple(stages),
        {
            "data": str(pair.cells.path),
            "spots": str(pair.spots.path),
            **{name: getattr(spec, name) for name in PARAMETERS},
            "transform": spec.matrix,
            **own_parameters,
        },
        pair.cells.path,
        results=partial(
            _results,
            candidates=candidates,
            genes_of=genes_of,
            solutions=whole.solutions,
            controls=controls,
            key=key,
            notes=pair.notes,
        ),
        result_keys=(f"uns/{key}",),
        state=states,
    )


PARAMETERS = (
    *("n_factors", "layer", "spots_layer", "spatial_key", "spots_spatial_key", "max_distance"),
    *("n_spots_per_cell", "n_solutions", "n_restarts", "sample_cells", "updates_per_pass"),
    *("spots_model", "spot_scale", "platform_scaling", "shrink", "l2", "controls"),
    *("key_added", "rng"),
)
"""What the fits share with those of `stdist.tl.siid`, beside the transform."""


class Milestones(Fold):
    """Fits without the genes held out, scored after several numbers of passes."""

    def milestones(self, candidates: Sequence[int]) -> tuple[list[Any], dict[str, State]]:
        """Stages after the layout, and the states that they keep."""
        _, *placing = self.lay_out()
        stages, states = [*placing, *self._fits(candidates)], self.states()
        if self.controls:
            alone = type(self)(self.pair.like(n_solutions=1), controls=False, n_neighbors=1)
            permuted, own = alone.permuted(alone._fits(candidates))
            stages, states = stages + permuted, states | own
        return stages, states

    def _fits(self, candidates: Sequence[int]) -> list[Any]:
        """All fits up to a number of passes, their scores, and so on."""
        stages: list[Any] = self._restarts()
        at = {name: name for name in self.solutions}
        for number, name in enumerate(self.solutions):
            stages += self._fit(name, "restarts", number, candidates[0], never)
        stages.append(self._score_at(candidates[0], at))
        for before, passes in pairwise(candidates):
            for name in self.solutions:
                further = f"{name}_{passes}"
                stages.append(self._loop(name, further, at[name], passes - before, never))
                at[name] = further
            stages.append(self._score_at(passes, at))
        return stages

    def _score_at(self, passes: int, at: Mapping[str, str]) -> Reduce:
        score = self._score(controls=self.controls)
        return replace(
            score,
            name=score_name(passes),
            kernel=score_milestone,
            uses=tuple(at.values()),
            options={**score.options, "at": dict(at)},
        )


class EdgeMilestones(Milestones, EdgeBound):
    """The same where a cell may belong to several spots."""


def score_name(passes: int) -> str:
    """Name of the stage that scores after so many passes."""
    return f"score_{passes}"


def score_milestone(rows: tuple[int, int], *, at: Mapping[str, str], **arguments: Any) -> Arrays:
    """Score a tile; factors of every solution are those of the loop that it has come to."""
    factors = {name: arguments.pop(loop) for name, loop in at.items()}
    return score_tile(rows, **factors, **arguments)


def _results(
    values: Mapping[str, Any],
    candidates: list[int],
    genes_of: Mapping[int, list[str]],
    solutions: tuple[str, ...],
    controls: bool,
    key: str,
    notes: list[str],
) -> dict[str, Any]:
    """Name the number of passes after which genes held out are imputed best."""
    of_folds = [
        _scores(values, passes, genes_of, len(solutions), controls) for passes in candidates
    ]
    tables = [pd.concat(parts) for parts in of_folds]
    r2 = np.array([table["siid"] for table in tables])
    mean = r2.mean(axis=1)
    best = int(mean.argmax())
    below = r2[best] - r2
    error = below.std(axis=1) / np.sqrt(below.shape[1])
    within = int(np.flatnonzero(below.mean(axis=1) <= error)[0])
    single = [table.filter(like="solution").mean(axis=None) for table in tables]
    columns = {
        "passes": candidates,
        "r2": mean,
        "below_best": below.mean(axis=1),
        "standard_error": error,
        "single_r2": single,
    }
    found = [*notes, *choice_notes("passes", candidates, best, within)]
    entry = {"passes": candidates[best], "n_genes": below.shape[1], "held_out": tables[best]}
    if controls:
        columns["permuted_r2"] = [table[PERMUTED].mean() for table in tables]
        means = [part.filter(like="solution").mean() for part in of_folds[best]]
        spread = float(np.mean([mean.max() - mean.min() for mean in means]))
        found += held_out_notes(tables[best], spread)
    return {f"uns/{key}": entry | {"table": pd.DataFrame(columns), "notes": found or None}}


def _scores(
    values: Mapping[str, Any],
    passes: int,
    genes_of: Mapping[int, list[str]],
    n_solutions: int,
    controls: bool,
) -> list[pd.DataFrame]:
    """R2 of the genes of every fold after so many passes, with the columns of `held_out_table`."""
    name = score_name(passes)
    parts = []
    for fold, genes in genes_of.items():
        r2 = gene_scores(values[f"fold{fold}.{name}"])["r2"].reshape(-1, len(genes))
        columns = ["siid", *(f"solution {number}" for number in range(n_solutions))]
        part = pd.DataFrame(r2[: len(columns)].T, pd.Index(genes, dtype=object), columns)
        if controls:
            for control in CONTROLS:
                part[control] = r2[len(columns) + STREAMED.index(control)]
            permuted = gene_scores(values[f"fold{fold}.{PERMUTED}.{name}"])["r2"]
            part[PERMUTED] = permuted[: len(genes)]
        parts.append(part)
    return parts
