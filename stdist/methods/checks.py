"""Checks of counts, depth, labels and soft clusters in a pass, naming the first wrong row."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
from scipy import sparse

from stdist.kernels.moments import row_sums
from stdist.store import InputError

SUM_TOLERANCE = 1e-3
"""Soft clusters are float32 or float16 in practice; their rows sum to one within this."""


def wrong_parameter(method: str, name: str, value: Any, remedy: str) -> InputError:
    """Error of a parameter that is out of its range."""
    return InputError(
        "parameter-range", f"{name} is {value!r}", place=method, remedy=f"give {remedy}"
    )


def check_number(
    method: str, name: str, value: Any, kind: type, bounds: tuple[float, float]
) -> None:
    """Refuse what is no number of a kind (`numbers.Real`, `numbers.Integral`) within bounds.

    Raises
    ------
    InputError
        With code parameter-range.
    """
    low, high = bounds
    if not isinstance(value, kind) or isinstance(value, bool) or not low <= value <= high:
        whole = "a whole number" if kind is Integral else "a number"
        raise wrong_parameter(method, name, value, f"{whole} between {low:g} and {high:g}")


def check_counts(counts: Any, rows: tuple[int, int]) -> None:
    """Refuse negative, fractional, NaN and infinite counts.

    Raises
    ------
    InputError
        With code counts-negative, counts-fractional or counts-nonfinite, and the first place.
    """
    values = counts.data if sparse.issparse(counts) else counts
    if values.dtype.kind in "ub":
        return
    problems = [("negative", lambda v: v < 0)]
    if values.dtype.kind == "f":
        problems = [
            ("nonfinite", lambda v: ~np.isfinite(v)),
            *problems,
            ("fractional", lambda v: v != np.floor(v)),
        ]
    for name, wrong in problems:
        bad = wrong(values)
        if bad.any():
            matrix = counts.tocoo() if sparse.issparse(counts) else None
            first = int(np.flatnonzero(bad.ravel())[0])
            if matrix is not None:
                row, gene = int(matrix.row[first]), int(matrix.col[first])
            else:
                row, gene = (int(i) for i in np.unravel_index(first, values.shape))
            raise InputError(
                f"counts-{name}",
                f"a count is {name}: {values.ravel()[first]}",
                place=f"row {rows[0] + row}, column {gene}",
                remedy="raw counts are needed: name the layer that holds them",
            )


def check_depth(depth: np.ndarray, counts: Any, rows: tuple[int, int], key: str) -> None:
    """Refuse depths that are not finite, negative, or zero where there are counts.

    Raises
    ------
    InputError
        With code depth-nonfinite, depth-negative or depth-zero, and the first row.
    """
    counted = row_sums(counts) > 0
    for code, bad in (
        ("nonfinite", ~np.isfinite(depth)),
        ("negative", depth < 0),
        ("zero", (depth == 0) & counted),
    ):
        found = np.flatnonzero(bad)
        if len(found):
            raise InputError(
                f"depth-{code}",
                f"the depth of a cell is {depth[found[0]]}",
                place=f"obs column {key!r}, row {rows[0] + int(found[0])}",
                remedy="give the positive total count (nUMI) of every cell",
            )


def check_codes(codes: np.ndarray, rows: tuple[int, int], key: str) -> None:
    """Refuse missing labels.

    Raises
    ------
    InputError
        With code labels-missing and the first row.
    """
    missing = np.flatnonzero(codes < 0)
    if len(missing):
        raise InputError(
            "labels-missing",
            f"{len(missing)} or more missing values in {key!r}",
            place=f"obs column {key!r}, row {rows[0] + int(missing[0])}",
            remedy="fill them in, or filter these cells out",
        )


def check_weights(weights: np.ndarray, rows: tuple[int, int], key: str) -> None:
    """Refuse soft clusters that are negative, not finite, or do not sum to one.

    Raises
    ------
    InputError
        With code clusters-nonfinite, clusters-negative or clusters-sum, and the first row.
    """
    sums = weights.sum(axis=1)
    for code, bad in (
        ("nonfinite", ~np.isfinite(weights).all(axis=1)),
        ("negative", (weights < 0).any(axis=1)),
        ("sum", np.abs(sums - 1) > SUM_TOLERANCE),
    ):
        found = np.flatnonzero(bad)
        if len(found):
            raise InputError(
                f"clusters-{code}",
                f"soft clusters are wrong ({code}); this row sums to {sums[found[0]]:.6g}",
                place=f"obsm {key!r}, row {rows[0] + int(found[0])}",
                remedy="each row must hold non-negative weights that sum to one",
            )
