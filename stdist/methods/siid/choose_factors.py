"""How many factors a pair of slides supports, judged on molecules that the fit is not shown."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stdist.graph import Program
from stdist.methods.checks import wrong_parameter
from stdist.methods.data import Data, StoreData, open_data
from stdist.methods.run import run_program
from stdist.methods.siid.choose_factors_program import ChoiceProgram
from stdist.methods.siid.holdout_folds import whole_numbers
from stdist.methods.siid.pair import Pair
from stdist.methods.siid.spec import SiidSpec
from stdist.store import StdistWarning

CANDIDATES = (4, 6, 8, 12, 16, 24, 32)


def build_siid_choose_factors(
    data: str, spots: str, n_factors: list[int] | None = None, **parameters: Any
) -> Program:
    """Build the program of a recorded run."""
    return _program(StoreData(data), StoreData(spots), _candidates(n_factors), parameters)


def siid_choose_factors(
    data: Any,
    *,
    spots: Any,
    n_factors: list[int] | None = None,
    layer: str | None = None,
    spots_layer: str | None = None,
    spatial_key: str = "spatial",
    spots_spatial_key: str = "spatial",
    transform: list[float] | None = None,
    max_distance: float = 100.0,
    n_restarts: int = 4,
    sample_cells: int = 10_000,
    platform_scaling: bool = True,
    l2: float = 0.0,
    key_added: str = "siid_factors",
    rng: int = 0,
    client: Any = None,
    block_length: int | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> Path | None:
    """Choose the number of factors of `stdist.tl.siid` by count splitting.

    Every molecule of a sample of the tiles goes to the fit with probability 0.8, or else to the
    rest: counts that are Poisson become two independent ones. The number is chosen whose fit
    explains the rest best.

    Parameters
    ----------
    data
        Cells: path of a store, a lazy AnnData of `stdist.io.open`, or an AnnData.
    spots
        Spots: the same.
    n_factors
        Numbers to compare; default: 4, 6, 8, 12, 16, 24 and 32.
    layer, spots_layer
        Layers with raw counts; default ``X``.
    spatial_key, spots_spatial_key
        Entries of ``obsm`` with x and y in one frame, in um.
    transform
        Matrix ``(3, 3)`` that brings the spots into the frame of the cells, as nine numbers.
    max_distance
        A cell farther from every spot has none, in um.
    n_restarts
        Starts for each number, of which that with the least loss counts.
    sample_cells
        Cells in the sample, which all fits are made on.
    platform_scaling
        Whether genes of the panel have a factor between the slides.
    l2
        Weight of the squared logits and logarithms of all parameters.
    key_added
        ``uns[key_added]["n_factors"]``: the number chosen; ``["table"]``: one row per number with
        the held-out ``deviance``, how much it is ``above_best``, the ``standard_error`` of this
        difference, and the ``loss`` of the fit; ``["notes"]``: what is warned of, where there is
        anything.
    rng
        Seed of the split and of the starts.
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
        As of `stdist.tl.siid`; or if the numbers of factors are no ascending list.

    Warns
    -----
    StdistWarning
        If the number chosen is the first or last one, a smaller one is within one standard error,
        or as `stdist.tl.siid` of cells, spots and genes that take no part.

    Notes
    -----
    With the fitted means mu of the fit's molecules, the deviance of the rest, y, is ::

        2 sum (y log(y / (mu / 4)) - y + mu / 4)

    over the cells and genes of the panel and over the spots with cells and all genes. Its expected
    value is least for the true means, so a fit that follows the noise of its own molecules pays
    for it. The split of a molecule depends on its cell or spot, gene and `rng` only.

    The number that explains counts best need not be the one that imputes best: genes that the
    cells are not measured for can be judged with `stdist.tl.siid_holdout`.

    Examples
    --------
    >>> siid_choose_factors("xenium.zarr", spots="visium.zarr")  # doctest: +SKIP
    """
    candidates = _candidates(n_factors)
    parameters = {
        "layer": layer,
        "spots_layer": spots_layer,
        "spatial_key": spatial_key,
        "spots_spatial_key": spots_spatial_key,
        "transform": transform,
        "max_distance": max_distance,
        "n_restarts": n_restarts,
        "sample_cells": sample_cells,
        "platform_scaling": platform_scaling,
        "l2": l2,
        "key_added": key_added,
        "rng": rng,
    }
    opened = open_data(data)
    folder = run_program(
        _program(opened, open_data(spots), candidates, parameters),
        opened,
        client=client,
        block_length=block_length,
        progress=progress,
        overwrite=overwrite,
    )
    warn_of(opened, key_added)
    return folder


def warn_of(cells: Data, key: str) -> None:
    """Warn of what a choice has noted, beside plain scores."""
    notes = cells.uns(key).get("notes")
    for note in [] if notes is None else np.atleast_1d(notes):
        if not str(note).startswith("[held-out]"):
            warnings.warn(str(note), StdistWarning, stacklevel=3)


def _program(
    cells: Data, spots: Data, candidates: list[int], parameters: dict[str, Any]
) -> Program:
    """Bind the choice; what the fits of `stdist.tl.siid` need beyond it takes no part."""
    own = {"n_factors": candidates[-1], "n_solutions": 1, "deconvolve": False}
    pair = Pair(cells, spots, SiidSpec(**{**parameters, **own}))
    return ChoiceProgram(pair, candidates).program()


def _candidates(given: Any) -> list[int]:
    return ascending("siid_choose_factors", "n_factors", given, CANDIDATES)


def ascending(program: str, name: str, given: Any, default: Sequence[int]) -> list[int]:
    """Numbers as given in a call, or as text on the command line.

    Raises
    ------
    InputError
        If they are no ascending list of whole numbers from 1.
    """
    if given is None:
        return list(default)
    numbers = whole_numbers(given)
    if not numbers or numbers[0] < 1 or numbers != sorted(set(numbers)):
        remedy = "whole numbers in ascending order, from 1"
        raise wrong_parameter(program, name, given, remedy)
    return numbers
