"""Checks of the arguments and of the outcome of :mod:`stdist.kernels.poisson_match`.

``xp`` is NumPy or CuPy; arrays stay where they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from stdist.kernels.poisson_match_numba import BAD_MEAN, MAXIMUM_MEAN, NEGATIVE_COUNT, OVERFLOW

NO_PROBLEM = np.iinfo(np.int64).max
OUTSIDE = f"is not a number in [0, {MAXIMUM_MEAN:.0f}]"


class EntryError(ValueError):
    """An entry that cannot be matched, by its global `row` and its `gene` (column)."""

    def __init__(self, row: int, gene: int, problem: str) -> None:
        self.row, self.gene, self.problem = row, gene, problem
        super().__init__(f"row {row}, gene {gene}: {problem}")


class CountOverflow(EntryError, OverflowError):
    """The matched count exceeds the type of the result."""


def overflow(dtype: np.dtype) -> str:
    """Name the problem of a count above the largest of a type."""
    return f"the matched count exceeds {dtype}"


def check_means(means: Any, rows: Any) -> None:
    """Raise EntryError for the first mean, if any, that is not in range; `rows` are global."""
    _raise_first(~((means >= 0.0) & (means <= MAXIMUM_MEAN)), rows, EntryError, f"a mean {OUTSIDE}")


def check_range(counts: Any, dtype: np.dtype, rows: Any) -> None:
    """Raise CountOverflow for the first count, if any, above the largest of a type."""
    _raise_first(counts > np.iinfo(dtype).max, rows, CountOverflow, overflow(dtype))


def _raise_first(wrong: Any, rows: Any, error: type[EntryError], problem: str) -> None:
    if wrong.any():
        row, gene = np.argwhere(wrong)[0]
        raise error(int(rows[row]), int(gene), problem)


def check_array(xp: Any, values: Any, dtype: Any, shape: tuple[int, ...], name: str) -> Any:
    """Contiguous array of a type, or ValueError where the shape differs."""
    result = xp.ascontiguousarray(xp.asarray(values, dtype=dtype))
    if result.shape != shape:
        message = f"{name} must have the shape {shape}, not {result.shape}"
        raise ValueError(message)
    return result


def check_codes(xp: Any, values: Any, n: int, n_codes: int, name: str) -> Any:
    """int32 codes from 0 to n_codes - 1 of n cells, or ValueError."""
    codes = check_array(xp, values, np.int32, (n,), name)
    if n and not (int(codes.min()) >= 0 and int(codes.max()) < n_codes):
        message = f"{name} codes must lie between 0 and {n_codes - 1}"
        raise ValueError(message)
    return codes


def check_depth(xp: Any, values: Any, n: int, name: str) -> Any:
    """float64 depths of n cells, or ValueError where one is not positive and finite."""
    depth = check_array(xp, values, np.float64, (n,), name)
    if not bool(xp.all((depth > 0) & (depth < np.inf))):
        message = f"{name} must be positive and finite"
        raise ValueError(message)
    return depth


def check_tile(xp: Any, counts: Any, out: Any, row_start: int) -> tuple[Any, Any]:
    """Contiguous counts and an array for the result, new if out is None, or ValueError."""
    counts = xp.ascontiguousarray(counts)
    if counts.ndim != 2 or counts.dtype.kind not in "iu":
        message = f"counts must be a matrix of integers, not {counts.ndim}-d {counts.dtype}"
        raise ValueError(message)
    if row_start < 0:
        message = f"row_start must not be negative, not {row_start}"
        raise ValueError(message)
    if out is None:
        out = xp.empty_like(counts)
    if out.shape != counts.shape or out.dtype.kind not in "iu" or not out.flags.c_contiguous:
        message = f"out must be a C-contiguous matrix of integers of the shape {counts.shape}"
        raise ValueError(message)
    return counts, out


def raise_problem(status: Any, n_genes: int, row_start: int, dtype: np.dtype) -> None:
    """Raise for the first position, if any, that the kernels noted in the status."""
    positions = [int(position) for position in status]
    problems: dict[int, tuple[type[EntryError], str]] = {
        BAD_MEAN: (EntryError, f"a Poisson mean {OUTSIDE}"),
        NEGATIVE_COUNT: (EntryError, "the count is negative"),
        OVERFLOW: (CountOverflow, overflow(dtype)),
    }
    for problem, (error, text) in problems.items():
        if positions[problem] != NO_PROBLEM:
            row, gene = divmod(positions[problem], n_genes)
            raise error(row_start + row, gene, text)
