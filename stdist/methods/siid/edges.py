"""SIID where a cell may belong to several spots: passes in three parts, spots in between."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np

from stdist.graph import Loop, Rearrange, Reduce, State, add_by_group, by_name
from stdist.kernels.poisson_factors import Settings, proportions
from stdist.kernels.poisson_factors_edges import EdgeRows, edge_loadings, edge_pass, explain_spots
from stdist.kernels.poisson_factors_rows import SMALLEST
from stdist.kernels.poisson_factors_start import start_rows
from stdist.kernels.spot_map import spots_within
from stdist.methods.checks import wrong_parameter
from stdist.methods.siid.fit import TILE, advance, write_rows
from stdist.methods.siid.laid_out import FLOAT
from stdist.methods.siid.pair import Pair
from stdist.methods.siid.places import place_cells
from stdist.methods.siid.program import DECONVOLVED, Bound
from stdist.methods.siid.sample import append, ranked, tile_of
from stdist.methods.siid.spec import ROUNDS
from stdist.preprocess.bound import TileWorkspace
from stdist.store import Output

Arrays = dict[str, Any]
ONLY = {"solver": "em", "spots_model": "poisson", "spot_scale": "free", "updates_per_pass": 1}
"""Options that go with several spots per cell."""


class EdgeBound(Bound):
    """Stages of SIID with several spots per cell.

    Restarts on the sample, and the order of cells, are those of the nearest spot.
    """

    def __init__(self, pair: Pair) -> None:
        super().__init__(pair)
        self.steps = ROUNDS
        self.n_edges, self.n_spots = pair.spec.n_spots_per_cell, pair.spots.n_obs
        chosen = asdict(pair.spec)
        for name, value in ONLY.items():
            if chosen.get(name, value) != value:
                raise wrong_parameter("siid", name, chosen[name], f"{value!r} with several spots")
        self.spot_bytes = FLOAT * self.n_spots * (self.n_factors + 1)
        self.tile = TileWorkspace(self.tile.row_bytes, self.tile.fixed + 2 * self.spot_bytes)

    def states(self) -> dict[str, State]:
        """With the spots of each cell, and its size in each."""
        spots, sizes = State((self.n_edges,), "int32"), State((self.n_edges,), "float32")
        found = super().states() | {"edges": spots, "edges_back": spots}
        for name in self.fitted:
            found |= {f"{name}_sizes": sizes, f"{name}_sizes_back": sizes}
        return found

    def place_cells(self) -> Rearrange:
        """With the spots of each cell."""
        found = super().place_cells()
        return replace(
            found,
            kernel=place_cells_and_edges,
            options={**found.options, "n_edges": self.n_edges},
            workspace=TileWorkspace(64 + 24 * self.n_edges + int(24 * self.cell_entries)),
            updates=(*found.updates, "edges"),
        )

    def _fit(
        self, name: str, starts: str, number: int, passes: int, converged: Any, entropy: float = 0.0
    ) -> list[Any]:
        begin = Reduce(
            f"{name}_begin",
            begin_edges,
            uses=(starts,),
            options={"seed": self.spec.rng, "number": number, "name": name},
            finalize=partial(first_factors, number=number),
            rows=self.places,
            workspace=self.tile,
            recalls=(*TILE, "edges"),
            updates=(f"{name}_rows", f"{name}_sizes"),
        )
        return [begin, self._loop(name, name, f"{name}_begin", passes, converged, entropy)]

    def _loop(
        self, fit: str, name: str, initial: str, passes: int, converged: Any, entropy: float = 0.0
    ) -> Loop:
        common = {"rows": self.places, "workspace": self.tile}
        mine = ("origin", "edges", f"{fit}_rows", f"{fit}_sizes")
        settings = self._settings(fit, entropy)
        load = self._loadings(
            f"{name}_load",
            fit,
            name,
            finalize=partial(by_number, n_spots=self.n_spots),
            partial_bytes=self.spot_bytes,
        )
        explain = Reduce(
            f"{name}_explain",
            explain_tile,
            uses=(load.name, name),
            options={"name": name, "load": load.name},
            combine=by_name(number=append, ratios=append),
            gathers=True,
            finalize=in_order,
            partial_bytes=self.spot_bytes + self.global_bytes,
            nanoseconds=self.spot_entries * self.n_factors * 6.0,
            recalls=("spots", "spot_origin"),
            **common,
        )
        improve = Reduce(
            f"{name}_pass",
            improve_edges,
            uses=(explain.name, name),
            options={"name": name, "of": fit, "explain": explain.name, "settings": settings},
            finalize=partial(
                advance_edges,
                name=name,
                explain=explain.name,
                n_panel=self.pair.n_panel,
                settings=settings,
                platform_scaling=self.spec.platform_scaling,
            ),
            partial_bytes=self.global_bytes,
            nanoseconds=self.cell_entries * self.n_factors * 6.0,
            recalls=("cells", *mine),
            updates=(f"{fit}_rows", f"{fit}_sizes"),
            **common,
        )
        return Loop(name, (load, explain, improve), initial, converged, self.steps * passes)

    def _loadings(self, stage: str, fit: str, name: str, **what: Any) -> Reduce:
        return Reduce(
            stage,
            load_edges,
            uses=(name,),
            options={"name": name, "of": fit},
            combine=add_by_group,
            rows=self.places,
            workspace=self.tile,
            recalls=("origin", "edges", f"{fit}_rows", f"{fit}_sizes"),
            **what,
        )

    def _spot_loadings(self) -> Reduce:
        found = self._loadings(
            "spot_loadings",
            DECONVOLVED,
            f"{DECONVOLVED}_hard",
            finalize=partial(shares_by_number, n_spots=self.n_spots),
            partial_bytes=2 * self.spot_bytes,
        )
        return replace(found, options={**found.options, "hard": True})

    def _results(self, control: tuple[str, ...]) -> list[Any]:
        take_back, *scores, write = super()._results(control)
        key, more = self.spec.key_added, ("edges", *(f"{name}_sizes" for name in self.fitted))
        back = tuple(f"{name}_back" for name in more)
        writes = {
            "edge_spot": Output(f"obsm/{key}_edge_spot", (self.n_edges,), "int32"),
            "edge_size": Output(f"obsm/{key}_edge_size", (self.n_edges,), "float32"),
        }
        if self.spec.deconvolve:
            types = Output(f"obsm/{key}_types_edge_size", (self.n_edges,), "float32")
            writes["types_edge_size"] = types
        return [
            replace(
                take_back,
                recalls=(*take_back.recalls, *more),
                updates=(*take_back.updates, *back),
            ),
            *scores,
            replace(
                write,
                kernel=write_edges,
                recalls=(*write.recalls, *back),
                writes={**write.writes, **writes},
            ),
        ]


def place_cells_and_edges(
    rows: tuple[int, int], *, spatial: np.ndarray, layout: Arrays, max_distance: float,
    n_edges: int, **arguments: Any,
) -> Arrays:  # fmt: skip
    """Send each cell to its nearest spot, with the numbers of its spots, 1 for the first."""
    placed = place_cells(
        rows, spatial=spatial, layout=layout, max_distance=max_distance, **arguments
    )
    points = np.asarray(spatial, np.float64)
    found = spots_within(points, layout["points"], n_edges, max_distance)
    edges = np.zeros((len(points), n_edges), np.int32)
    lengths = np.diff(found.indptr)
    slot = np.arange(len(found.spot)) - np.repeat(found.indptr[:-1], lengths)
    edges[np.repeat(np.arange(len(points)), lengths), slot] = found.spot + 1
    return placed | {"edges": edges}


def begin_edges(
    rows: tuple[int, int], *, edges: np.ndarray, seed: int, number: int, name: str,
    **arguments: Any,
) -> Arrays:  # fmt: skip
    """Rows of a tile from their start; what a cell has in its nearest spot, it has in all."""
    (starts,) = (arguments.pop(key) for key in ("restarts", "chosen") if key in arguments)
    tile = tile_of(**arguments)
    n_cells = tile[0].shape[0]
    begun = start_rows(*tile, arguments["origin"][:n_cells] - 1, starts["Q"].shape[1], seed)
    share = begun.m / np.maximum((edges[:n_cells] > 0).sum(axis=1), 1)
    start = EdgeRows(begun.p, begun.n, np.repeat(share[:, None], edges.shape[1], axis=1))
    return {"n_cells": np.int64(n_cells), **_kept(rows, start, name)}


def first_factors(total: Arrays, *, number: int, **starts: Arrays) -> Arrays:
    """Factors of a restart, before the first pass."""
    (found,) = starts.values()
    factors = ranked(found, number)
    gauge = np.ones(len(factors["Q"]))
    return {**factors, "gauge": gauge, "exponent": np.float64(1.0), "losses": np.empty((0, 2))}


def load_edges(
    rows: tuple[int, int], *, origin: np.ndarray, edges: np.ndarray, name: str, of: str,
    hard: bool = False, **arguments: Any,
) -> Arrays:  # fmt: skip
    """What the cells of a tile load on spots; with `hard` also by their largest factors alone."""
    mine, spots = _current(origin, edges, of, arguments[name], arguments)
    group, loadings = edge_loadings(mine, spots)
    found = {"group": group, "loadings": loadings}
    if hard:
        largest = np.zeros_like(mine.p)
        largest[np.arange(len(mine.n)), mine.p.argmax(axis=1)] = 1.0
        found["hard"] = edge_loadings(mine._replace(p=largest), spots)[1]
    return found


def by_number(total: Arrays, *, n_spots: int, **values: Arrays) -> Arrays:
    """Loadings of all spots."""
    found = {}
    for name in total.keys() - {"group"}:
        found[name] = np.zeros((n_spots, total[name].shape[1]))
        found[name][total["group"]] = total[name]
    return found


def shares_by_number(total: Arrays, *, n_spots: int, **values: Arrays) -> Arrays:
    """Loadings and proportions of all spots, soft and by the largest factors of cells."""
    found = by_number(total, n_spots=n_spots)
    soft, hard = found["loadings"], found["hard"]
    return {"soft": proportions(soft), "hard": proportions(hard), "loadings": soft}


def explain_tile(
    rows: tuple[int, int], *, spots: Any, spot_origin: np.ndarray, name: str, load: str,
    **values: Any,
) -> Arrays:  # fmt: skip
    """Ratios and statistics of the spots of a tile."""
    number = spot_origin[: int((spot_origin > 0).sum())] - 1
    now, loadings = values[name], values[load]["loadings"][number]
    ratios, total = explain_spots(spots[: len(number)], loadings, now["Q"], now["phi"])
    return total | {"number": number, "ratios": ratios}


def in_order(total: Arrays, **values: Arrays) -> Arrays:
    """Ratios in the order of the spots."""
    order = np.argsort(total["number"], kind="stable")
    rest = {key: value for key, value in total.items() if key != "number"}
    return rest | {"ratios": total["ratios"][order]}


def improve_edges(
    rows: tuple[int, int], *, cells: Any, origin: np.ndarray, edges: np.ndarray, name: str, of: str,
    explain: str, settings: Settings, **arguments: Any,
) -> Arrays:  # fmt: skip
    """Rows of a tile after one more step."""
    now, ratios = arguments[name], arguments[explain]["ratios"]
    mine, spots = _current(origin, edges, of, now, arguments)
    new, total = edge_pass(
        cells[: len(mine.n)], spots, mine, ratios, now["Q"], now["phi"],
        entropy=settings.entropy, l2=settings.l2,
    )  # fmt: skip
    return total | _kept(rows, new, of)


def advance_edges(
    total: Arrays, *, name: str, explain: str, n_panel: int, settings: Settings,
    platform_scaling: bool, **values: Arrays,
) -> Arrays:  # fmt: skip
    """Factors of the next pass, from the statistics of cells and of spots."""
    of_spots = {key: value for key, value in values[explain].items() if key != "ratios"}
    counts = total["factor_counts"] + of_spots.pop("factor_counts")
    return advance(
        {**total, **of_spots, "factor_counts": counts, "rejected": 0},
        n_panel=n_panel, settings=settings, platform_scaling=platform_scaling,
        now=values[name],
    )  # fmt: skip


def write_edges(
    rows: tuple[int, int], *, solutions: tuple[str, ...], types: str | None, **arguments: Any
) -> Arrays:
    """What `write_rows` writes, the spots of each cell, and its size in each and in all."""
    found = write_rows(rows, solutions=solutions, types=types, **arguments)
    sizes = [_sizes(name, arguments[name], arguments) for name in solutions]
    mean = np.mean(sizes, axis=0).astype(np.float32)
    found |= {"edge_spot": arguments["edges_back"] - 1, "edge_size": mean}
    found["spot_sizes"] = np.sum(sizes, axis=2, dtype=np.float32).T
    if types is not None:
        found["types_edge_size"] = _sizes(types, arguments[f"{types}_hard"], arguments)
        found["types_sizes"][:, 1] = found["types_edge_size"].sum(axis=1)
    return found


def _sizes(name: str, now: Any, arguments: Arrays) -> np.ndarray:
    """Sizes of cells in their spots for the factors of the last step, float32."""
    table = arguments[f"{name}_rows_back"][:, :-2].astype(np.float64)
    scale = (table * np.asarray(now["gauge"])).sum(axis=1)
    sizes = arguments[f"{name}_sizes_back"] * scale[:, None]
    return np.where(arguments["edges_back"] > 0, sizes, 0.0).astype(np.float32)


def _current(
    origin: np.ndarray, edges: np.ndarray, of: str, now: Any, arguments: Arrays
) -> tuple[EdgeRows, np.ndarray]:
    """Rows of the cells of a tile for the factors of a step, and their spots."""
    n_cells = int((origin > 0).sum())
    table = arguments[f"{of}_rows"][:n_cells].astype(np.float64)
    p = np.maximum(table[:, :-2] * np.asarray(now["gauge"]), SMALLEST)
    scale = p.sum(axis=1)
    sizes = arguments[f"{of}_sizes"][:n_cells].astype(np.float64) * scale[:, None]
    return (
        EdgeRows(p / scale[:, None], table[:, -2] * scale, sizes),
        edges[:n_cells].astype(np.int64) - 1,
    )


def _kept(rows: tuple[int, int], moving: EdgeRows, of: str) -> Arrays:
    """States of a tile; the last column of its rows, a size in one spot, is not used here."""
    n_cells, n_factors = moving.p.shape
    table = np.zeros((rows[1] - rows[0], n_factors + 2), np.float32)
    table[:n_cells, :-2], table[:n_cells, -2] = moving.p, moving.n
    sizes = np.zeros((rows[1] - rows[0], moving.m.shape[1]), np.float32)
    sizes[:n_cells] = moving.m
    return {f"{of}_rows": table, f"{of}_sizes": sizes}
