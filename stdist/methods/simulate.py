"""`stdist simulate`: a multi-slide cohort with known truth, written block by block."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stdist.graph import Each, Map, Program
from stdist.kernels.cohort import CohortModel, cohort_model, simulate_block
from stdist.methods.run import run_program
from stdist.store import InputError, Output


def draw_model(item: int, *, parameters: dict[str, Any]) -> dict[str, Any]:
    """Draw the truth of the cohort."""
    return cohort_model(**parameters).to_arrays()


def simulate_rows(rows: tuple[int, int], *, model: dict[str, np.ndarray]) -> dict[str, Any]:
    """Simulate the cells of a block; every cell depends on its own number only."""
    block = simulate_block(CohortModel.from_arrays(model), *rows)
    return {
        "counts": block.counts,
        "name": np.array([f"cell_{row:09d}" for row in range(*rows)], dtype=object),
        "batch": block.batch,
        "cell_type": block.cell_type,
        "depth": block.depth,
        "spatial": block.spatial,
    }


def simulate_program(
    target: str,
    n_cells: int,
    n_genes: int = 500,
    n_batches: int = 4,
    n_types: int = 12,
    seed: int = 0,
    **model: Any,
) -> Program:
    """Bind the simulation to a new store.

    Raises
    ------
    InputError
        If a parameter is out of its range.
    """
    parameters = {
        "n_cells": n_cells,
        "n_genes": n_genes,
        "n_batches": n_batches,
        "n_types": n_types,
        "seed": seed,
        **model,
    }
    try:
        cohort_model(**parameters)
    except ValueError as error:
        raise InputError(
            "parameter-range", str(error), place="simulate", remedy="see `stdist simulate --help`"
        ) from error
    slides = tuple(f"slide_{b:02d}" for b in range(n_batches))
    types = tuple(f"type_{t:02d}" for t in range(n_types))
    facts = {"density": model.get("density", 0.09)}
    stages = (
        Each("model", draw_model, options={"parameters": parameters}),
        Map(
            "simulate",
            simulate_rows,
            uses=("model",),
            rows=n_cells,
            whole_blocks=True,
            nanoseconds=n_genes * 12.0,
            workspace=partial(_workspace, n_genes),
            writes={
                "counts": Output("X", (n_genes,), "uint16", attributes=facts),
                "name": Output("obs/_index", (), "str"),
                "batch": Output("obs/batch", (), "int16", "categorical", slides),
                "cell_type": Output("obs/cell_type", (), "int16", "categorical", types),
                "depth": Output("obs/true_depth", (), "float32"),
                "spatial": Output("obsm/spatial", (2,), "float32"),
            },
        ),
    )
    return Program(
        "simulate",
        stages,
        {"target": target, **parameters},
        Path(target),
        creates=True,
        results=partial(_results, n_genes=n_genes, parameters=parameters),
    )


def _workspace(n_genes: int, rows: int) -> int:
    return rows * (200 + n_genes)


def _results(values: Any, n_genes: int, parameters: dict[str, Any]) -> dict[str, Any]:
    width = max(4, len(str(n_genes - 1)))
    genes = [f"gene_{g:0{width}d}" for g in range(n_genes)]
    truth = {"params": parameters, **values["model"]}
    return {
        "var": pd.DataFrame(index=genes),
        "uns": {"simulation": truth, "spatial_unit": "micrometre"},
    }


def simulate(
    out: Path | str,
    *,
    n_cells: int,
    n_genes: int = 500,
    n_batches: int = 4,
    n_types: int = 12,
    rng: int = 0,
    client: Any = None,
    block_length: int | None = None,
    progress: bool | None = None,
    **model: Any,
) -> Path:
    """Simulate a MERSCOPE-like cohort of several slides into a new store.

    Parameters
    ----------
    out
        Path of the new store: counts (uint16) in ``X``; ``obs`` has ``batch`` (the slide),
        ``cell_type`` and ``true_depth``; ``obsm["spatial"]`` is in um; ``uns["simulation"]`` holds
        the true rates and batch effects.
    n_cells, n_genes, n_batches, n_types
        Size of the cohort.
    rng
        Seed. Cells do not depend on blocks or workers.
    client, block_length, progress
        As in `stdist.tl.crescendo`.
    **model
        Further parameters of `stdist.kernels.cohort.cohort_model`, whose module documents the
        model as equations: ``density``, ``depth_sigma``, ``batch_sigma``, ``batch_type_sigma`` ...

    Returns
    -------
    Path
        Folder of the run record.

    Raises
    ------
    InputError
        If the output exists or a parameter is out of range.

    Examples
    --------
    >>> simulate("cohort.zarr", n_cells=10_000, n_batches=4)  # doctest: +SKIP
    """
    target = str(Path(out).absolute())
    program = simulate_program(target, n_cells, n_genes, n_batches, n_types, rng, **model)
    run = run_program(program, None, client=client, block_length=block_length, progress=progress)
    assert run is not None
    return run
