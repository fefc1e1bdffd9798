"""Scores of all folds as tables, and what they say of the controls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from stdist.kernels.imputation_scores import gene_scores
from stdist.methods.siid.held_out import PERMUTED
from stdist.methods.siid.holdout_tiles import NEIGHBORS, STREAMED
from stdist.methods.siid.holdout_types import types_table
from stdist.methods.siid.verdicts import beaten, standard_error, verdicts

SCORES = ("r2", "pearson", "ssim", "rmse", "js", "symmetrised_kl")
JS = "_js"
"""Ends the names of the stages that need the totals of another one."""
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
    known: np.ndarray | None = None,
) -> dict[str, Any]:
    """Tables of all folds, from the sums that their stages made."""
    single = [f"{SINGLE} {number}" for number in range(n_solutions)]
    parts = {"score": ["siid", *single, *(STREAMED if controls else ())]}
    if controls:
        parts |= {"score_neighbors": list(NEIGHBORS), f"{PERMUTED}.score": [PERMUTED, *single]}
    tables, ranges = [], []
    for fold, genes in genes_of.items():
        for part, methods in parts.items():
            sums, js = values[f"fold{fold}.{part}"], values[f"fold{fold}.{part}{JS}"]
            found = pd.DataFrame(gene_scores(sums) | js).assign(
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
    found_all = {
        "params": dict(parameters),
        "scores": scores,
        "summary": summary,
        "notes": told or None,
    }
    if known is not None:
        found_all["types"] = types_table(values, genes_of, known)
    return {key: found_all}


def summarise(scores: pd.DataFrame, ranges: pd.DataFrame) -> pd.DataFrame:
    """Means of the scores by method, and whether `siid` is better than it beyond chance.

    A divergence that some method does not have for a gene is left out of the means of all.
    """
    methods = list(dict.fromkeys(scores["method"]))
    by_method = scores.groupby("method")
    of_gene = scores.groupby(["fold", "gene"])
    known = of_gene[list(SCORES)].transform("count").eq(of_gene["method"].transform("size"), axis=0)
    compared = scores[list(SCORES)].where(known)
    summary = compared.groupby(scores["method"]).mean().reindex(methods)
    summary.insert(0, "genes", by_method.size())
    r2 = scores.pivot(index=["fold", "gene"], columns="method", values="r2")
    advantage = r2[["siid"]].to_numpy() - r2[methods]
    summary["advantage"] = advantage.mean()
    summary["standard_error"] = advantage.apply(standard_error)
    summary["seed_range"] = ranges.groupby("method")["range"].mean()
    return summary.assign(beaten=beaten(summary))


def kept_tables(
    found: Mapping[str, Any],
) -> tuple[pd.DataFrame, pd.DataFrame, list[str], pd.DataFrame | None]:
    """Scores, summary, notes and types as they were made, whatever a store has made of them."""
    scores, summary = found["scores"].reset_index(drop=True), found["summary"]
    scores = scores.astype({"fold": int, "gene": object, "method": object})
    index = pd.Index([str(name) for name in summary.index], dtype=object, name="method")
    summary = summary.set_axis(index).astype({"genes": int, "beaten": "boolean"})
    notes = found.get("notes")
    listed = [] if notes is None else [str(note) for note in np.atleast_1d(notes)]
    types = found.get("types")
    if types is not None:
        types = types.reset_index(drop=True).astype({"fold": int, "assignment": object})
    return scores, summary, listed, types
