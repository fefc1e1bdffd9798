"""What a fit of SIID came to: losses pass by pass, and the types in the spots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stdist.methods.data import open_data
from stdist.methods.siid.impute_model import fit_entry
from stdist.plots.style import (
    AFTER,
    EXPRESSION,
    FAINT,
    GROUPS,
    INK,
    SOFT,
    WIDTH,
    Sheet,
    clean,
)
from stdist.store import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PER_LINE, SHOWN = 4, 8
GAP, HEAD, NAME = 0.2, 0.26, 0.55


def fit_losses(data: Any, *, key: str = "siid") -> Figure:
    """Draw the losses of all fits of SIID, pass by pass.

    Parameters
    ----------
    data
        Cells: path of a store, a lazy AnnData of `stdist.io.open`, or an AnnData.
    key
        `key_added` of the fit.

    Returns
    -------
    matplotlib.figure.Figure
        Loss of cells and spots per pass, relative to the lowest of the picture, on a logarithmic
        axis: one line for each solution, and the fit of the types, whose loss rises when it is
        hardened at the end.

    Raises
    ------
    InputError
        If there is no fit, or matplotlib is not installed.

    Examples
    --------
    >>> fit_losses("xenium.zarr")  # doctest: +SKIP
    """
    factors = fit_entry(open_data(data), key)["factors"]
    panels = [("solutions for imputation", np.asarray(factors["loss"]).sum(axis=2))]
    if "type_loss" in factors:
        panels.append(("fit of the types", np.asarray(factors["type_loss"]).sum(axis=1)[None]))
    sheet = Sheet(0.4 + 5.0 * len(panels), 3.0)
    for number, (title, losses) in enumerate(panels):
        left = 0.8 + 5.0 * number
        axes = clean(sheet.axes(left, 0.45, 4.0, 1.95), grid="y")
        above = losses - losses.min()
        for line, values in enumerate(above):
            colour = GROUPS[line % len(GROUPS)] if len(above) > 1 else AFTER
            passes = np.arange(1, len(values) + 1)
            axes.plot(passes, np.where(values > 0, values, np.nan), color=colour, lw=1.2)
        axes.set_yscale("log")
        axes.locator_params(axis="x", integer=True)
        axes.set_xlabel("pass", fontsize=9, color=INK)
        axes.set_ylabel("loss above the lowest (nat)", fontsize=9, color=INK)
        sheet.text(left, 0.12, title, fontsize=10)
    return sheet.figure


def spot_proportions(
    data: Any,
    spots: Any,
    *,
    key: str = "siid",
    types: Sequence[int] | None = None,
    spatial_key: str = "spatial",
) -> Figure:
    """Map the proportions of types in the spots: soft above hard.

    Parameters
    ----------
    data
        Cells with a fit: path of a store, a lazy AnnData of `stdist.io.open`, or an AnnData.
    spots
        Spots of the fit, the same, for their places.
    key
        `key_added` of the fit.
    types
        Numbers of the types to draw; default: the eight with the largest mean proportion.
    spatial_key
        Entry of ``obsm`` of the spots with x and y.

    Returns
    -------
    matplotlib.figure.Figure
        For each type the proportion of every spot from 0 to 1, summed over the probabilities of
        its cells (soft) and by the likeliest type of each cell (hard). Spots without cells are
        grey.

    Raises
    ------
    InputError
        If there is no fit with types, the spots are others, or matplotlib is not installed.

    Examples
    --------
    >>> spot_proportions("xenium.zarr", "visium.zarr")  # doctest: +SKIP
    """
    opened, above = open_data(data), open_data(spots)
    factors = fit_entry(opened, key)["factors"]
    if "spot_proportion" not in factors:
        raise InputError(
            "types-absent",
            f"the fit {key!r} has no proportions of types",
            place=opened.place,
            remedy="run stdist.tl.siid with deconvolve=True",
        )
    soft, hard = (np.asarray(factors[f"spot_proportion{name}"]) for name in ("", "_hard"))
    if len(soft) != above.n_obs:
        raise InputError(
            "spots-changed",
            f"the fit has {len(soft)} spots, these are {above.n_obs}",
            place=above.place,
            remedy="give the spots that the model was fitted with",
        )
    places = np.asarray(above.embedding(spatial_key).read(0, above.n_obs), np.float64)[:, :2]
    mean = np.nan_to_num(np.nanmean(np.nan_to_num(soft), axis=0))
    shown = np.sort(np.argsort(-mean, kind="stable")[:SHOWN]) if types is None else list(types)
    width = (WIDTH - NAME - 0.6 - GAP * (PER_LINE - 1)) / PER_LINE
    extent = np.maximum(np.ptp(places, axis=0), 1e-9)
    height = width * float(np.clip(extent[1] / extent[0], 0.3, 1.6))
    lines = -(-len(shown) // PER_LINE)
    block = HEAD + 2 * (height + 0.1) + 0.25
    sheet = Sheet(WIDTH, 0.1 + lines * block + 0.3)
    size = (72 * width / extent[0] * _spacing(places) * 0.95) ** 2  # points squared
    for number, kind in enumerate(shown):
        line, column = divmod(number, PER_LINE)
        left, top = NAME + column * (width + GAP), 0.1 + line * block
        sheet.text(left, top, f"type {kind}", fontsize=10, fontweight="bold")
        text = f"mean {mean[kind]:.2f}"
        sheet.text(left + width, top + 0.02, text, fontsize=8, color=SOFT, ha="right")
        for row, (name, values) in enumerate((("soft", soft), ("hard", hard))):
            at = top + HEAD + row * (height + 0.1)
            if column == 0:
                look: dict[str, Any] = {"rotation": 90, "va": "center", "ha": "center"}
                sheet.text(NAME - 0.2, at + height / 2, name, fontsize=10, **look)
            _draw_spots(sheet.axes(left, at, width, height), places, values[:, kind], size)
    caption = "Proportion of the type in each spot, 0 (light) to 1 (dark); grey: no cells."
    sheet.text(NAME, sheet.height - 0.3, caption, fontsize=8, color=SOFT)
    return sheet.figure


def _spacing(places: np.ndarray) -> float:
    """Typical distance of neighbouring spots."""
    from scipy.spatial import cKDTree

    if len(places) < 2:
        return 1.0
    near = cKDTree(places).query(places[:2048], k=[2])[0]
    return float(np.median(near))


def _draw_spots(axes: Axes, places: np.ndarray, values: np.ndarray, size: float) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("proportion", ("#f4f6f8", *EXPRESSION))
    empty = np.isnan(values)
    look: dict[str, Any] = {"s": size, "linewidths": 0}
    x, y = places.T
    axes.scatter(x[empty], y[empty], color=FAINT, **look)
    axes.scatter(x[~empty], y[~empty], c=values[~empty], cmap=colours, vmin=0, vmax=1, **look)
    margin = 0.02 * np.ptp(places, axis=0).max()
    low, high = places.min(axis=0) - margin, places.max(axis=0) + margin
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    axes.set_axis_off()
