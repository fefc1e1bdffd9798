"""How many passes a fit should have, judged on genes that it is not shown: early stopping."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stdist.graph import Program
from stdist.methods.data import Data, StoreData, open_data
from stdist.methods.run import run_program
from stdist.methods.siid.choose_factors import ascending, warn_of
from stdist.methods.siid.choose_passes_program import passes_program
from stdist.methods.siid.pair import Pair
from stdist.methods.siid.spec import SiidSpec, number_of_factors

CANDIDATES = (2, 5, 10, 20, 40, 80)


def build_siid_choose_passes(
    data: str,
    spots: str,
    n_factors: int | None = None,
    passes: list[int] | None = None,
    **parameters: Any,
) -> Program:
    """Build the program of a recorded run."""
    chosen = {"n_factors": number_of_factors(n_factors), **parameters}
    return _program(StoreData(data), StoreData(spots), _candidates(passes), **chosen)


def siid_choose_passes(
    data: Any,
    *,
    spots: Any,
    n_factors: int | None = None,
    passes: list[int] | None = None,
    n_folds: int = 10,
    folds: list[int] | None = None,
    layer: str | None = None,
    spots_layer: str | None = None,
    spatial_key: str = "spatial",
    spots_spatial_key: str = "spatial",
    transform: list[float] | None = None,
    max_distance: float = 100.0,
    n_spots_per_cell: int = 1,
    n_solutions: int = 6,
    n_restarts: int = 8,
    sample_cells: int = 10_000,
    updates_per_pass: int = 1,
    spots_model: str = "poisson",
    spot_scale: str = "free",
    platform_scaling: bool = True,
    shrink: bool = True,
    l2: float | None = None,
    controls: bool = True,
    key_added: str = "siid_passes",
    rng: int = 0,
    client: Any = None,
    block_length: int | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> Path | None:
    """Choose the number of passes of `stdist.tl.siid` by genes held out of the panel.

    The fits of `stdist.tl.siid` are made without some genes' counts in the cells. They stop at
    each of the numbers of passes, the imputation of these genes is scored, and the fits go on. The
    number with the highest mean R2 is chosen: ``passes`` of the fit.

    Parameters
    ----------
    data
        Cells: path of a store, a lazy AnnData of `stdist.io.open`, or an AnnData.
    spots
        Spots: the same.
    n_factors
        Number of factors of the fits; default: 20.
    passes
        Numbers to compare, ascending; default: 2, 5, 10, 20, 40 and 80.
    n_folds
        Folds that the genes of the panel are split into, as by `stdist.tl.siid_holdout`.
    folds
        Numbers of the folds that are held out, one after the other; default: the last four, if
        there are as many (the check beside a fit scores the first).
    layer, spots_layer
        Layers with raw counts; default ``X``.
    spatial_key, spots_spatial_key
        Entries of ``obsm`` with x and y in one frame, in um.
    transform
        Matrix ``(3, 3)`` that brings the spots into the frame of the cells, as nine numbers.
    max_distance
        A cell farther from every spot has none, in um.
    n_spots_per_cell, n_solutions, n_restarts, sample_cells, updates_per_pass
        As of `stdist.tl.siid`.
    spots_model, spot_scale, platform_scaling, shrink, l2
        As of `stdist.tl.siid`.
    controls
        Whether the same genes are scored for simple baselines, and for one solution with the spots
        permuted over their places, which takes a fit more in every fold.
    key_added
        ``uns[key_added]["passes"]``: the number chosen; ``["table"]``: one row per number with the
        mean ``r2`` of the genes held out, how much it is ``below_best``, the ``standard_error`` of
        this difference (of its mean over the genes), ``single_r2``, the mean R2 of single
        solutions, and ``permuted_r2``, that of one with the spots permuted;
        ``["held_out"]``: R2 of each gene after the number chosen (for these very genes, so a
        little too good), of single solutions and of the controls; ``["n_genes"]``: how many genes
        were held out; ``["notes"]``: what the scores come to, and what is warned of.
    rng
        Seed of the folds and of the fits.
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
    Path or None
        Folder of the run record, for a store.

    Raises
    ------
    InputError
        As of `stdist.tl.siid`; or if the numbers of passes are no ascending list, or folds are
        none of the shared genes'.

    Warns
    -----
    StdistWarning
        If `n_factors` is not given, the number chosen is the first or last one, a smaller one is
        within one standard error, or as `stdist.tl.siid` of controls, and of cells, spots and
        genes that take no part.

    Notes
    -----
    R2 is that of `stdist.tl.siid_holdout`: the squared Pearson correlation over all cells between
    the mean of the solutions' imputations and the counts. Scores after so many passes are those of
    a hold-out with as many.

    Genes held out for this choice have been looked at: to score the fit that follows, hold out
    others. `stdist.tl.siid_holdout` has the same folds for the same `rng` and `n_folds`: take those
    that were not used here.

    Examples
    --------
    >>> siid_choose_passes("xenium.zarr", spots="visium.zarr", n_factors=15)  # doctest: +SKIP
    """
    candidates = _candidates(passes)
    opened = open_data(data)
    program = _program(
        opened,
        open_data(spots),
        candidates,
        n_factors=number_of_factors(n_factors),
        n_folds=n_folds,
        folds=folds,
        layer=layer,
        spots_layer=spots_layer,
        spatial_key=spatial_key,
        spots_spatial_key=spots_spatial_key,
        transform=transform,
        max_distance=max_distance,
        n_spots_per_cell=n_spots_per_cell,
        n_solutions=n_solutions,
        n_restarts=n_restarts,
        sample_cells=sample_cells,
        updates_per_pass=updates_per_pass,
        spots_model=spots_model,
        spot_scale=spot_scale,
        platform_scaling=platform_scaling,
        shrink=shrink,
        l2=l2,
        controls=controls,
        key_added=key_added,
        rng=rng,
    )
    folder = run_program(
        program,
        opened,
        client=client,
        block_length=block_length,
        progress=progress,
        overwrite=overwrite,
    )
    warn_of(opened, key_added)
    return folder


def _program(
    cells: Data,
    spots: Data,
    candidates: list[int],
    *,
    n_folds: int = 10,
    folds: Sequence[int] | None = None,
    key_added: str = "siid_passes",
    **fit: Any,
) -> Program:
    spec = SiidSpec(**fit, key_added=key_added, passes=candidates[-1], deconvolve=False)
    pair = Pair(cells, spots, spec)
    return passes_program(pair, candidates, n_folds=n_folds, folds=folds)


def _candidates(given: Any) -> list[int]:
    return ascending("siid_choose_passes", "passes", given, CANDIDATES)
