"""Harmony's parallel form: all cells at once, the penalty damped, every step a small table.

The published programs update cells block after block, each seeing the masses that the blocks
before it left. Updating all cells from the same masses overshoots: the penalty of a cluster that
holds too much of a batch drives all of it out. So the logarithm of the penalty moves only part of
the way in each round (`Settings.damping`), and less when the objective rose, from the last table
at which it fell. The fixed points are those of the sequential updates.

A pass over the cells needs a *state*, a dict of arrays, and each function here turns the sums of
a pass into the state of the next one:

    begin -> (correct -> round -> ... -> round -> finish) -> ...

Entries of a state: ``centroids`` and ``log_penalty`` (of strata) for the next pass; ``shift`` and
``next_centroids`` for a correction; ``anchor`` and ``goal``, log penalties of levels between which
the next ones lie, and the same of centroids that move; ``damping``; the masses ``observed``;
``accepted``, the objective at the anchor; ``first``, the first inner round of the iteration; and
the convergence (``inner_objective``, ``objective``, ``rounds``, ``settled``, ``converged``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stdist.kernels.harmony_cells import (
    Assignment,
    Codes,
    Single,
    corrected_rows,
    mass_sums,
    row_sums,
    scale_rows,
)
from stdist.kernels.harmony_ridge import intercept_centroids, level_shift, regress
from stdist.kernels.harmony_settings import OBJECTIVE_CELLS, Settings, unit_rows

State = Mapping[str, Any]
Sums = dict[str, Any]

RISE = 1e-3
"""Relative rise of the objective that raises the damping; sequential updates rise by less too."""


def begin(centroids: NDArray, settings: Settings) -> Sums:
    """Return the state before the first correction, which subtracts nothing."""
    n_clusters, n_dims = centroids.shape
    n_strata, n_levels = len(settings.strata.cells), settings.strata.n_levels
    unit = unit_rows(centroids.astype(np.float64))
    return {
        "centroids": unit,
        "next_centroids": unit,
        "log_penalty": np.zeros((n_strata, n_clusters)),
        "shift": np.zeros((n_strata, n_dims, n_clusters), np.float32),
        "anchor": np.zeros((n_levels, n_clusters)),
        "goal": np.zeros((n_levels, n_clusters)),
        "anchor_centroids": unit,
        "goal_centroids": unit,
        "damping": settings.damping,
        "observed": np.zeros((n_strata, n_clusters)),
        "accepted": np.float64(np.inf),
        "settled": np.bool_(False),
        "converged": np.bool_(False),
        "inner_objective": np.empty(0),
        "objective": np.empty(0),
        "rounds": np.empty(0, np.int64),
    }


def assignment(state: State, settings: Settings) -> Assignment:
    """Return the tables of the next pass."""
    return Assignment.of(state["centroids"], state["log_penalty"], settings.sigma)


def correct_pass(
    values: Single, unit: Single, strata: Codes, state: State, settings: Settings
) -> tuple[Single, Sums]:
    """Correct some rows, and sum up the soft clusters with which the inner rounds start.

    Parameters
    ----------
    values, unit
        Uncorrected rows, and unit rows of the current correction; ``(n_rows, n_dims)`` float32.

    Returns
    -------
    unit
        Unit rows of the new correction.
    sums
        As of `round_pass`.
    """
    tables, levels = assignment(state, settings), settings.strata.levels
    new = scale_rows(corrected_rows(values, unit, strata, tables, state["shift"]))
    if settings.flavour.moves_centroids:  # the old soft clusters, and their means of the new rows
        sums, rows = row_sums(unit, strata, tables, new, np.zeros_like(levels[:, :1]))
        return new, sums | {"rows": rows[0].T}
    none = np.zeros_like(state["log_penalty"])
    tables = Assignment.of(state["next_centroids"], none, settings.sigma)
    return new, mass_sums(new, strata, tables)


def round_pass(
    unit: Single, strata: Codes, state: State, settings: Settings, values: Single | None = None
) -> Sums:
    """Sum up the soft clusters of some rows in an inner round.

    Parameters
    ----------
    values
        Uncorrected rows, in the last round: their sums, by level, are what the regression needs.

    Returns
    -------
    dict
        ``observed`` and ``log_sum``; ``rows``, sums of the unit rows ``(n_clusters, n_dims)``, if
        centroids move; and ``by_level``, ``(n_levels, n_dims, n_clusters)``. Nothing if the
        rounds have settled.
    """
    if state["settled"] and values is None:
        return {}
    tables, levels, sums = assignment(state, settings), settings.strata.levels, Sums()
    if settings.flavour.moves_centroids:
        sums, rows = row_sums(unit, strata, tables, unit, np.zeros_like(levels[:, :1]))
        sums["rows"] = rows[0].T
    if values is not None:
        masses, by_level = row_sums(unit, strata, tables, values, levels)
        return sums | masses | {"by_level": by_level}
    return sums or mass_sums(unit, strata, tables)


def _objective(sums: Sums, state: State, settings: Settings) -> float:
    """Objective of a pass with the tables of `state`; of the weights only sums are needed."""
    cells, observed = settings.strata.cells.sum(), sums["observed"]
    entropy = (observed * state["log_penalty"]).sum() - sums["log_sum"]
    total = 2 * cells + settings.sigma * (entropy + settings.diversity(observed))
    if settings.flavour.moves_centroids:  # distances are to the means, the weights damped
        total += 2 * (sums["rows"] * (state["centroids"] - state["goal_centroids"])).sum()
    return float(total) * OBJECTIVE_CELLS / float(cells)


def _aim(state: Sums, settings: Settings) -> Sums:
    """Add the tables of the next pass, part of the way from the anchor to the goal."""
    levels, centroids = _between(state)
    return state | {"log_penalty": settings.strata.by_stratum(levels), "centroids": centroids}


def _between(state: State) -> tuple[NDArray, NDArray]:
    damping = state["damping"][:, None]
    levels = damping * state["anchor"] + (1 - damping) * state["goal"]
    slow = damping.max()
    return levels, slow * state["anchor_centroids"] + (1 - slow) * state["goal_centroids"]


def after_correction(sums: Sums, state: State, settings: Settings) -> Sums:
    """Return the state for the first inner round."""
    new = dict(state) | {"observed": sums["observed"], "settled": np.bool_(False)}
    without = np.zeros_like(state["log_penalty"])
    if not len(state["objective"]):
        start = np.array([_objective(sums, {**state, "log_penalty": without}, settings)])
        new |= {"objective": start, "inner_objective": start}
    if settings.flavour.moves_centroids:
        new["anchor"], new["anchor_centroids"] = _between(state)
        new["goal_centroids"] = unit_rows(sums["rows"])
        new["accepted"] = np.float64(np.inf)  # of the old soft clusters it is not known
    else:
        new["anchor"] = np.zeros_like(state["anchor"])
        new["anchor_centroids"] = new["goal_centroids"] = state["next_centroids"]
        fresh = _objective(sums, {**state, "log_penalty": without}, settings)
        new["accepted"] = np.float64(fresh)
    new["goal"] = settings.log_penalty(sums["observed"])
    new["first"] = np.int64(len(new["inner_objective"]))
    return _aim(new, settings)


def after_round(sums: Sums, state: State, settings: Settings) -> Sums:
    """Return the state for the next inner round."""
    if state["settled"]:
        return dict(state)
    new, rose = _record(sums, state, settings)
    if new["settled"]:
        return new
    if not rose:
        new["accepted"] = np.float64(new["inner_objective"][-1])
        new["anchor"], new["anchor_centroids"] = _between(state)
        new["goal"] = settings.log_penalty(sums["observed"])
        if settings.flavour.moves_centroids:
            new["goal_centroids"] = unit_rows(sums["rows"])
    return _aim(new, settings)


def _record(sums: Sums, state: State, settings: Settings) -> tuple[Sums, bool]:
    """Add the objective of a round; tell whether it rose, which raises the damping."""
    objective, accepted = _objective(sums, state, settings), float(state["accepted"])
    inner = np.append(state["inner_objective"], objective)
    settled = len(inner) - int(state["first"]) > 4 and settings.settled(inner)
    new = dict(state) | {"inner_objective": inner, "observed": sums["observed"]}
    rose = objective > accepted + RISE * abs(accepted)
    if rose:
        new["damping"] = (1 + state["damping"]) / 2
    return new | {"settled": np.bool_(settled)}, rose


def finish(sums: Sums, state: State, settings: Settings) -> Sums:
    """Regress after the last inner round; return the state for the next correction."""
    new = dict(state) if state["settled"] else _record(sums, state, settings)[0]
    coefficients = regress(settings, sums["observed"], sums["by_level"].transpose(0, 2, 1))
    shift = level_shift(settings.strata, coefficients).transpose(0, 2, 1)
    new["shift"] = np.ascontiguousarray(shift, np.float32)
    new["next_centroids"] = intercept_centroids(state["centroids"], coefficients)
    new["rounds"] = np.append(state["rounds"], len(new["inner_objective"]) - int(state["first"]))
    new["objective"] = np.append(state["objective"], new["inner_objective"][-1])
    new["converged"] = np.bool_(settings.converged(*new["objective"][-2:]))
    return new
