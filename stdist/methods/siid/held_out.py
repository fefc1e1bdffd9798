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
from stdist.methods.siid.spec import SiidSpec
from stdist.preprocess.bound import TileWorkspace
from stdist.store import TILE_ROWS

Arrays = dict[str, Any]
FLOAT, SINGLE = 8, 4
CONTROLS = ("B", "total")
"""Counts of the spot scaled to the total of the cell, and that total alone."""
PERMUTED = "permuted"
"""Solution 0 of the same fit with the counts of each spot at the place of another."""
N_FOLDS = 10
"""Of a hold-out, if not told otherwise."""
ROUNDING = 1e-4
"""Difference of mean R2 that is none, whatever the genes."""
MARGIN = "±: what solutions differ by, or two standard errors over the genes"


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


def held_out_notes(table: pd.DataFrame, spread: float | None = None) -> list[str]:
    """What the scores come to, and a control that is as good.

    The imputation is compared with simple controls; the solution of its best restart with that of
    permuted spots. `spread` is by how much solutions differ; default: in the mean of all genes.
    """
    mean = table.mean()
    single = mean[mean.index.str.startswith("solution")]
    spread = single.max() - single.min() if spread is None else spread
    shown = ["siid", *CONTROLS]
    errors = {name: standard_error(table["siid"] - table[name]) for name in shown}
    summary = pd.DataFrame({"r2": mean[shown], "seed_range": spread, "standard_error": errors})
    level = (
        f"[held-out] mean R2 of {len(table)} genes held out: imputed {mean['siid']:.4f}, "
        f"counts of the spot scaled to the cell (B) {mean['B']:.4f}, "
        f"total of the cell alone {mean['total']:.4f}"
    )
    notes = [level, *verdicts(summary)]
    if PERMUTED not in mean:
        return notes
    alone = table[single.index[0]]
    own, permuted = alone.mean(), mean[PERMUTED]
    notes[0] += f"; solution 0 alone {own:.4f}, and {permuted:.4f} with the spots permuted"
    margin = margins(spread, standard_error(alone - table[PERMUTED]))
    if own - permuted <= margin:
        notes.append(_permuted_note(f"solution 0 has a mean R2 of {own:.4f}", permuted, margin))
    return notes


def standard_error(advantage: pd.Series) -> float:
    """Of the mean of one number per gene; of a single gene it has no bound."""
    return float(advantage.std() / np.sqrt(len(advantage))) if len(advantage) > 1 else np.inf


def margins(spread: float, error: Any) -> Any:
    """Difference of mean R2 that is none: `spread` of the solutions, or two standard errors."""
    return np.maximum(max(spread, ROUNDING), 2 * error)


def beaten(summary: pd.DataFrame) -> pd.Series:
    """Whether `siid` is better than each method by more than the margin.

    Parameters
    ----------
    summary
        One row per method, ``siid`` among them: ``r2``, ``seed_range`` and the ``standard_error``
        of the advantage of ``siid`` over the genes.
    """
    own, spread = summary.loc["siid", ["r2", "seed_range"]]
    found = (own - summary["r2"] > margins(spread, summary["standard_error"])).astype("boolean")
    return found.where(summary.index != "siid")


def unscored_note(n_factors: int, n_genes: int) -> str:
    """Say which command tells how well genes are imputed."""
    text = (
        "[imputation-unscored] no gene was held out, so this fit does not tell how well genes are"
    )
    if n_genes < 2:
        return f"{text} imputed, and of one gene none can be held out"
    return f"{text} imputed: {_command(n_factors, n_genes)} does, beside simple controls"


def check_note(checking: SiidSpec, n_factors: int, n_genes: int) -> str:
    """Say which fit the scores are of."""
    return (
        "[checked] the genes that are scored were held out of another fit, with "
        f"{checking.n_factors} factors; {_command(n_factors, n_genes)} scores all genes in folds"
    )


def _command(n_factors: int, n_genes: int) -> str:
    options = " ".join(
        f"--{name.replace('_', '-')} {value}"
        for name, value in holdout_options(n_factors, n_genes).items()
    )
    return f"`stdist measure siid-holdout --cells CELLS --spots SPOTS {options}`"


def holdout_options(n_factors: int, n_genes: int) -> dict[str, int]:
    """Parameters of a hold-out of two genes or more: its folds leave as many genes as factors."""
    n_folds = min(N_FOLDS, n_genes)
    found = {"n_factors": min(n_factors, n_genes - -(-n_genes // n_folds))}
    return found if n_folds == N_FOLDS else found | {"n_folds": n_folds}


def verdicts(summary: pd.DataFrame) -> list[str]:
    """Name the controls that are as good.

    Parameters
    ----------
    summary
        As of `beaten`.
    """
    own, spread = summary.loc["siid", ["r2", "seed_range"]]
    level = f"SIID has a mean R2 of {own:.4f}"
    as_good = summary[beaten(summary).eq(False).fillna(False)]
    margin = margins(spread, as_good["standard_error"])
    wins = as_good["r2"] - own > margin
    notes = []
    for verb, which in (("wins", wins), ("ties", ~wins)):
        listed = [
            f"{name} {r2:.4f} ± {margin[name]:.4f}"
            for name, r2 in as_good.loc[which, "r2"].items()
            if name != PERMUTED
        ]
        if listed:
            notes.append(
                f"[control-{verb}] {level}, simple baselines: {', '.join(listed)} ({MARGIN}); the "
                "genes that are shown may be too few for the method"
            )
    if PERMUTED in as_good.index:
        notes.append(_permuted_note(level, as_good.loc[PERMUTED, "r2"], margin[PERMUTED]))
    return notes


def _permuted_note(level: str, r2: float, margin: float) -> str:
    return (
        f"[control-permuted] {level}, with the spots permuted {r2:.4f} ± {margin:.4f} ({MARGIN}): "
        "as far as these genes tell, the imputation uses which genes vary together, not where the "
        "spots are"
    )
