"""Maps of genes: tissue in light grey, expressing cells on top, before above after."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np

from stdist.methods.data import open_data
from stdist.plots.rasters import GeneRasters, rasterise
from stdist.plots.style import (
    EXPRESSION,
    INK,
    SOFT,
    TISSUE,
    WIDTH,
    Sheet,
    require_matplotlib,
    short,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN = 8
LEFT, RIGHT, GAP, CAPTION = 0.55, 0.75, 0.16, 0.34
NAME, HEAD, APART = 0.27, 0.27, 0.22
"""Inches of a gene's name, of the line above a map, and between genes."""
BRIGHTEST = 99.0
"""Percentile of the expressing pixels at which the colour scale of a gene ends."""


def gene_maps(
    data: Any,
    *,
    genes: str | Sequence[str],
    batch_key: str,
    layers: Sequence[str | None] = (None, "crescendo"),
    spatial_key: str = "spatial",
    pixels: int | None = None,
    client: Any = None,
) -> Figure:
    """Draw where genes are expressed in each batch, before and after a correction.

    Parameters
    ----------
    data
        Path of a store, a lazy AnnData of `stdist.io.open`, or an AnnData.
    genes
        Names of genes.
    batch_key
        Column of ``obs`` with the batch; its eight largest are drawn.
    layers
        Layers with counts, one row of maps each; None is ``X``. The depth of a cell is its total
        count in the first.
    spatial_key
        Entry of ``obsm`` with x and y. A scale bar is drawn where the unit is known to be um
        (``uns["spatial_unit"]``).
    pixels
        Pixels along the longer edge of a batch; default: what single cells can fill, at most 160.
    client
        `distributed.Client`; default as in `stdist.tl.crescendo`.

    Returns
    -------
    matplotlib.figure.Figure
        For each gene, rows of layers and columns of batches with one colour scale: log1p of the
        count at mean depth, averaged over the cells of a pixel. A pixel is coloured as soon as
        one of its cells expresses the gene, however many share it. The mean count per cell (at
        mean depth) is printed above each map.

    Raises
    ------
    InputError
        If a gene or key is unknown, or matplotlib is not installed.

    Notes
    -----
    Cells are rasterised block by block; memory and figure do not grow with their number, and the
    pixels do not depend on blocks or workers.

    Examples
    --------
    >>> gene_maps("cohort.zarr", genes=["Gad1"], batch_key="slide")  # doctest: +SKIP
    """
    require_matplotlib()
    rasters = rasterise(
        data,
        genes=genes,
        batch_key=batch_key,
        layers=layers,
        spatial_key=spatial_key,
        pixels=pixels,
        shown=SHOWN,
        client=client,
    )
    return draw_maps(rasters, in_micrometres(data))


def in_micrometres(data: Any) -> bool:
    """Tell whether the data say that their coordinates are in um."""
    opened = open_data(data)
    unit = opened.uns("spatial_unit")
    if unit is None:
        return opened.uns("simulation") is not None
    text = str(unit).lower()
    return text.startswith("micro") or text in ("um", "µm", "μm")


def draw_maps(rasters: GeneRasters, micrometres: bool) -> Figure:
    """Lay out the maps of all genes on one sheet."""
    n_layers, n_genes, n_batches = rasters.mean.shape
    extents = [_extent(tissue) for tissue in rasters.tissue]
    room = WIDTH - LEFT - RIGHT - GAP * (n_batches - 1)
    width = min(2.6, room / max(1, n_batches))
    height = width * float(np.clip(max(h / w for h, w in extents), 0.3, 1.6))
    block = NAME + n_layers * (height + HEAD) + APART
    bar = 0.2 if micrometres else 0.0
    sheet_width = max(6.0, LEFT + RIGHT + n_batches * width + (n_batches - 1) * GAP)
    caption = wrap(_caption(rasters), int((sheet_width - LEFT) * 15))
    foot = CAPTION + 0.16 * (len(caption) - 1)
    sheet = Sheet(sheet_width, 0.1 + n_genes * block + bar + foot)
    for gene, name in enumerate(rasters.genes):
        top = 0.1 + gene * block
        sheet.text(LEFT, top, short(name, 60), fontsize=12, fontweight="bold")
        values = rasters.expression[:, gene]
        drawn = values[values > 0]
        brightest = float(np.percentile(drawn, BRIGHTEST)) if len(drawn) else 1.0
        for layer in range(n_layers):
            above = top + NAME + layer * (height + HEAD)
            _name_row(sheet, rasters.layers, layer, above + HEAD + height / 2)
            for batch in range(n_batches):
                left = LEFT + batch * (width + GAP)
                sheet.text(left, above + 0.04, short(rasters.batches[batch], int(width * 7)))
                mean = f"{rasters.mean[layer, gene, batch]:.2g}"
                look = {"fontsize": 8, "color": SOFT, "ha": "right"}
                text = f"mean {mean}" if width > 1.4 else mean
                sheet.text(left + width, above + 0.05, text, **look)
                rows, columns = extents[batch]
                inches = min(width / columns, height / rows)
                size = (columns * inches, rows * inches)
                axes = sheet.axes(left, above + HEAD, *size)
                _draw_panel(axes, rasters, (layer, gene, batch), extents[batch], brightest)
                if micrometres and (layer, gene) == (n_layers - 1, n_genes - 1):
                    pixel = rasters.size[batch]
                    _scale_bar(sheet, left, above + HEAD + size[1], inches / pixel, columns * pixel)
        at = LEFT + n_batches * (width + GAP) + 0.02
        _colour_bar(sheet, at, top + NAME + HEAD, min(1.6, height), brightest)
    sheet.text(LEFT, sheet.height - foot + 0.06, "\n".join(caption), fontsize=8, color=SOFT)
    return sheet.figure


