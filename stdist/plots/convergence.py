"""The objective of a loop, round by round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from stdist.plots.style import AFTER, INK, Sheet, clean

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def convergence(objective: Sequence[float]) -> Figure:
    """Draw the objective of an iterative method.

    Parameters
    ----------
    objective
        Value after each round, ``(n_rounds,)``.

    Returns
    -------
    matplotlib.figure.Figure
        Objective against round.

    Raises
    ------
    InputError
        If matplotlib is not installed.

    Examples
    --------
    >>> convergence([3.0, 2.0, 1.9])  # doctest: +SKIP
    """
    values = np.asarray(objective, dtype=np.float64)
    sheet = Sheet(7.2, 2.7)
    axes = clean(sheet.axes(0.95, 0.2, 6.0, 1.95), grid="y")
    axes.plot(np.arange(1, len(values) + 1), values, "o-", color=AFTER, markersize=3.5, lw=1.2)
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("round", fontsize=9, color=INK)
    axes.set_ylabel("objective", fontsize=9, color=INK)
    return sheet.figure
