"""`stdist simulate-pair`: cells and spots of one tissue with known truth, two stores."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stdist.graph import Map, Program, check_output
from stdist.kernels.pair_simulation import PairModel, pair_model
from stdist.methods.run import run_program
from stdist.store import InputError, Output
from stdist.store.layout import DENSE_MAX_COLUMNS

CELLS, SPOTS = "cells", "spots"
DRAWN_BYTES = 2**26
"""Working space of the draws, which are made some at a time."""


def simulate_cells(rows: tuple[int, int], *, parameters: dict[str, Any]) -> dict[str, Any]:
    """Cells of a block; each depends on its own number only."""
    model = pair_model(**parameters)
    block = model.cells(*rows)
    return {
        "counts": _stored(block.counts),
        "name": _names("cell", rows),
        "cell_type": block.cell_type,
        "total": block.total.astype(np.float32),
        "spot": block.spot,
        "spatial": block.spatial,
    }


def simulate_spots(rows: tuple[int, int], *, parameters: dict[str, Any]) -> dict[str, Any]:
    """Spots of a block, and what they captured."""
    model = pair_model(**parameters)
    block = model.spots(*rows)
    return {
        "counts": _stored(block.counts),
        "name": _names("spot", rows),
        "n_cells": block.n_cells,
        "type_total": block.type_total.astype(np.float32),
        "spatial": block.spatial,
    }


def _stored(counts: Any) -> Any:
    return counts.toarray() if counts.shape[1] <= DENSE_MAX_COLUMNS else counts


def _names(kind: str, rows: tuple[int, int]) -> np.ndarray:
    return np.array([f"{kind}_{row:09d}" for row in range(*rows)], dtype=object)


def simulate_pair_program(target: str, slide: str, **parameters: Any) -> Program:
    """Bind the simulation of one slide of a pair, ``"cells"`` or ``"spots"``, to a new store.

    Raises
    ------
    InputError
        If a parameter is out of its range.
    """
    try:
        model = pair_model(**parameters)
    except ValueError as error:
        raise InputError(
            "parameter-range",
            str(error),
            place="simulate-pair",
            remedy="see `stdist simulate-pair --help`",
        ) from error
    of_cells = slide == CELLS
    n_rows, n_genes = (
        (model.n_cells, model.n_panel) if of_cells else (model.n_spots, model.profiles.shape[1])
    )
    stage = Map(
        "simulate",
        simulate_cells if of_cells else simulate_spots,
        rows=n_rows,
        options={"parameters": parameters},
        whole_blocks=True,
        nanoseconds=n_genes * 40.0,
        workspace=partial(_workspace, 1.0 if of_cells else model.n_cells / n_rows, n_genes),
        writes=_writes(model, n_genes, of_cells=of_cells),
    )
    return Program(
        "simulate-pair",
        (stage,),
        {"target": target, "slide": slide, **parameters},
        Path(target),
        creates=True,
        results=partial(_results, model=model, n_genes=n_genes, parameters=parameters),
    )


def _writes(model: PairModel, n_genes: int, *, of_cells: bool) -> dict[str, Output]:
    counts = "uint16" if of_cells else "uint32"
    kind = "dense" if n_genes <= DENSE_MAX_COLUMNS else "csr"
    shared = {
        "counts": Output("X", (n_genes,), counts, kind),
        "name": Output("obs/_index", (), "str"),
        "spatial": Output("obsm/spatial", (2,), "float32"),
    }
    n_types = len(model.profiles)
    if not of_cells:
        return shared | {
            "n_cells": Output("obs/true_n_cells", (), "int32"),
            "type_total": Output("obsm/true_type_total", (n_types,), "float32"),
        }
    types = tuple(f"type_{t:02d}" for t in range(n_types))
    return shared | {
        "cell_type": Output("obs/cell_type", (), "int16", "categorical", types),
        "total": Output("obs/true_total", (), "float32"),
        "spot": Output("obs/true_spot", (), "int32"),
    }


def _workspace(cells_per_row: float, n_genes: int, rows: int) -> int:
    """Bytes of one call: places of the cells concerned, and counts as drawn."""
    return int(rows * (200 * cells_per_row + 12 * n_genes)) + DRAWN_BYTES


def _results(
    values: Any, model: PairModel, n_genes: int, parameters: dict[str, Any]
) -> dict[str, Any]:
    width = max(4, len(str(model.profiles.shape[1] - 1)))
    genes = [f"gene_{g:0{width}d}" for g in range(n_genes)]
    truth = {
        "params": parameters,
        "profiles": model.profiles,
        "platform_factor": model.platform_factor,
        "shift": model.shift,
    }
    return {
        "var": pd.DataFrame(index=genes),
        "uns": {"simulation": truth, "spatial_unit": "micrometre"},
    }


def simulate_pair(
    cells: Path | str,
    spots: Path | str,
    *,
    n_cells: int,
    n_genes: int = 300,
    n_panel: int | None = None,
    n_types: int = 8,
    rng: int = 0,
    client: Any = None,
    block_length: int | None = None,
    progress: bool | None = None,
    **model: Any,
) -> tuple[Path, Path]:
    """Simulate two slides of one tissue, single cells and spots above them, into two new stores.

    Parameters
    ----------
    cells, spots
        Paths of the new stores: counts in ``X``, ``obsm["spatial"]`` in um. Cells have
        ``obs["cell_type"]``, ``true_total`` (expected counts over all genes) and ``true_spot``;
        spots ``obs["true_n_cells"]`` and ``obsm["true_type_total"]``, totals of their cells by
        type. ``uns["simulation"]`` holds the profiles of the types and the platform factors.
    n_cells
        Number of cells; the tissue and the number of spots follow from it.
    n_genes
        Genes of the spots.
    n_panel
        How many of them, the first, cells are measured for; default: all.
    n_types
        Number of cell types, in squares of a checkerboard.
    rng
        Seed. Nothing depends on blocks or workers.
    client, block_length, progress
        As in `stdist.tl.crescendo`.
    **model
        Further parameters of `stdist.kernels.pair_simulation.pair_model`, whose module documents
        the model as equations: ``cells_per_mm2``, ``platform_sigma``, ``shift`` ...

    Returns
    -------
    tuple of Path
        Folders of the two run records.

    Raises
    ------
    InputError
        If an output exists or a parameter is out of range.

    Examples
    --------
    >>> simulate_pair("cells.zarr", "spots.zarr", n_cells=10_000, n_panel=200)  # doctest: +SKIP
    """
    parameters = {
        "n_cells": n_cells,
        "n_genes": n_genes,
        "n_panel": n_panel,
        "n_types": n_types,
        "seed": rng,
        **model,
    }
    programs = [
        simulate_pair_program(str(Path(path).absolute()), slide, **parameters)
        for path, slide in ((cells, CELLS), (spots, SPOTS))
    ]
    for program in programs:
        check_output(program, overwrite=False)  # both, before the first is made
    first, second = (
        run_program(program, None, client=client, block_length=block_length, progress=progress)
        for program in programs
    )
    assert first is not None
    assert second is not None
    return first, second
