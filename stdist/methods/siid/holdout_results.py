"""Scores of all folds as tables, what they say of the controls, and where they are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from stdist.graph import Each, Program
from stdist.kernels.imputation_scores import gene_scores
from stdist.methods.data import Data, StoreData
from stdist.methods.run import run_program
from stdist.methods.siid.holdout_program import FoldProgram
from stdist.methods.siid.holdout_tiles import NEIGHBORS, STREAMED
from stdist.store import InputError, StdistError

SCORES = ("r2", "pearson", "ssim", "rmse", "symmetrised_kl")
SINGLE = "solution"


def fold_scores(sums: Mapping[str, Any], fit: FoldProgram, genes: list[str]) -> pd.DataFrame:
    """Scores of a fold: one row per method and gene, single solutions among the methods."""
    first = "permuted" if fit.permuted else "siid"
    single = [f"{SINGLE} {number}" for number in range(len(fit.solutions))]
    names = {"score": [first, *single], "neighbors": list(NEIGHBORS)}
    names["score"] += STREAMED if fit.controls else ()
    tables = [
        pd.DataFrame(gene_scores(sums[part])).assign(
            method=np.repeat(methods, len(genes)), gene=genes * len(methods)
        )
        for part, methods in names.items()
        if part in sums  # in whatever order they were kept
    ]
    return pd.concat(tables, ignore_index=True)


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


def keeping_program(
    cells: Data, spots: str, key_added: str, parameters: Mapping[str, Any]
) -> Program:
    """Return a program that computes nothing, whose results `keep` fills in."""
    recorded = {name: value for name, value in parameters.items() if value is not None}
    return Program(
        "siid_holdout",
        (Each("keep", _nothing),),
        {"data": str(cells.path), "spots": spots, "key_added": key_added} | recorded,
        cells.path,
        results=_lost,
        result_keys=(f"uns/{key_added}",),
    )


def keep(
    program: Program,
    cells: Data,
    scores: pd.DataFrame,
    summary: pd.DataFrame,
    notes: list[str],
    overwrite: bool,
) -> list[str]:
    """Write the tables at once; where that fails say so, because the caller still has them."""
    own = ("data", "key_added")
    found = {
        "params": {name: v for name, v in program.parameters.items() if name not in own},
        "scores": scores,
        "summary": summary,
        "notes": notes or None,
    }
    filled = replace(program, results=lambda values: dict.fromkeys(program.result_keys, found))
    try:
        run_program(filled, cells, overwrite=overwrite, progress=False)
    except (StdistError, OSError) as error:
        if isinstance(error, StdistError) and error.code == "interrupted":
            raise
        return [f"[scores-not-kept] the scores are returned, but not in the store: {error}"]
    return []


def build_siid_holdout(data: str, spots: str, key_added: str, **parameters: Any) -> Program:
    """Build the program of a recorded run: it can finish the switch, not score again."""
    return keeping_program(StoreData(data), spots, key_added, parameters)


def _nothing(item: int) -> dict[str, Any]:
    return {"item": np.int64(item)}


def _lost(values: Any) -> dict[str, Any]:
    raise InputError(
        "scores-lost",
        "the scores were in the memory of a process that ended before they were written",
        place="siid_holdout",
        remedy="call stdist.tl.siid_holdout (`stdist measure siid-holdout`) again",
    )
