"""Passes over all cells: rows of tiles move with the factors fixed, then the factors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from stdist.kernels.array_module import array_module
from stdist.kernels.poisson_factors import Settings, proportions, spot_loadings
from stdist.kernels.poisson_factors_global import next_exponent, total_loss
from stdist.kernels.poisson_factors_spots import Rows
from stdist.kernels.poisson_factors_start import start_rows
from stdist.methods.siid.sample import improved, moved, ranked, tile_of
from stdist.methods.siid.spec import EXPONENT

Arrays = dict[str, Any]
TILE = ("cells", "spots", "spot", "origin", "spot_origin")
"""States of the two slides."""
WINDOW, SETTLED = 34, 1e-5
"""The fit for proportions ends where the loss fell by less than this share in so many passes."""


def begin_tile(
    rows: tuple[int, int],
    *,
    seed: int,
    settings: Settings,
    number: int,
    name: str,
    **arguments: Any,
) -> Arrays:
    """Rows of a tile from their start, improved with the factors of a restart."""
    (starts,) = (arguments.pop(key) for key in ("restarts", "chosen") if key in arguments)
    now = ranked(starts, number)
    tile = tile_of(**arguments)
    begun = start_rows(*tile, arguments["origin"][: tile[0].shape[0]] - 1, len(now["Q"]), seed)
    return _pass(tile, begun, now, settings, rows, name)


def improve_tile(
    rows: tuple[int, int],
    *,
    settings: Settings,
    name: str,
    state: str,
    **arguments: Any,
) -> Arrays:
    """Rows of a tile after one more pass."""
    before, now = arguments.pop(state), arguments.pop(name)
    tile = tile_of(**arguments)
    kept = before[: tile[0].shape[0]].astype(np.float64)
    moving = Rows(kept[:, :-2].copy(), kept[:, -2].copy(), kept[:, -1].copy())
    return _pass(tile, moving, now, settings, rows, state)


def _pass(
    tile: Any,
    moving: Rows,
    now: Mapping[str, Any],
    settings: Settings,
    rows: tuple[int, int],
    state: str,
) -> Arrays:
    new, total = improved(tile, moving, now, settings)
    xp = array_module(new.n)
    table = xp.zeros((rows[1] - rows[0], len(now["Q"]) + 2), np.float32)
    table[: len(new.n)] = xp.column_stack(list(new))
    return total | {state: table}


def first_step(
    total: Arrays, *, number: int, n_panel: int, settings: Settings, platform_scaling: bool,
    **starts: Arrays,
) -> Arrays:  # fmt: skip
    """Factors after the first pass."""
    (found,) = starts.values()
    before = ranked(found, number) | {"exponent": 1.0, "losses": np.empty((0, 2))}
    return advance(
        total, n_panel=n_panel, settings=settings, platform_scaling=platform_scaling, now=before
    )


def advance(
    total: Mapping[str, Any], *, n_panel: int, settings: Settings, platform_scaling: bool,
    **state: Mapping[str, Any],
) -> Arrays:  # fmt: skip
    """Factors of the next pass, and the losses so far."""
    (now,) = state.values()
    losses = np.asarray(now["losses"])
    loss = total_loss(total, np.asarray(now["Q"]), np.asarray(now["phi"]), settings)
    previous = losses[-1].sum() if len(losses) else np.inf
    exponent = next_exponent(float(now["exponent"]), loss, previous, EXPONENT)
    parts = np.array([[total["loss_x"], loss - total["loss_x"]]])
    return {
        **moved(total, now, n_panel, settings, exponent, platform_scaling),
        "exponent": np.float64(exponent),
        "losses": np.concatenate([losses, parts]),
        "rejected": np.int64(total["rejected"]),
        "n_spots": np.int64(total["n_spots"]),
        "empty_counts": np.float64(total["empty_counts"]),
    }


def never(previous: Any, current: Any) -> bool:
    """Every pass is made: more of them do not mean better imputation."""
    return False


def settled(previous: Any, current: Any, window: int = WINDOW) -> bool:
    """Tell whether the loss has not fallen for a whole window: plateaus are long here."""
    losses = np.asarray(current["losses"]).sum(axis=1)
    if len(losses) <= window:
        return False
    return bool(losses[-1 - window] - losses[-1] < SETTLED * abs(losses[-1]))


def load_spots(rows: tuple[int, int], *, state: str, name: str, **arguments: Any) -> Arrays:
    """Proportions of factors in the spots of a tile, soft and by the largest factor of a cell."""
    before, now = arguments.pop(state), arguments.pop(name)
    _, above, spot = tile_of(**arguments)
    n_cells, n_spots = len(spot), above.shape[0]
    scaled = before[:n_cells, :-2].astype(np.float64) * now["gauge"]
    size = scaled.sum(axis=1)
    soft = Rows(scaled / size[:, None], before[:n_cells, -2] * size, before[:n_cells, -1] * size)
    hard = np.zeros_like(soft.p)
    hard[np.arange(n_cells), soft.p.argmax(axis=1)] = 1.0
    return {
        "spot": arguments["spot_origin"][:n_spots] - 1,
        "soft": proportions(spot_loadings(soft, spot, n_spots)),
        "hard": proportions(spot_loadings(soft._replace(p=hard), spot, n_spots)),
        "loadings": spot_loadings(soft, spot, n_spots),
    }


def tied_scales(rows: tuple[int, int], *, fitted: tuple[str, ...], **arguments: Any) -> Arrays:
    """Scales ``s`` of the spots of a tile in every fit, NaN without cells."""
    sizes = [arguments.pop(f"{name}_rows")[:, -2:] for name in fitted]
    _, above, spot = tile_of(**arguments)
    mapped, n_spots = spot >= 0, above.shape[0]
    scales = []
    for size in sizes:
        n, m = (
            np.bincount(spot[mapped], size[: len(spot)][mapped, column], n_spots)
            for column in (0, 1)
        )
        scales.append(np.divide(m, n, out=np.full(n_spots, np.nan), where=n > 0))
    return {
        "spot": arguments["spot_origin"][:n_spots] - 1,
        "scale": np.stack(scales, axis=1),
    }


def by_spot(total: Arrays, **state: Arrays) -> Arrays:
    """Rows of all spots in their own order."""
    order = np.argsort(total["spot"], kind="stable")
    return {name: values[order] for name, values in total.items() if name != "spot"}


def write_rows(
    rows: tuple[int, int],
    *,
    spot_back: np.ndarray,
    solutions: tuple[str, ...],
    types: str | None,
    **arguments: Any,
) -> Arrays:
    """Loadings of the mean of the solutions, proportions, sizes, and the spot, of each cell."""
    found: Arrays = {"spot": spot_back}
    fits = [current_rows(arguments[f"{name}_rows_back"], arguments[name]) for name in solutions]
    loadings = [row.n[:, None] * row.p / len(fits) for row in fits]
    found["loadings"] = np.concatenate(loadings, axis=1)
    mapped = spot_back >= 0
    found["spot_sizes"] = np.stack([np.where(mapped, row.m, 0.0) for row in fits], axis=1)
    if types is not None:
        row = current_rows(arguments[f"{types}_rows_back"], arguments[f"{types}_hard"])
        found["proportions"] = row.p
        found["types_sizes"] = np.stack([row.n, np.where(mapped, row.m, 0.0)], axis=1)
    single = {name: found[name].astype(np.float32) for name in found.keys() - {"spot"}}
    return found | single


def current_rows(table: np.ndarray, state: Mapping[str, Any]) -> Rows:
    """Probabilities and sizes of cells for the factors of the last step."""
    scaled = table[:, :-2].astype(np.float64) * np.asarray(state["gauge"])
    size = scaled.sum(axis=1)
    p = scaled / np.maximum(size, np.finfo(float).tiny)[:, None]
    return Rows(p, table[:, -2] * size, table[:, -1] * size)
