"""Scatter of batch- and cell-type-variance ratios, with the target zone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stdist.plots.style import AFTER, BEFORE, FAINT, INK, SOFT, ZONE, Sheet, clean, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BVR_AXIS, CVR_AXIS = (1e-4, 10.0), (0.05, 20.0)
"""Ratios beyond the axes are drawn on their edge."""
STRIP = (2e-5, 8e-5)
"""Where ratios below the BVR axis are spread: a good correction leaves most of them at zero."""
GOLDEN = 0.6180339887498949
ZONE_BVR, ZONE_CVR = 1.0, 0.5


def variance_ratios(table: pd.DataFrame) -> Figure:
    """Draw the variance ratios of all genes, with the target zone BVR < 1 and CVR >= 0.5.

    Parameters
    ----------
    table
        Result of `stdist.metrics.bvr_cvr`: ``bvr``, ``cvr``, ``in_zone`` and
        ``no_batch_variance`` of each gene.

    Returns
    -------
    matplotlib.figure.Figure
        Ratios beyond the axes sit on their edge as triangles; genes whose ratios are undefined
        are counted in the caption.

    Raises
    ------
    InputError
        If matplotlib is not installed.

    Examples
    --------
    >>> import stdist
    >>> table = stdist.metrics.bvr_cvr("cohort.zarr", ...)  # doctest: +SKIP
    >>> stdist.pl.variance_ratios(table).savefig("ratios.png")  # doctest: +SKIP
    """
    flat = table["no_batch_variance"].to_numpy(bool)
    drawn = table[~flat & table["cvr"].notna().to_numpy() & table["bvr"].notna().to_numpy()]
    sheet = Sheet(7.2, 5.0)
    axes = clean(sheet.axes(0.75, 0.75, 6.2, 3.1))
    axes.set(
        xscale="log",
        yscale="log",
        xlim=(STRIP[0] / 1.3, BVR_AXIS[1] * 1.35),
        ylim=_widened(CVR_AXIS),
    )
    low, high = axes.get_xlim()[0], axes.get_ylim()[1]
    axes.fill_between([low, ZONE_BVR], ZONE_CVR, high, color=ZONE, linewidth=0, zorder=0)
    for line, value in ((axes.axvline, ZONE_BVR), (axes.axhline, ZONE_CVR)):
        line(value, color=SOFT, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.axhline(1.0, color=FAINT, linewidth=0.8)
    axes.axvline(BVR_AXIS[0], color="white", linewidth=2.5, zorder=1)
    look: dict[str, Any] = {"fontsize": 8.5, "color": "#3c8d5a", "va": "top", "ha": "right"}
    axes.text(ZONE_BVR * 0.85, high * 0.88, "target zone", **look)
    _points(axes, drawn)
    ticks = [0.1, 0.5, 1, 2, 10]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    powers = [1e-3, 1e-2, 1e-1, 1, 10]
    below = float(np.sqrt(STRIP[0] * STRIP[1]))
    axes.set_xticks([below, *powers], [f"< {BVR_AXIS[0]:g}", *(f"{p:g}" for p in powers)])
    axes.minorticks_off()
    axes.set_xlabel("BVR: batch variance, after / before", fontsize=9, color=INK)
    axes.set_ylabel("CVR: cell-type variance, after / before", fontsize=9, color=INK)
    n, inside = int((~flat).sum()), int(table["in_zone"].sum())
    share = f" ({inside / n:.0%})" if n else ""
    title = f"{inside} of {n} genes with batch variance are in the target zone{share}"
    sheet.text(0.75, 0.2, title, fontsize=11, fontweight="bold")
    _legend(sheet)
    sheet.text(0.75, 4.4, _caption(table, flat), fontsize=8, color=SOFT, linespacing=1.4)
    return sheet.figure


def _widened(limits: tuple[float, float]) -> tuple[float, float]:
    return limits[0] / 1.35, limits[1] * 1.35


def _points(axes: Any, drawn: pd.DataFrame) -> None:
    x, y = drawn["bvr"].clip(*BVR_AXIS), drawn["cvr"].clip(*CVR_AXIS)
    below = drawn["bvr"].to_numpy() < BVR_AXIS[0]
    share = np.arange(below.sum()) * GOLDEN % 1
    x[below] = STRIP[0] * (STRIP[1] / STRIP[0]) ** share
    edges = {
        ">": drawn["bvr"] > BVR_AXIS[1],
        "v": drawn["cvr"] < CVR_AXIS[0],
        "^": drawn["cvr"] > CVR_AXIS[1],
    }
    inner = ~np.logical_or.reduce(list(edges.values()))
    for marker, at in ({"o": inner} | edges).items():
        for inside, colour in ((False, BEFORE), (True, AFTER)):
            chosen = at & (drawn["in_zone"] == inside)
            axes.scatter(
                x[chosen],
                y[chosen],
                s=22 if marker == "o" else 26,
                marker=marker,
                color=colour,
                alpha=0.65,
                linewidths=0.4,
                edgecolors="white",
                clip_on=False,
                zorder=3,
            )


def _legend(sheet: Sheet) -> None:
    for left, colour, text in ((0.75, AFTER, "in the zone"), (1.85, BEFORE, "outside")):
        sheet.text(left, 0.46, "●", color=colour, fontsize=8)
        sheet.text(left + 0.15, 0.46, text, fontsize=8.5, color=SOFT)


def _caption(table: pd.DataFrame, flat: np.ndarray) -> str:
    lines = []
    for text, chosen in (
        ("no batch variance before", flat),
        ("no cell-type variance before", table["cvr"].isna().to_numpy() & ~flat),
    ):
        names = [short(name) for name in table.index[chosen]]
        if names:
            listed = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
            lines.append(f"Not drawn: {len(names)} genes with {text} ({listed})")
    return "\n".join(lines)
