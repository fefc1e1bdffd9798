"""Maps of imputed genes below what was measured of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from stdist.graph import Each, Program, Reduce, by_name
from stdist.kernels import raster
from stdist.kernels.moments import dense_rows
from stdist.methods.data import Data, open_data
from stdist.methods.siid.impute import gene_profile
from stdist.methods.siid.impute_model import fitted_factors
from stdist.plots.passes import run_pass
from stdist.plots.rasters import MOST_PIXELS, choose_grid
from stdist.plots.style import EXPRESSION, SOFT, TISSUE, WIDTH, Sheet, require_matplotlib, short
from stdist.preprocess.bound import tile_workspace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PER_LINE = 4
BRIGHTEST = 99.0
"""Percentile of the pixels at which the colour scale of a map ends."""
NAME, GAP, HEAD = 0.55, 0.2, 0.26


def imputed_maps(
    data: Any,
    *,
    genes: str | Sequence[str],
    spots: Any = None,
    key: str = "siid",
    layer: str | None = None,
    spatial_key: str = "spatial",
    pixels: int | None = None,
    client: Any = None,
) -> Figure:
    """Map imputed means of genes below the measured counts.

    Parameters
    ----------
    data
        Cells with a fit: path of a store, a lazy AnnData of `stdist.io.open`, or an AnnData.
    genes
        Genes of the model; with `spots` also of the spots.
    spots
        Spots of the fit, for genes outside the model.
    key
        `key_added` of the fit.
    layer
        Layer with the measured counts; default ``X``.
    spatial_key
        Entry of ``obsm`` with x and y.
    pixels
        Pixels along the longer edge; default: what single cells can fill, at most 160.
    client
        `distributed.Client`; default as in `stdist.tl.crescendo`.

    Returns
    -------
    matplotlib.figure.Figure
        Mean per cell of each pixel; every map has its own scale, which ends at the 99th percentile
        of its pixels and is printed above it. Genes that the cells were not measured for have no
        upper map.

    Raises
    ------
    InputError
        If there is no fit, a gene is unknown, or matplotlib is not installed.

    Notes
    -----
    Cells are rasterised block by block; nothing is written.

    Examples
    --------
    >>> imputed_maps("xenium.zarr", genes=["KRT5", "CD4"], spots="visium.zarr")  # doctest: +SKIP
    """
    require_matplotlib()
    opened = open_data(data)
    names = [genes] if isinstance(genes, str) else [str(gene) for gene in genes]
    profile = gene_profile(data, fitted_factors(opened, key), names, spots, client)
    program = _program(opened, names, profile, key, layer, spatial_key, pixels)
    found = run_pass(program, opened, client)
    side, n_maps = int(found["side"]), 2 * len(names)
    cells = raster.dense_panels((found["cell_pixel"], found["density"]), 1, side)[0]
    sums = raster.dense_panels((found["gene_pixel"], found["gene_sum"]), n_maps, side)
    means = np.divide(sums, cells, out=np.zeros_like(sums), where=cells > 0)
    height, width = (int(np.flatnonzero(cells.any(axis=a))[-1]) + 1 for a in (1, 0))
    measured = set(map(str, opened.var_names))
    pictures = means.reshape(2, len(names), side, side)[:, :, :height, :width]
    return _draw(names, pictures, cells[:height, :width], measured)


def _program(
    opened: Data,
    names: list[str],
    profile: np.ndarray,
    key: str,
    layer: str | None,
    spatial_key: str,
    pixels: int | None,
) -> Program:
    place = opened.embedding(spatial_key)
    number = {str(name): column for column, name in enumerate(opened.var_names)}
    columns = np.array([number.get(name, -1) for name in names])
    most = (pixels or MOST_PIXELS) ** 2
    bounds = Reduce(
        "bounds",
        bounds_tile,
        {"spatial": place},
        combine=by_name(low=np.minimum, high=np.maximum),
        finalize=partial(choose_grid, pixels=pixels, shown=1),
        workspace=tile_workspace(4),
        nanoseconds=40.0,
        partial_bytes=40,
    )
    pictures = Reduce(
        "pictures",
        picture_tile,
        {
            "spatial": place,
            "counts": opened.matrix(layer),
            "loadings": opened.embedding(key),
        },
        uses=("bounds", "profiles"),
        options={"columns": columns},
        combine=merge_pictures,
        workspace=tile_workspace(8 * len(names) + 2 * len(profile) + 8),
        nanoseconds=2.0 * opened.n_vars + 200.0 * len(names),
        partial_bytes=min(most, opened.n_obs) * 16 * (1 + 2 * len(names)),
    )
    given = Each("profiles", give_profile, options={"profile": profile})
    return Program("imputed_maps", (bounds, given, pictures), results=_results)


def give_profile(item: int, *, profile: np.ndarray) -> dict[str, Any]:
    """Return the profiles as a value, which travels to each worker once."""
    return {"profile": profile}


def bounds_tile(rows: tuple[int, int], *, spatial: Any) -> dict[str, Any]:
    """Range of the coordinates."""
    return raster.coordinate_bounds(np.asarray(spatial)[:, :2], _one(rows), 1)


def _one(rows: tuple[int, int]) -> np.ndarray:
    """All cells in one batch."""
    return np.zeros(rows[1] - rows[0], np.int64)


def picture_tile(
    rows: tuple[int, int],
    *,
    spatial: Any,
    counts: Any,
    loadings: np.ndarray,
    bounds: dict[str, Any],
    profiles: dict[str, Any],
    columns: np.ndarray,
) -> dict[str, Any]:
    """Cells per pixel, and sums of counts and of imputed means."""
    side = int(bounds["side"])
    place = np.asarray(spatial)[:, :2]
    pixel = raster.pixel_numbers(place, _one(rows), bounds["low"], bounds["size"], side)
    measured = np.where(columns >= 0, dense_rows(counts[:, np.maximum(columns, 0)]), 0.0)
    imputed = loadings.astype(np.float64) @ profiles["profile"]
    values = np.concatenate([measured, imputed], axis=1)
    cell_pixel, density = raster.cells_per_pixel(pixel)
    gene_pixel, gene_sum = raster.sums_per_pixel(pixel, values, side * side)
    return {
        "cell_pixel": cell_pixel,
        "density": density,
        "gene_pixel": gene_pixel,
        "gene_sum": gene_sum,
    }


def merge_pictures(left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
    """Merge pictures."""
    merged: dict[str, Any] = {}
    for pixel, value in (("cell_pixel", "density"), ("gene_pixel", "gene_sum")):
        sides = ((part[pixel], part[value]) for part in (left, right))
        merged[pixel], merged[value] = raster.merge(*sides)
    return merged


def _results(values: Any) -> dict[str, Any]:
    return {**values["pictures"], "side": values["bounds"]["side"]}


def _draw(names: list[str], pictures: np.ndarray, cells: np.ndarray, measured: set[str]) -> Figure:
    rows, columns = cells.shape
    width = (WIDTH - NAME - 0.2 - GAP * (PER_LINE - 1)) / PER_LINE
    height = width * float(np.clip(rows / columns, 0.3, 1.6))
    lines = -(-len(names) // PER_LINE)
    block = HEAD + 2 * (height + HEAD) + 0.1
    sheet = Sheet(WIDTH, 0.1 + lines * block + 0.3)
    for number, name in enumerate(names):
        line, column = divmod(number, PER_LINE)
        left, top = NAME + column * (width + GAP), 0.1 + line * block
        sheet.text(left, top, short(name), fontsize=11, fontweight="bold")
        for row, step in enumerate(("measured", "imputed")):
            at = top + HEAD + row * (height + HEAD)
            if column == 0:
                look: dict[str, Any] = {"rotation": 90, "va": "center", "ha": "center"}
                sheet.text(NAME - 0.2, at + HEAD + height / 2, step, fontsize=10, **look)
            if row == 0 and name not in measured:
                sheet.text(left, at + HEAD, "not measured", color=SOFT)
                continue
            values = pictures[row, number]
            drawn = values[values > 0]
            brightest = float(np.percentile(drawn, BRIGHTEST)) if len(drawn) else 1.0
            sheet.text(left, at + 0.06, f"to {brightest:.2g} per cell", fontsize=8, color=SOFT)
            _draw_map(sheet.axes(left, at + HEAD, width, height), values / brightest, cells)
    caption = "Mean per cell of a pixel, each map on its own scale; grey: none, white: no cells."
    sheet.text(NAME, sheet.height - 0.3, caption, fontsize=8, color=SOFT)
    return sheet.figure


def _draw_map(axes: Axes, share: np.ndarray, cells: np.ndarray) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("imputed", (TISSUE, *EXPRESSION))
    image = np.ones((*cells.shape, 3))
    image[cells > 0] = colours(np.minimum(share[cells > 0], 1.0))[:, :3]
    axes.imshow(image, origin="lower", interpolation="nearest", aspect="equal")
    axes.set_axis_off()
