"""Scores of all folds as tables, and what they say of the controls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from stdist.kernels.imputation_scores import gene_scores
from stdist.methods.siid.held_out import PERMUTED, verdicts
from stdist.methods.siid.holdout_tiles import NEIGHBORS, STREAMED

SCORES = ("r2", "pearson", "ssim", "rmse", "symmetrised_kl")
SINGLE = "solution"


def holdout_results(
    values: Mapping[str, Any],
    key: str,
    parameters: Mapping[str, Any],
    genes_of: Mapping[int, list[str]],
    n_solutions: int,
    notes: list[str],
    *,
    controls: bool,
) -> dict[str, Any]:
    """Tables of all folds, from the sums that their stages made."""
    single = [f"{SINGLE} {number}" for number in range(n_solutions)]
    parts = {"score": ["siid", *single, *(STREAMED if controls else ())]}
    if controls:
        parts |= {"neighbors": list(NEIGHBORS), f"{PERMUTED}.score": [PERMUTED, *single]}
    tables, ranges = [], []
    for fold, genes in genes_of.items():
        for part, methods in parts.items():
            sums = values[f"fold{fold}.{part}"]
            found = pd.DataFrame(gene_scores(sums)).assign(
                fold=fold, gene=genes * len(methods), method=np.repeat(methods, len(genes))
            )
            alone = found["method"].isin(single)
            tables.append(found[~alone])
            if alone.any():
                means = found[alone].groupby("method")["r2"].mean()
                ranges.append((methods[0], means.max() - means.min()))
    scores = pd.concat(tables, ignore_index=True)[["fold", "gene", "method", *SCORES]]
    summary = summarise(scores, pd.DataFrame(ranges, columns=["method", "range"]))
    told = [*notes, *verdicts(summary)]
    return {
        key: {
            "params": dict(parameters),
            "scores": scores,
            "summary": summary,
            "notes": told or None,
        }
    }


def summarise(scores: pd.DataFrame, ranges: pd.DataFrame) -> pd.DataFrame:
    """Means of the scores by method, and whether `siid` beats it by more than its seeds differ."""
    methods = list(dict.fromkeys(scores["method"]))
    by_method = scores.groupby("method")
    summary = by_method[list(SCORES)].mean().reindex(methods)
    summary.insert(0, "genes", by_method.size())
    summary["advantage"] = summary.loc["siid", "r2"] - summary["r2"]
    summary["seed_range"] = ranges.groupby("method")["range"].mean()
    beaten = (summary["advantage"] > summary.loc["siid", "seed_range"]).astype("boolean")
    return summary.assign(beaten=beaten.where(summary.index != "siid"))


def kept_tables(found: Mapping[str, Any]) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Scores, summary and notes as they were made, whatever a store has made of them."""
    scores, summary = found["scores"].reset_index(drop=True), found["summary"]
    scores = scores.astype({"fold": int, "gene": object, "method": object})
    index = pd.Index([str(name) for name in summary.index], dtype=object, name="method")
    summary = summary.set_axis(index).astype({"genes": int, "beaten": "boolean"})
    notes = found.get("notes")
    return scores, summary, [] if notes is None else [str(note) for note in np.atleast_1d(notes)]
