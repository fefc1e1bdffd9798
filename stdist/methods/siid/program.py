"""SIID as a program: lay out, restarts on a sample, passes over all cells, results."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from stdist.graph import (
    Each,
    Loop,
    Map,
    Program,
    Rearrange,
    Reduce,
    State,
    add_by_group,
    by_name,
    concatenate,
    part_bounds,
    scoped,
)
from stdist.kernels.keyed_random import stream_key, uniforms
from stdist.kernels.poisson_factors import Settings
from stdist.methods.siid.adam import AdamRuns
from stdist.methods.siid.fit import (
    TILE,
    WINDOW,
    advance,
    begin_tile,
    by_spot,
    first_step,
    improve_tile,
    load_spots,
    never,
    settled,
    tied_scales,
    write_rows,
)
from stdist.methods.siid.held_out import PERMUTED, answered_genes, held_out_stages
from stdist.methods.siid.laid_out import FLOAT, LaidOut
from stdist.methods.siid.pair import Pair
from stdist.methods.siid.parts import advance_part, begin_part, first_parts
from stdist.methods.siid.places import take_back
from stdist.methods.siid.results import fit_results
from stdist.methods.siid.sample import (
    LONG_ROUNDS,
    LONG_STARTS,
    SHORT_ROUNDS,
    append,
    go_on,
    number_spots,
    restart,
    sample_tile,
    stack,
)
from stdist.preprocess.bound import TileWorkspace
from stdist.store import TILE_ROWS, Output, StdistWarning

CLUSTERS = 10
"""E-steps that take as long as the clusters of a start."""
DECONVOLVED = "types"
"""Name of the solution that proportions come from."""


def siid_program(pair: Pair, bound: type[Bound]) -> Program:
    """Bind SIID to a pair of slides."""
    for note in pair.notes:
        warnings.warn(note, StdistWarning, stacklevel=3)
    return bound(pair).program()


class Bound(LaidOut):
    """What the stages share."""

    steps = 1
    """Passes that move the rows as often as one that has tiles of whole spots."""

    def __init__(self, pair: Pair) -> None:
        super().__init__(pair)
        self.solutions = tuple(f"solution{number}" for number in range(self.spec.n_solutions))
        self.fitted = (*self.solutions, *((DECONVOLVED,) if self.spec.deconvolve else ()))
        self.global_bytes = FLOAT * self.n_genes * (2 * self.n_factors + 2)
        width = (self.n_factors + 7) // 8 * 8
        row = int(self.cell_entries * 12 + 6 * width * FLOAT)
        self.overdispersed = self.spec.spots_model == "negative_binomial"
        tables = 8 if self.overdispersed else 6
        kept = self.n_parts * self.global_bytes if self.n_parts > 1 else 0
        self.tile = TileWorkspace(row, tables * FLOAT * self.n_genes * width + kept)

    def states(self) -> dict[str, State]:
        """Rows that stay with the blocks, and those that go back to the cells."""
        row, found = State((self.n_factors + 2,), "float32"), super().states()
        for name in self.fitted:
            found |= {f"{name}_rows": row, f"{name}_rows_back": row}
        return found | (AdamRuns(self).states() if self.spec.solver == "adam" else {})

    def program(self) -> Program:
        """Return the program."""
        stages: list[Any] = [*self.lay_out(), *self._solutions()]
        states = self.states()
        control: tuple[str, ...] = ()
        if self.spec.controls and answered_genes(self.pair):
            fit = type(self)(self.pair.like(n_solutions=1, deconvolve=False))
            permuted, own = fit.permuted(fit._solutions())
            control = tuple(f"{PERMUTED}.{name}" for name in fit.solutions)
            stages += permuted
            states |= own | {f"{name}_rows_back": own[f"{name}_rows"] for name in control}
        if self.spec.deconvolve:
            stages += [*self._deconvolve(), self._spot_loadings()]
        if self.spec.spot_scale == "tied":
            stages.append(self._tied_scales())
        stages += self._results(control)
        spec, pair = self.spec, self.pair
        key = spec.key_added
        return Program(
            "siid",
            tuple(stages),
            {"data": str(pair.cells.path), "spots": str(pair.spots.path), **spec.to_parameters()},
            pair.cells.path,
            results=partial(
                fit_results,
                spec=spec,
                notes=pair.notes,
                genes=pair.genes,
                n_panel=pair.n_panel,
                solutions=self.solutions,
                answered=answered_genes(pair),
            ),
            result_keys=(f"uns/{key}",),
            state=states,
        )

    def permuted(self, fits: list[Any]) -> tuple[list[Any], dict[str, State]]:
        """Stages that fit, and may score, the pair with permuted spots, and their states.

        The cells are those that the stages of the pair itself have laid out.
        """
        key = stream_key(self.spec.rng, "siid permuted spots", 0)
        number = np.argsort(uniforms(key, 0, self.pair.spots.n_obs), kind="stable")
        stages = [self.layout(number), self.place_spots(), *fits]
        return scoped(PERMUTED, stages, self.states())

    def _solutions(self) -> list[Any]:
        """Stages that leave rows and factors of every solution."""
        stages: list[Any] = []
        if self.spec.solver == "adam":
            runs = AdamRuns(self)
            for number in range(self.spec.n_restarts):
                stages += runs.run(number)
            taken = enumerate(self.solutions)
            return stages + [runs.take(name, f"{name}_rows", number) for number, name in taken]
        stages += self._restarts()
        for number, name in enumerate(self.solutions):
            stages += self._fit(name, "restarts", number, self.spec.passes, never)
        return stages

    @property
    def every(self) -> int:
        """How many tiles have one in the sample."""
        return max(1, self.places // self.spec.sample_cells)

    def _restarts(self) -> list[Any]:
        spec = self.spec
        every = self.every
        rows = (self.places // TILE_ROWS // every + 1) * TILE_ROWS
        size = int(rows * (12 * self.cell_entries + 32))
        size += int(12 * self.spot_entries * self.pair.spots.n_obs / every)
        appended = [
            f"{name}_{part}" for name in ("cells", "spots") for part in ("data", "genes", "lengths")
        ]
        rules = dict.fromkeys((*appended, "spot", "origin", "n_spots", "n_cells"), append)
        common = {
            "n_panel": self.pair.n_panel,
            "seed": spec.first_seed,
            "settings": spec.settings(),
            "platform_scaling": spec.platform_scaling,
        }
        a_round = rows * self.cell_entries * self.n_factors * 2.0
        stages: list[Any] = [
            Reduce(
                "sample",
                sample_tile,
                options={"every": every},
                combine=by_name(**rules),
                gathers=True,
                finalize=number_spots,
                partial_bytes=size,
                rows=self.places,
                recalls=TILE,
            ),
            Each(
                "restarts",
                restart,
                uses=("sample",),
                options={
                    "n_factors": self.n_factors,
                    "overdispersed": self.overdispersed,
                    **common,
                },
                workspace=TileWorkspace(0, 3 * size + 8 * rows * self.n_factors * FLOAT),
                nanoseconds=(CLUSTERS + SHORT_ROUNDS) * a_round,
                n_items=spec.n_restarts,
                collect=stack,
            ),
        ]
        if spec.deconvolve:
            stages.append(
                Each(
                    "chosen",
                    go_on,
                    uses=("sample", "restarts"),
                    options=common,
                    workspace=TileWorkspace(0, 2 * size + 8 * rows * self.n_factors * FLOAT),
                    nanoseconds=LONG_ROUNDS * a_round,
                    n_items=min(LONG_STARTS, spec.n_restarts),
                    collect=stack,
                )
            )
        return stages

    def _fit(
        self, name: str, starts: str, number: int, passes: int, converged: Any, entropy: float = 0.0
    ) -> list[Any]:
        """Stages that fit all cells, from the best restart of a number."""
        spec, settings = self.spec, self._settings(name, entropy)
        common = {
            "n_panel": self.pair.n_panel,
            "settings": settings,
            "platform_scaling": spec.platform_scaling,
        }
        begin = Reduce(
            f"{name}_begin",
            begin_tile,
            uses=(starts,),
            options={
                "seed": spec.rng,
                "settings": settings,
                "number": number,
                "name": f"{name}_rows",
            },
            finalize=partial(first_step, number=number, **common),
            **self._pass(f"{name}_rows"),
        )
        n_parts = self.n_parts
        if n_parts > 1:
            bounds = [part_bounds((at, n_parts), self.places) for at in range(n_parts)]
            begin = replace(
                begin,
                kernel=begin_part,
                options={**begin.options, "ends": np.array([end for _, end in bounds])},
                combine=add_by_group,
                finalize=partial(first_parts, number=number, **common),
                partial_bytes=n_parts * self.global_bytes,
            )
        return [begin, self._loop(name, name, f"{name}_begin", passes, converged, entropy)]

    @property
    def n_parts(self) -> int:
        """Parts of the tiles in a pass, of at least one each."""
        return min(self.spec.updates_per_pass, max(1, -(-self.places // TILE_ROWS)))

    def _loop(
        self, fit: str, name: str, initial: str, passes: int, converged: Any, entropy: float = 0.0
    ) -> Loop:
        """Passes, by a name of their own, that go on with a fit from where `initial` left it."""
        spec, settings, n_parts = self.spec, self._settings(fit, entropy), self.n_parts
        state = f"{fit}_rows"
        common = {
            "n_panel": self.pair.n_panel,
            "settings": settings,
            "platform_scaling": spec.platform_scaling,
        }
        body: list[Reduce] = []
        for number in range(n_parts):
            now = body[-1].name if body else name
            part = number, n_parts
            body.append(
                Reduce(
                    f"{name}_pass{number if n_parts > 1 else ''}",
                    improve_tile,
                    uses=(now,),
                    options={"settings": settings, "name": now, "state": state},
                    finalize=partial(advance_part, part=part, **common)
                    if n_parts > 1
                    else partial(advance, **common),
                    on_device=spec.spots_model == "poisson" and spec.spot_scale == "free",
                    keep_csr=True,
                    part=part,
                    **self._pass(state, recalled=True),
                )
            )
        return Loop(name, tuple(body), initial, converged, passes)

    def _settings(self, name: str, entropy: float) -> Settings:
        """Profiles are drawn together where genes are imputed, not where types are told apart."""
        shrink = self.spec.shrink and name in self.solutions
        return replace(self.spec.settings(entropy), shrink=shrink)

    def _pass(self, state: str, *, recalled: bool = False) -> dict[str, Any]:
        return {
            "workspace": self.tile,
            "nanoseconds": self.cell_entries * self.n_factors * 6.0,
            "partial_bytes": self.global_bytes,
            "rows": self.places,
            "recalls": (*TILE, *((state,) if recalled else ())),
            "updates": (state,),
        }

    def _deconvolve(self) -> list[Any]:
        """Converge first, then harden: entropy helps in the right optimum only."""
        spec, hard = self.spec, f"{DECONVOLVED}_hard"
        if spec.solver == "adam":
            return [AdamRuns(self).take(hard, f"{DECONVOLVED}_rows", 0)]
        converged = partial(settled, window=self.steps * WINDOW)
        stages = self._fit(DECONVOLVED, "chosen", 0, spec.convergence_passes, converged)
        passes = spec.entropy_passes
        stages.append(self._loop(DECONVOLVED, hard, DECONVOLVED, passes, never, spec.entropy))
        return stages

    def _spot_loadings(self) -> Reduce:
        hard = f"{DECONVOLVED}_hard"
        return Reduce(
            "spot_loadings",
            load_spots,
            uses=(hard,),
            options={"state": f"{DECONVOLVED}_rows", "name": hard},
            combine=concatenate,
            gathers=True,
            finalize=by_spot,
            partial_bytes=self.pair.spots.n_obs * (3 * self.n_factors + 1) * FLOAT,
            rows=self.places,
            recalls=(*TILE, f"{DECONVOLVED}_rows"),
        )

    def _tied_scales(self) -> Reduce:
        return Reduce(
            "tied_scales",
            tied_scales,
            options={"fitted": self.fitted},
            combine=concatenate,
            gathers=True,
            finalize=by_spot,
            partial_bytes=self.pair.spots.n_obs * (len(self.fitted) + 1) * FLOAT,
            rows=self.places,
            recalls=(*TILE, *(f"{name}_rows" for name in self.fitted)),
        )

    def _results(self, control: tuple[str, ...]) -> list[Any]:
        spec, n_cells, key = self.spec, self.pair.cells.n_obs, self.spec.key_added
        fitted = tuple(f"{name}_rows" for name in self.fitted)
        returned = (*fitted, *(f"{name}_rows" for name in control))
        types = DECONVOLVED if spec.deconvolve else None
        scores = []
        if answered_genes(self.pair):
            scores = held_out_stages(self.pair, self.solutions, control, self.cell_entries)
        values = (*self.solutions, *((f"{DECONVOLVED}_hard",) if spec.deconvolve else ()))
        writes = {
            "spot": Output(f"obs/{key}_spot", (), "int32"),
            "loadings": Output(f"obsm/{key}", (len(self.solutions) * self.n_factors,), "float32"),
            "spot_sizes": Output(f"obsm/{key}_spot_size", (len(self.solutions),), "float32"),
        }
        if spec.deconvolve:
            writes["proportions"] = Output(f"obsm/{key}_types", (self.n_factors,), "float32")
            writes["types_sizes"] = Output(f"obsm/{key}_types_size", (2,), "float32")
        return [
            Rearrange(
                "take_back",
                take_back,
                rows=self.places,
                recalls=("origin", "spot_number", *returned),
                updates=("spot_back", *(f"{name}_back" for name in returned)),
                places=n_cells,
            ),
            *scores,
            Map(
                "write",
                write_rows,
                uses=values,
                options={"solutions": self.solutions, "types": types},
                workspace=TileWorkspace(3 * FLOAT * self.n_factors * len(fitted)),
                rows=n_cells,
                recalls=("spot_back", *(f"{name}_back" for name in fitted)),
                writes=writes,
            ),
        ]
