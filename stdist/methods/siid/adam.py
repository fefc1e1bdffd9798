"""SIID by its published optimiser: runs of Adam over all cells, of which the best are taken."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from stdist.graph import Each, Loop, Reduce, State
from stdist.kernels.siid_adam import (
    adam_step,
    begin_adam,
    entropy_weight,
    start_cells,
    start_factors,
)
from stdist.kernels.siid_gradient import cell_rows, factor_gradient, factors, tile_gradient
from stdist.methods.siid.fit import TILE, never
from stdist.methods.siid.sample import tile_of
from stdist.methods.siid.spec import SiidSpec
from stdist.preprocess.bound import TileWorkspace
from stdist.store import InputError

if TYPE_CHECKING:
    from stdist.methods.siid.program import Bound

Arrays = dict[str, Any]
FLOAT = 8


def start(
    item: int, *, run: int, n_factors: int, n_genes: int, n_panel: int, spec: SiidSpec
) -> Arrays:
    """Parameters of the factors before the first epoch; the run's number is added to the seed."""
    logits, log_phi = start_factors(n_factors, n_genes, n_panel, spec.first_seed + run)
    found = {"logits": begin_adam(logits), "log_phi": begin_adam(log_phi)}
    return found | _epoch(found, 0, np.empty((0, 2)), spec)


def _epoch(moving: Mapping[str, Any], epoch: int, losses: np.ndarray, spec: SiidSpec) -> Arrays:
    """What passes and results need beside the parameters."""
    logits, log_phi = moving["logits"][0], moving["log_phi"][0]
    Q, phi = factors(logits, log_phi, platform_scaling=spec.platform_scaling)
    return {"Q": Q, "phi": phi, "epoch": np.int64(epoch), "losses": losses}


def first_epoch(
    rows: tuple[int, int],
    *,
    run: int,
    n_cells: int,
    spec: SiidSpec,
    **arguments: Any,
) -> Arrays:
    """Parameters of a tile's cells after a step from their start."""
    now = arguments.pop(f"run{run}_start")
    tile = tile_of(**arguments)
    numbers = arguments["origin"][: tile[0].shape[0]] - 1
    begun = start_cells(numbers, n_cells, len(now["Q"]), spec.first_seed + run)
    return _step(rows, tile, begin_adam(begun), now, run, n_cells, spec)


def next_epoch(
    rows: tuple[int, int],
    *,
    run: int,
    n_cells: int,
    spec: SiidSpec,
    **arguments: Any,
) -> Arrays:
    """Parameters of a tile's cells after one more step."""
    table, now = arguments.pop(f"run{run}_cells"), arguments.pop(f"run{run}")
    tile = tile_of(**arguments)
    moving = np.moveaxis(table[: tile[0].shape[0]], 1, 0)
    return _step(rows, tile, moving, now, run, n_cells, spec)


def _step(
    rows: tuple[int, int],
    tile: Any,
    moving: np.ndarray,
    now: Mapping[str, Any],
    run: int,
    n_cells: int,
    spec: SiidSpec,
) -> Arrays:
    epoch = int(now["epoch"])
    slope, total = tile_gradient(
        *tile,
        np.ascontiguousarray(moving[0]),
        np.asarray(now["Q"]),
        np.asarray(now["phi"]),
        entropy=entropy_weight(epoch, spec.entropy_schedule) / n_cells,
        l2=spec.weight_l2,
    )
    table = np.zeros((rows[1] - rows[0], *moving.shape[::2]))
    table[: len(slope)] = np.moveaxis(adam_step(moving, slope, epoch, spec.learning_rate), 0, 1)
    return total | {f"run{run}_cells": table}


def advance(total: Arrays, *, n_cells: int, spec: SiidSpec, **state: Mapping[str, Any]) -> Arrays:
    """Parameters of the factors after a step, and the losses so far.

    Raises
    ------
    InputError
        If the loss is not finite.
    """
    (now,) = state.values()
    epoch, losses = int(now["epoch"]), np.asarray(now["losses"])
    moving = {name: np.asarray(now[name]) for name in ("logits", "log_phi")}
    loss, *slopes = factor_gradient(
        total,
        moving["logits"][0],
        moving["log_phi"][0],
        entropy=entropy_weight(epoch, spec.entropy_schedule) / n_cells,
        l2=spec.weight_l2,
        platform_scaling=spec.platform_scaling,
    )
    if not np.isfinite(loss.total):
        raise InputError(
            "loss-nonfinite",
            f"the loss is {loss.total} in epoch {epoch}",
            place="solver 'adam'",
            remedy=f"give a learning_rate below {spec.learning_rate:g}",
        )
    moving = {
        name: adam_step(value, slope, epoch, spec.learning_rate)
        for (name, value), slope in zip(moving.items(), slopes, strict=True)
    }
    losses = np.concatenate([losses, [[loss.x, loss.total - loss.x]]])
    return moving | _epoch(moving, epoch + 1, losses, spec)


