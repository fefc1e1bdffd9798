"""Spatial cross-correlations before and after a correction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stdist.plots.style import AFTER, FAINT, INK, SOFT, Sheet, clean, short
from stdist.store import InputError

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

MOST_POINTS = 5000
"""From here on points are counted in pixels: a figure does not grow with the pairs."""
PIXELS = 160
SHOWN = 6


def sci_before_after(before: xarray.Dataset, after: xarray.Dataset) -> Figure:
    """Draw the spatial cross-correlation index of every pair of genes before and after.

    Parameters
    ----------
    before, after
        Results of `stdist.metrics.sci` for two layers of the same cells: same slices, pairs of
        types and pairs of genes.

    Returns
    -------
    matplotlib.figure.Figure
        After against before, a point for each slice, pair of types and pair of genes; those that
        change most for their number of cells are named. More than 5000 points are drawn as a
        raster of counts.

    Raises
    ------
    InputError
        If the two results are of different questions, or matplotlib is not installed.

    Examples
    --------
    >>> question = {"label_key": "cell_type", "pairs": [("Gad1", "Slc17a7")]}  # doctest: +SKIP
    >>> before = stdist.metrics.sci("cohort.zarr", **question)  # doctest: +SKIP
    >>> after = stdist.metrics.sci("cohort.zarr", layer="crescendo", **question)  # doctest: +SKIP
    >>> sci_before_after(before, after)  # doctest: +SKIP
    """
    for name, values in before.coords.items():
        if name not in after.coords or not np.array_equal(values, after.coords[name]):
            raise InputError(
                "results-differ",
                f"the two results differ in {name!r}",
                place="before, after",
                remedy="compute both with the same keys, pairs and data",
            )
    x, y = (np.asarray(part["sci"], dtype=np.float64).ravel() for part in (before, after))
    defined = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    limit = 1.05 * max(1e-3, float(np.abs([x[defined], y[defined]]).max(initial=0.0)))
    sheet = Sheet(7.2, 4.9)
    axes = clean(sheet.axes(0.85, 0.85, 3.6, 3.6))
    for line in (axes.axhline, axes.axvline):
        line(0.0, color=FAINT, linewidth=0.8)
    axes.plot([-limit, limit], [-limit, limit], color=SOFT, linewidth=0.8, linestyle=(0, (4, 3)))
    if len(defined) > MOST_POINTS:
        _raster(axes, x[defined], y[defined], limit)
    else:
        look: dict[str, Any] = {"color": AFTER, "alpha": 0.5, "linewidths": 0, "zorder": 3}
        axes.scatter(x[defined], y[defined], s=10, **look)
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit))
    axes.set_xlabel("SCI before", fontsize=9, color=INK)
    axes.set_ylabel("SCI after", fontsize=9, color=INK)
    title = f"{len(defined)} cross-correlations before and after"
    sheet.text(0.85, 0.2, title, fontsize=11, fontweight="bold")
    left_out = len(x) - len(defined)
    if len(defined) > 1:
        r = np.corrcoef(x[defined], y[defined])[0, 1] if np.ptp(x[defined]) else np.nan
        grown = float((np.abs(y[defined]) > np.abs(x[defined])).mean())
        text = f"correlation {r:.2f}; {grown:.0%} farther from zero after"
        sheet.text(0.85, 0.48, text, fontsize=8.5, color=SOFT)
    if left_out:
        sheet.text(4.75, 4.3, f"{left_out} are not defined", fontsize=8, color=SOFT)
    _name_changes(sheet, before, x, y, defined)
    return sheet.figure


def _raster(axes: Any, x: np.ndarray, y: np.ndarray, limit: float) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    edges = np.linspace(-limit, limit, PIXELS + 1)
    counted = np.histogram2d(y, x, bins=(edges, edges))[0]
    image = np.ma.masked_equal(np.log1p(counted), 0.0)
    colours = LinearSegmentedColormap.from_list("count", ("#bcd7e6", AFTER, "#0c2c3f"))
    extent = (-limit, limit, -limit, limit)
    look: dict[str, Any] = {"origin": "lower", "extent": extent, "aspect": "auto"}
    axes.imshow(image, cmap=colours, interpolation="nearest", zorder=2, **look)


def _name_changes(
    sheet: Sheet, before: xarray.Dataset, x: np.ndarray, y: np.ndarray, defined: np.ndarray
) -> None:
    """Name the pairs that change most, in the right margin."""
    cells = np.repeat(before["n_cells"].values.ravel(), before.sizes["genes"])
    change = np.abs(y[defined] - x[defined]) * np.sqrt(cells[defined])
    largest = defined[np.argsort(-change, kind="stable")[:SHOWN]]
    if not len(largest):
        return
    sheet.text(4.75, 0.85, "largest changes", fontsize=9, fontweight="bold")
    places = np.unravel_index(largest, before["sci"].shape)
    for line, (at, slide, pair, gene) in enumerate(zip(largest, *places, strict=True)):
        genes = f"{before['gene'].values[gene]} – {before['neighbor_gene'].values[gene]}"
        types = f"{before['source'].values[pair]} → {before['target'].values[pair]}"
        top = 1.12 + 0.5 * line
        sheet.text(4.75, top, f"{short(genes, 22)}  {x[at]:.2f} → {y[at]:.2f}", fontsize=8)
        where = f"{short(types, 26)}, {short(before['slice'].values[slide], 10)}"
        sheet.text(4.75, top + 0.17, where, fontsize=7.5, color=SOFT)
