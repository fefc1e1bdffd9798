"""Strata of cells: the combinations of batch labels that occur, as one source of codes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stdist.kernels.harmony_settings import Strata
from stdist.methods.checks import check_codes
from stdist.methods.data import UNIQUE_BAND, Data
from stdist.store import Source


@dataclass(frozen=True)
class StrataCodes:
    """Several columns of codes as one column of strata, int32.

    Parameters
    ----------
    columns
        Codes of the batch variables.
    sizes
        Number of codes of each.
    present
        Combinations that occur, as numbers with these sizes as bases, ascending.
    """

    columns: tuple[Source, ...]
    sizes: tuple[int, ...]
    present: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n_cells,)``."""
        return self.columns[0].shape

    @property
    def dtype(self) -> Any:
        """Strata are int32."""
        return np.dtype(np.int32)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the strata of cells ``start:stop``."""
        found = combinations([c.read(start, stop) for c in self.columns], self.sizes)
        return np.searchsorted(self.present, found).astype(np.int32)

    def read_bytes(self, rows: int) -> int:
        """Bytes held while `rows` rows are read."""
        return sum(column.read_bytes(rows) for column in self.columns) + 20 * rows

    def stored_bytes(self) -> int:
        """Bytes of the columns on disk."""
        return sum(column.stored_bytes() for column in self.columns)

    def fingerprint(self) -> str:
        """Fingerprints of the columns."""
        return "|".join(column.fingerprint() for column in self.columns)


def combinations(codes: Sequence[np.ndarray], sizes: Sequence[int]) -> np.ndarray:
    """Combinations of codes as int64 numbers with the sizes as bases."""
    found = np.zeros(len(codes[0]), np.int64)
    for column, size in zip(codes, sizes, strict=True):
        found = found * size + column
    return found


def read_strata(data: Data, keys: Sequence[str]) -> tuple[StrataCodes, Strata, list[str]]:
    """Find the strata of the columns `keys` of ``obs``, in one pass over their codes.

    Returns
    -------
    codes
        Stratum of each cell.
    strata
        Levels and number of cells of each stratum.
    names
        ``key:label`` of each level that some cell has.

    Raises
    ------
    InputError
        With code labels-missing, and the first cell without a label.
    """
    labels = [data.labels(key) for key in keys]
    columns, sizes = tuple(x.codes for x in labels), tuple(max(1, len(x.names)) for x in labels)
    counts = Counter[int]()
    for start in range(0, data.n_obs, UNIQUE_BAND):
        rows = start, min(data.n_obs, start + UNIQUE_BAND)
        codes = [column.read(*rows) for column in columns]
        for key, column in zip(keys, codes, strict=True):
            check_codes(column, rows, key)
        found, n = np.unique(combinations(codes, sizes), return_counts=True)
        counts.update(dict(zip(found.tolist(), n.tolist(), strict=True)))
    present = np.array(sorted(counts), np.int64)
    digits = np.stack(np.unravel_index(present, sizes), axis=1)
    levels, variables = np.empty_like(digits), list[int]()
    names: list[str] = []
    for variable, (key, column) in enumerate(zip(keys, labels, strict=True)):
        used, levels[:, variable] = np.unique(digits[:, variable], return_inverse=True)
        levels[:, variable] += len(names)
        variables += [variable] * len(used)
        names += [f"{key}:{column.names[code]}" for code in used]
    cells = np.array([counts[combination] for combination in present.tolist()], np.float64)
    strata = Strata(levels, cells, np.array(variables))
    return StrataCodes(columns, sizes, tuple(present.tolist())), strata, names
