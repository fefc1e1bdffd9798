"""Types of the spots that a hold-out tells, against proportions that are known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from stdist.kernels.imputation_scores import matched_js
from stdist.kernels.moments import dense_rows
from stdist.methods.data import Data
from stdist.store import InputError

KINDS = ("soft", "hard")


def known_proportions(spots: Data, key: str) -> np.ndarray:
    """Proportions of the spots, ``(n_spots, n_types)`` float64; NaN or zeros where not known.

    Raises
    ------
    InputError
        If they are no table of two types or more, are negative or infinite, or no spot has any.
    """
    source = spots.embedding(key)
    place = f"obsm {key!r} of {spots.place}"
    if len(source.shape) != 2 or source.shape[1] < 2 or np.dtype(source.dtype).kind not in "biuf":
        raise InputError(
            "proportions-shape",
            f"known proportions have shape {source.shape} and dtype {source.dtype}",
            place=place,
            remedy="give numbers of shape (n_spots, n_types), of two types or more",
        )
    values = dense_rows(source.read(0, spots.n_obs))
    wrong = np.flatnonzero(((values < 0) | np.isinf(values)).any(axis=1))
    if len(wrong):
        raise InputError(
            "proportions-negative",
            f"{len(wrong)} spots have proportions that are negative or infinite",
            place=f"{place}, row {wrong[0]}",
            remedy="give shares or counts of each type, NaN or zeros where they are not known",
        )
    if not (values.sum(axis=1) > 0).any():
        raise InputError(
            "proportions-none",
            "no spot has known proportions: all are zeros or NaN",
            place=place,
            remedy="give shares or counts of each type",
        )
    return values


def types_table(values: Mapping[str, Any], folds: Iterable[int], known: np.ndarray) -> pd.DataFrame:
    """Mean Jensen-Shannon divergence (nat) of the spots in every fold, and of how many."""
    rows = []
    for fold in folds:
        found = values[f"fold{fold}.spot_loadings"]
        for kind in KINDS:
            js, _ = matched_js(known, found[kind])
            known_here = js[np.isfinite(js)]
            mean = known_here.mean() if len(known_here) else np.nan
            rows.append((fold, kind, mean, len(known_here)))
    return pd.DataFrame(rows, columns=["fold", "assignment", "js", "n_spots"])
