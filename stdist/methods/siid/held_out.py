"""Genes held out of a fit, scored at its end beside cheap controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from stdist.graph import Reduce, concatenate
from stdist.kernels.imputation_baselines import baseline_means
from stdist.kernels.imputation_scores import gene_scores
from stdist.kernels.moments import dense_rows, row_sums
from stdist.methods.siid.holdout_tiles import imputed_means, merged, scored
from stdist.methods.siid.pair import Pair, read_counts
from stdist.preprocess.bound import TileWorkspace
from stdist.store import TILE_ROWS

Arrays = dict[str, Any]
FLOAT, SINGLE = 8, 4
CONTROLS = ("B", "total")
"""Counts of the spot scaled to the total of the cell, and that total alone."""
PERMUTED = "permuted"
"""Solution 0 of the same fit with the counts of each spot at the place of another."""


def answered_genes(pair: Pair) -> list[str]:
    """Genes held out that the cells have counts of."""
    known = set(map(str, pair.cells.var_names))
    return [str(name) for name in pair.genes[pair.n_panel :] if str(name) in known]


def held_out_stages(
    pair: Pair, solutions: tuple[str, ...], control: tuple[str, ...], entries: float
) -> list[Reduce]:
    """Stages that score the genes in the solutions and in those of a control.

    `entries` are the stored counts of a cell in the panel.
    """
    genes = answered_genes(pair)
    number = {str(name): column for column, name in enumerate(pair.cells.var_names)}
    place = {str(name): column for column, name in enumerate(pair.genes)}
    model = np.array([place[name] for name in genes])
    fits = (*solutions, *control)
    n_estimates = 1 + len(fits) + len(CONTROLS)
    row = SINGLE * len(genes) + FLOAT
    return [
        Reduce(
            "spots_held_out",
            read_spots,
            {"counts": pair.spot_counts},
            options={
                "panel": pair.spot_columns[: pair.n_panel],
                "held": pair.spot_columns[model],
            },
            combine=concatenate,
            gathers=True,
            workspace=TileWorkspace(3 * row + 24 * pair.n_panel),
            nanoseconds=2000.0,
            partial_bytes=max(TILE_ROWS, pair.spots.n_obs) * row,
        ),
        Reduce(
            "held_out",
            score_cells,
            {"counts": pair.counts},
            ("spots_held_out", *fits),
            {
                "panel": pair.panel_columns,
                "held": np.array([number[name] for name in genes]),
                "model": model,
                "solutions": solutions,
                "control": control,
            },
            combine=merged,
            workspace=TileWorkspace(int(24 * entries) + (16 + n_estimates) * FLOAT * len(genes), 0),
            nanoseconds=20.0 * n_estimates * len(genes),
            partial_bytes=9 * FLOAT * n_estimates * len(genes),
            recalls=("spot_back", *(f"{name}_rows_back" for name in fits)),
        ),
    ]


def read_spots(
    rows: tuple[int, int], *, counts: Any, panel: np.ndarray, held: np.ndarray
) -> Arrays:
    """Counts of the held-out genes in some spots, and the spots' totals over the panel."""
    total, answers = panel_and_held(counts, rows, panel, held, "spots")
    return {"counts": answers.astype(np.float32), "total": total}


def panel_and_held(
    counts: Any, rows: tuple[int, int], panel: np.ndarray, held: np.ndarray, slide: str
) -> tuple[np.ndarray, np.ndarray]:
    """Totals over the panel, and dense counts of the genes held out."""
    read = read_counts(counts, rows, np.concatenate([panel, held]), slide)
    return row_sums(read[:, : len(panel)]), dense_rows(read[:, len(panel) :])


def score_cells(
    rows: tuple[int, int],
    *,
    counts: Any,
    spots_held_out: Arrays,
    spot_back: np.ndarray,
    panel: np.ndarray,
    held: np.ndarray,
    model: np.ndarray,
    solutions: tuple[str, ...],
    control: tuple[str, ...],
    **arguments: Any,
) -> Arrays:
    """Score the mean of the solutions, each of them, and the controls."""
    total, answers = panel_and_held(counts, rows, panel, held, "cells")
    single, permuted = (
        [imputed_means(arguments[f"{name}_rows_back"], arguments[name], model) for name in fits]
        for fits in (solutions, control)
    )
    controls = baseline_means(
        (0, len(answers)), spots_held_out["counts"], spot_back, total, spots_held_out["total"], {}
    )
    simple = (controls[name] for name in CONTROLS)
    return scored(answers, [np.mean(single, axis=0), *single, *simple, *permuted])


def held_out_table(sums: Mapping[str, Any], genes: Sequence[str], n_solutions: int) -> pd.DataFrame:
    """R2 by gene of the imputation (``siid``), of its single solutions and of the controls.

    The last column, where it is there, is of solution 0 with the spots ``permuted``.
    """
    names = ["siid", *(f"solution {number}" for number in range(n_solutions)), *CONTROLS]
    r2 = gene_scores(sums)["r2"].reshape(-1, len(genes))
    names += [PERMUTED] * (len(r2) - len(names))
    return pd.DataFrame(r2.T, index=pd.Index(genes, dtype=object, name=None), columns=names)