def take_best(
    rows: tuple[int, int], *, number: int, n_runs: int, state: str, **arguments: Any
) -> Arrays:
    """Rows of a tile in the run with the lowest loss (0), the next (1), ..., as `fit` has them."""
    best = _ranked(arguments, n_runs)[number]
    table = arguments[f"run{best}_cells"]
    found = cell_rows(table[:, 0])
    kept = np.column_stack(found) * (arguments["origin"] > 0)[:, None]
    return {state: kept.astype(np.float32)}


def best_factors(total: Arrays, *, number: int, n_runs: int, **runs: Mapping[str, Any]) -> Arrays:
    """Factors and losses of that run."""
    best = runs[f"run{_ranked(runs, n_runs)[number]}"]
    kept = {name: np.asarray(best[name]) for name in ("Q", "phi", "losses")}
    return kept | {"gauge": np.ones(len(kept["Q"]))}


def _ranked(runs: Mapping[str, Any], n_runs: int) -> np.ndarray:
    losses = [np.asarray(runs[f"run{run}"]["losses"])[-1].sum() for run in range(n_runs)]
    return np.argsort(losses, kind="stable")


class AdamRuns:
    """Stages of all runs, and of those that are taken.

    Parameters
    ----------
    bound
        What the stages of SIID share.
    """

    def __init__(self, bound: Bound) -> None:
        self.bound, self.spec = bound, bound.spec
        self.names = [f"run{number}" for number in range(self.spec.n_restarts)]
        self.common = {"n_cells": bound.pair.cells.n_obs, "spec": self.spec}
        self.columns = 3, bound.n_factors + 2
        # what is kept thrice and its copies, loadings and gradients
        row = int(bound.cell_entries * 12 + 12 * (bound.n_factors + 8) * FLOAT)
        self.tile = TileWorkspace(row, 6 * FLOAT * bound.n_genes * (bound.n_factors + 8))

    def states(self) -> dict[str, State]:
        """Parameters of cells with their running means."""
        return {f"{name}_cells": State(self.columns, "float64") for name in self.names}

    def run(self, number: int) -> list[Any]:
        """Stages of one run."""
        bound, name, finalize = self.bound, self.names[number], partial(advance, **self.common)
        begin = Each(
            f"{name}_start",
            start,
            options={
                "run": number,
                "n_factors": bound.n_factors,
                "n_genes": bound.n_genes,
                "n_panel": bound.pair.n_panel,
                "spec": self.spec,
            },
        )
        options = {"run": number, **self.common}
        first, later = (
            Reduce(
                f"{name}_{label}",
                kernel,
                uses=uses,
                options=options,
                finalize=finalize,
                workspace=self.tile,
                nanoseconds=bound.cell_entries * bound.n_factors * 3.0,
                partial_bytes=bound.global_bytes,
                rows=bound.places,
                recalls=recalls,
                updates=(f"{name}_cells",),
            )
            for label, kernel, uses, recalls in (
                ("first_epoch", first_epoch, (f"{name}_start",), TILE),
                ("epoch", next_epoch, (name,), (*TILE, f"{name}_cells")),
            )
        )
        return [begin, first, Loop(name, (later,), first.name, never, self.spec.epochs - 1)]

    def take(self, name: str, state: str, number: int) -> Reduce:
        """Stage that gives rows and factors of a run to a solution."""
        rank = {"number": number, "n_runs": len(self.names)}
        return Reduce(
            name,
            take_best,
            uses=tuple(self.names),
            options={"state": state, **rank},
            finalize=partial(best_factors, **rank),
            workspace=TileWorkspace(6 * FLOAT * self.columns[1]),
            rows=self.bound.places,
            recalls=("origin", *(f"{name}_cells" for name in self.names)),
            updates=(state,),
        )