def _extent(tissue: np.ndarray) -> tuple[int, int]:
    """Pixels along y and x that hold cells."""
    used = [np.flatnonzero(tissue.any(axis=axis)) for axis in (1, 0)]
    height, width = (int(at[-1]) + 1 if len(at) else tissue.shape[0] for at in used)
    return height, width


def _draw_panel(
    axes: Axes,
    rasters: GeneRasters,
    panel: tuple[int, int, int],
    extent: tuple[int, int],
    brightest: float,
) -> None:
    from matplotlib.colors import to_rgb

    tissue = rasters.tissue[panel[2]][: extent[0], : extent[1]]
    values = rasters.expression[panel][: extent[0], : extent[1]]
    image = np.ones((*tissue.shape, 3))
    image[tissue > 0] = to_rgb(TISSUE)
    image[values > 0] = _colours()(values[values > 0] / brightest)[:, :3]
    axes.imshow(image, origin="lower", interpolation="nearest", aspect="auto")
    axes.set_axis_off()


def _colours() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("expression", EXPRESSION)


def _name_row(sheet: Sheet, layers: list[str], layer: int, middle: float) -> None:
    step = ("before", "after")[layer] if len(layers) == 2 else short(layers[layer], 16)
    look = {"rotation": 90, "va": "center", "ha": "center", "color": INK}
    sheet.text(LEFT - 0.2, middle, step, fontsize=10, **look)


def _colour_bar(sheet: Sheet, left: float, top: float, height: float, brightest: float) -> None:
    axes = sheet.axes(left, top, 0.11, height)
    ramp = np.linspace(0, 1, 128)[:, None]
    axes.imshow(_colours()(ramp), origin="lower", aspect="auto", extent=(0, 1, 0, brightest))
    axes.set_xticks([])
    axes.yaxis.tick_right()
    axes.locator_params(axis="y", nbins=4)
    axes.tick_params(labelsize=7.5, labelcolor=SOFT, length=0, pad=2)
    axes.spines[:].set_visible(False)


def _scale_bar(sheet: Sheet, left: float, top: float, inches: float, width: float) -> None:
    """Draw a bar of a round length, about a quarter of the map, below it; `inches` per unit."""
    power = 10.0 ** np.floor(np.log10(width / 4))
    length = max(step * power for step in (1, 2, 5) if step * power <= width / 4)
    bar = sheet.axes(left, top + 0.06, length * inches, 0.025)
    bar.set_facecolor(INK)
    bar.set(xticks=[], yticks=[])
    bar.spines[:].set_visible(False)
    text = f"{length:g} µm" if length < 1000 else f"{length / 1000:g} mm"
    sheet.text(left + length * inches + 0.06, top, text, fontsize=8, color=SOFT)


def _caption(rasters: GeneRasters) -> str:
    n_batches, drawn = rasters.n_batches, len(rasters.batches)
    few = f" The {drawn} largest of {n_batches} batches are drawn." if drawn < n_batches else ""
    return (
        "Colour: log(1 + count at mean depth) of the cells of a pixel; grey: no counts. "
        f"Above a map: mean count per cell at mean depth.{few}"
    )
