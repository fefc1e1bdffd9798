"""The objective of a loop, round by round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stdist.plots.style import AFTER, BEFORE, INK, SOFT, Sheet, clean
from stdist.store import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def convergence(objective: Sequence[float] | Mapping[str, Any]) -> Figure:
    """Draw the objective of an iterative method.

    Parameters
    ----------
    objective
        Value after each round, ``(n_rounds,)``; or what `stdist.pp.harmony` keeps in ``uns``:
        ``inner_objective`` ``(1 + n_inner_rounds,)``, at the start and after each inner round,
        and ``rounds`` ``(n_iterations,)``, the number of inner rounds of each iteration.

    Returns
    -------
    matplotlib.figure.Figure
        Objective against round; of Harmony also where iterations end, each with a correction.

    Raises
    ------
    InputError
        If the history is incomplete, or matplotlib is not installed.

    Examples
    --------
    >>> convergence([3.0, 2.0, 1.9])  # doctest: +SKIP
    >>> convergence(adata.uns["X_harmony"])  # doctest: +SKIP
    """
    if isinstance(objective, Mapping):
        return _iterations(*_history(objective))
    values = np.asarray(objective, dtype=np.float64)
    return _draw(np.arange(1, len(values) + 1), values)[0].figure


def _history(found: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    absent = sorted({"inner_objective", "rounds"} - set(found))
    if absent:
        raise InputError(
            "history-incomplete",
            f"the history has no {' and no '.join(absent)}",
            place="objective",
            remedy="give the entry of uns that stdist.pp.harmony made",
        )
    return np.asarray(found["inner_objective"], np.float64), np.asarray(found["rounds"], int)


def _iterations(values: np.ndarray, rounds: np.ndarray) -> Figure:
    sheet, axes = _draw(np.arange(len(values)), values)
    ends = np.cumsum(rounds)
    axes.plot(ends, values[ends], "o", color=BEFORE, markersize=5.5, zorder=3)
    axes.set_xlabel("inner round", fontsize=9, color=INK)
    for left, mark, colour, text in ((0.95, "•", AFTER, "inner round"), (2.2, "●", BEFORE, "")):
        sheet.text(left, 0.02, mark, color=colour, fontsize=8)
        label = text or f"end of an iteration ({len(rounds)})"
        sheet.text(left + 0.14, 0.02, label, fontsize=8, color=SOFT)
    return sheet.figure


def _draw(rounds: np.ndarray, values: np.ndarray) -> tuple[Sheet, Any]:
    sheet = Sheet(7.2, 2.7)
    axes = clean(sheet.axes(0.95, 0.2, 6.0, 1.95), grid="y")
    axes.plot(rounds, values, "o-", color=AFTER, markersize=3.5, lw=1.2)
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("round", fontsize=9, color=INK)
    axes.set_ylabel("objective", fontsize=9, color=INK)
    return sheet, axes
