"""`stdist.tl.siid_align`: bring a slide of spots into the frame of a slide of cells."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from stdist.graph import Program
from stdist.methods.data import StoreData, open_data
from stdist.methods.run import run_program
from stdist.methods.siid.align_program import align_program
from stdist.methods.siid.align_spec import AlignSpec
from stdist.methods.siid.pair import Pair
from stdist.methods.siid.spec import number_of_factors


class Alignment(NamedTuple):
    """What `siid_align` returns.

    ``transform`` float64 ``(3, 3)``: brings spots into the frame of the cells, the given one
    where nothing was recovered; ``standard_error``: um; ``recovered``; ``message``: what was
    found, or why it is not to be trusted.
    """

    transform: np.ndarray
    standard_error: float
    recovered: bool
    message: str


def build_siid_align(
    data: str, spots: str, n_factors: int | None = None, **parameters: Any
) -> Program:
    """Build the program of a recorded run."""
    spec = AlignSpec(n_factors=number_of_factors(n_factors), **parameters)
    return align_program(Pair(StoreData(data), StoreData(spots), spec), spec)


def siid_align(
    data: Any,
    *,
    spots: Any,
    n_factors: int | None = None,
    layer: str | None = None,
    spots_layer: str | None = None,
    spatial_key: str = "spatial",
    spots_spatial_key: str = "spatial",
    transform: list[float] | None = None,
    max_distance: float = 100.0,
    max_shift: float = 120.0,
    max_angle: float = 1.0,
    tolerance: float = 15.0,
    sample_cells: int = 30_000,
    n_starts: int = 3,
    key_added: str = "siid_align",
    rng: int = 0,
    client: Any = None,
    block_length: int | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> Alignment:
    """Find the small rigid move that brings spots onto the cells they were taken from.

    Cells are factorised from their own counts. The counts of a spot at a place are then those of
    the cells beneath it, up to one scale: the move with the largest likelihood of all spots is
    looked for, on a grid first and then ever finer. Where the data cannot tell it within the
    tolerance, the function says so and gives the transform back that it was given.

    Parameters
    ----------
    data, spots, layer, spots_layer, spatial_key, spots_spatial_key, transform, max_distance
        As of `stdist.tl.siid`; the slides must roughly lie on each other already.
    n_factors
        Number of factors of the cells; default: 20.
    max_shift
        Largest shift that is tried, in um.
    max_angle
        Largest angle that is tried, about the centre of the spots, in degrees.
    tolerance
        How well the place of the spots must be known, in um.
    sample_cells
        Cells that are looked at: discs of the slide with all cells and spots in them.
    n_starts
        Fits of the factors from different starts, which have to agree.
    key_added
        ``uns[key_added]``: ``transform``, ``standard_error``, ``recovered``, ``message``,
        ``best_transform`` (of the largest likelihood, recovered or not) and the numbers behind
        the decision.
    rng
        Seed.
    client
        `distributed.Client`; default as in `stdist.tl.crescendo`.
    block_length
        Rows per block.
    overwrite
        Replace existing results.
    progress
        Show progress; default: on a terminal.

    Returns
    -------
    Alignment
        Whose ``transform`` can be passed on to `stdist.tl.siid`.

    Raises
    ------
    InputError
        As of `stdist.tl.siid`, or if the search or the sample does not suit the slides.

    Warns
    -----
    StdistWarning
        If `n_factors` is not given, or the move is not recovered, and why.

    Notes
    -----
    The likelihood is that of SIID (Genome Research 2025, doi 10.1101/gr.280555.125) with the
    sizes of a cell on both slides tied, ``m_i = s_j n_i``, and the scale s_j of each spot at its
    optimum. With free sizes any place explains any spot.

    A move is recovered if 2.5 standard errors fit into the tolerance, and 95 % of the draws of a
    bootstrap over blocks of spots, each half of the genes, and all starts agree on it; if it is
    ahead of the mirror images of the slide by 2.5 standard errors; and if it is not on the border
    of the search. The standard error knows nothing of tissue that is stretched or torn.

    Examples
    --------
    >>> found = siid_align("xenium.zarr", spots="visium.zarr", n_factors=15)  # doctest: +SKIP
    >>> found.recovered, found.transform  # doctest: +SKIP
    """
    spec = AlignSpec(
        n_factors=number_of_factors(n_factors),
        layer=layer,
        spots_layer=spots_layer,
        spatial_key=spatial_key,
        spots_spatial_key=spots_spatial_key,
        transform=transform,
        max_distance=max_distance,
        max_shift=max_shift,
        max_angle=max_angle,
        tolerance=tolerance,
        sample_cells=sample_cells,
        n_starts=n_starts,
        key_added=key_added,
        rng=rng,
    )
    opened = open_data(data)
    run_program(
        align_program(Pair(opened, open_data(spots), spec), spec),
        opened,
        client=client,
        block_length=block_length,
        progress=progress,
        overwrite=overwrite,
    )
    stored = opened.uns(key_added)
    return Alignment(
        np.asarray(stored["transform"]),
        float(stored["standard_error"]),
        bool(stored["recovered"]),
        str(stored["message"]),
    )
