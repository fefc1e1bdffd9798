"""Several updates of the factors in a pass, one after each part of the tiles: incremental EM.

The state keeps the statistics of every part as of its last visit, and the factors follow from their
sum. With plain steps the free energy, in which each part has the posterior of its own last visit,
never rises (Neal and Hinton 1998), so no part waits for the others to move. Factors cannot be
over-relaxed here: the statistics of the other parts would draw them back. Those of a part are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from stdist.kernels.poisson_factors import Settings
from stdist.kernels.poisson_factors_global import next_exponent, total_loss
from stdist.methods.siid.fit import begin_tile
from stdist.methods.siid.sample import moved, ranked

Arrays = dict[str, Any]
LARGEST_EXPONENT = 1.5
"""Largest over-relaxation of the statistics: with 1.8 and 16 parts fits diverge."""
ADDED = ("factor_counts", "cell_mass", "spot_mass", "spot_counts")
"""Statistics that are over-relaxed."""
LEAST = 1e-100
"""Statistics at or below it have no logarithm worth going beyond."""
KEPT = "part_"
"""Begins the names of the statistics of all parts in the state."""


def begin_part(rows: tuple[int, int], *, ends: np.ndarray, **arguments: Any) -> Arrays:
    """As `begin_tile`, with the statistics kept apart by the part of the tile."""
    found = begin_tile(rows, **arguments)
    table = found.pop(arguments["name"])
    apart = {name: np.asarray(value)[None] for name, value in found.items()}
    group = np.searchsorted(ends, rows[:1], side="right")
    return apart | {"group": group, arguments["name"]: table}


def first_parts(total: Mapping[str, Any], *, number: int, **options: Any) -> Arrays:
    """Factors after the first pass, with the statistics of all parts."""
    (starts,) = (options.pop(key) for key in ("restarts", "chosen") if key in options)
    before = ranked(starts, number) | {"exponent": 1.0, "losses": np.empty((0, 2))}
    kept = {name: values for name, values in total.items() if name != "group"}
    return _step(kept, before, before["exponent"], ends=True, **options)


def advance_part(
    total: Mapping[str, Any], *, part: tuple[int, int], n_panel: int, settings: Settings,
    platform_scaling: bool, **state: Mapping[str, Any],
) -> Arrays:  # fmt: skip
    """Factors after a part has moved, and at the end of a pass the loss."""
    (now,) = state.values()
    number, n_parts = part
    kept = {name: np.array(now[KEPT + name]) for name in total}
    before = {name: values[number] for name, values in kept.items()}
    losses = (_loss(each, settings) for each in (total, before))
    exponent = next_exponent(float(now["exponent"]), *losses, LARGEST_EXPONENT)
    for name, values in kept.items():
        beyond = name in ADDED
        values[number] = _beyond(before[name], total[name], exponent) if beyond else total[name]
    ends = number == n_parts - 1
    return _step(kept, now, exponent, ends, n_panel, settings, platform_scaling)


def _loss(total: Mapping[str, Any], settings: Settings) -> float:
    """Loss of a part, without the penalties of the factors."""
    penalties = settings.entropy * total["entropy"] + settings.l2 * total["squares"]
    return float(total["loss_x"] + total["loss_v"] + penalties)


def _beyond(old: np.ndarray, new: np.ndarray, exponent: float) -> np.ndarray:
    """Over-relaxed in logarithms, as far as there are such."""
    ratio = np.divide(new, old, out=np.ones_like(old), where=old > LEAST)
    return np.where(old > LEAST, old * ratio**exponent, new)


def _step(
    kept: Arrays,
    now: Mapping[str, Any],
    exponent: float,
    ends: bool,
    n_panel: int,
    settings: Settings,
    platform_scaling: bool,
) -> Arrays:
    """Factors that follow from all parts.

    Rows of Q are scaled to the sum 1 at the end of a pass only: until then the parts that are still
    to come owe their rows the gauge of the pass before.
    """
    total = {name: values.sum(axis=0) for name, values in kept.items()}
    Q, phi = np.asarray(now["Q"]), np.asarray(now["phi"])
    scale = Q.sum(axis=1)
    inside = total | _scaled(total, scale)
    before = {**now, "Q": Q / scale[:, None]}
    found = moved(inside, before, n_panel, settings, 1.0, platform_scaling)
    scale = scale * found["gauge"]
    losses = np.asarray(now["losses"])
    if ends:
        found["gauge"] = scale
        kept = kept | _scaled(kept, scale)
        loss = total_loss(total, before["Q"], phi, settings)
        losses = np.concatenate([losses, [[total["loss_x"], loss - total["loss_x"]]]])
    else:
        found |= {"Q": found["Q"] * scale[:, None], "gauge": now["gauge"]}
    return {
        **found,
        "exponent": np.float64(exponent),
        "losses": losses,
        "rejected": np.int64(total["rejected"]),
        "n_spots": np.int64(total["n_spots"]),
        "empty_counts": np.float64(total["empty_counts"]),
        **{KEPT + name: values for name, values in kept.items()},
    }


def _scaled(statistics: Mapping[str, Any], scale: np.ndarray) -> Arrays:
    """Masses of rows whose factors are scaled, of the sum or of all parts."""
    return {
        "cell_mass": statistics["cell_mass"] * scale,
        "spot_mass": statistics["spot_mass"] * scale[:, None],
    }
