"""Genes that were held out: how well SIID imputes each, against simple controls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stdist.methods.data import Data, open_data
from stdist.plots.style import AFTER, BEFORE, INK, SOFT, Sheet, clean
from stdist.store import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONTROLS = {
    "B": "counts of the spot, scaled to the cell (B)",
    "total": "total count of the cell",
    "permuted": "SIID with the spots permuted",
}
SIDE, STEP = 2.5, 3.3


def holdout_scores(data: Any, *, key: str = "siid_holdout") -> Figure:
    """Draw the R2 of every held-out gene against those of simple controls.

    Parameters
    ----------
    data
        Cells that were scored: path of a store, a lazy AnnData of `stdist.io.open`, or an AnnData.
    key
        `key_added` of `stdist.tl.siid_holdout`.

    Returns
    -------
    matplotlib.figure.Figure
        One panel for each of baseline B, the total of the cell, and the fit with the spots
        permuted. A dot is a gene; above the line SIID is better.

    Raises
    ------
    InputError
        If there are no scores of controls, or matplotlib is not installed.

    Examples
    --------
    >>> holdout_scores("xenium.zarr")  # doctest: +SKIP
    """
    opened = open_data(data)
    wide = scores_by_gene(kept_scores(opened, key)["scores"])
    drawn = [name for name in CONTROLS if name in wide]
    if not drawn:
        raise InputError(
            "scores-absent",
            f"uns[{key!r}] has no scores of controls",
            place=opened.place,
            remedy="call stdist.tl.siid_holdout with controls=True",
        )
    highest = max(0.05, 1.05 * float(np.nanmax(wide[["siid", *drawn]].to_numpy())))
    sheet = Sheet(0.7 + STEP * len(drawn), SIDE + 1.35)
    for number, name in enumerate(drawn):
        left = 0.7 + STEP * number
        axes = clean(sheet.axes(left, 0.65, SIDE, SIDE))
        axes.plot([0, highest], [0, highest], color=SOFT, lw=0.8, ls=(0, (4, 3)))
        better = wide["siid"] > wide[name]
        look: dict[str, Any] = {"s": 16, "alpha": 0.7, "linewidths": 0.3, "edgecolors": "white"}
        look |= {"clip_on": False, "zorder": 3}
        for chosen, colour in ((better, AFTER), (~better, BEFORE)):
            axes.scatter(wide[name][chosen], wide["siid"][chosen], color=colour, **look)
        axes.set(xlim=(0, highest), ylim=(0, highest), aspect="equal")
        axes.locator_params(nbins=5)
        axes.set_xlabel(f"R² of {CONTROLS[name]}", fontsize=8.5, color=INK)
        if number == 0:
            axes.set_ylabel("R² of SIID", fontsize=9, color=INK)
        sheet.text(left, 0.12, f"better in {int(better.sum())} of {len(wide)} genes", fontsize=10)
        means = f"means {wide['siid'].mean():.3f} and {wide[name].mean():.3f}"
        sheet.text(left, 0.36, means, fontsize=8.5, color=SOFT)
    return sheet.figure


def kept_scores(data: Data, key: str) -> Mapping[str, Any]:
    """Read what `stdist.tl.siid_holdout` kept under a key.

    Raises
    ------
    InputError
        If there is nothing.
    """
    found = data.uns(key)
    if not isinstance(found, Mapping) or "scores" not in found:
        raise InputError(
            "scores-absent",
            f"no scores in uns[{key!r}]",
            place=data.place,
            remedy="score held-out genes with stdist.tl.siid_holdout, or name its key_added as key",
        )
    return found


def scores_by_gene(scores: pd.DataFrame) -> pd.DataFrame:
    """R2 of each gene (rows) by each method (columns)."""
    methods = list(dict.fromkeys(scores["method"].astype(str)))
    wide = scores.assign(method=scores["method"].astype(str))
    return wide.pivot_table(index="gene", columns="method", values="r2", sort=False)[methods]
