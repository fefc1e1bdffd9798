"""What scores of genes held out say of an imputation and of its controls, in words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from stdist.methods.siid.held_out import CONTROLS, PERMUTED
from stdist.methods.siid.spec import SiidSpec

N_FOLDS = 10
"""Of a hold-out, if not told otherwise."""
ROUNDING = 1e-4
"""Difference of mean R2 that is none, whatever the genes."""
MARGIN = "±: what solutions differ by, or two standard errors over the genes"


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
