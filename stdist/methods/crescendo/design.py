"""Columns of Crescendo's model: clusters, kept covariates, and both together.

Batches act on clusters only. Covariates to keep are columns of their own, without an effect per
batch, in the source and in the target: their role says so, never their name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from stdist.methods.data import UNIQUE_BAND, Data, Labels
from stdist.store import InputError, Source
from stdist.store.elements import CodesElement


def columns(weights: Any, kept: np.ndarray | None, interactions: bool) -> Any:
    """Columns of the design: clusters, kept, and each kept column times every cluster.

    Returns
    -------
    (n_rows, n_clusters + n_kept [+ n_kept * n_clusters]) array
        `weights` itself where nothing is kept.
    """
    if kept is None:
        return weights
    parts = [weights, kept]
    if interactions:
        parts.append((kept[:, :, None] * weights[:, None, :]).reshape(len(weights), -1))
    return np.concatenate(parts, axis=1, dtype=np.float64)


def spread(labels: np.ndarray, n_kept: int, interactions: bool) -> np.ndarray:
    """For each column of the given clusters, that of the merged ones; -1 where it was dropped.

    Parameters
    ----------
    labels : (n_clusters,) int
        Merged cluster of each cluster, -1 if dropped.
    n_kept : int
    interactions : bool

    Returns
    -------
    (n_columns,) int
    """
    n_merged = int(labels.max()) + 1
    first = n_merged * np.arange(1, n_kept * interactions + 1) + n_kept
    both = np.where(labels >= 0, first[:, None] + labels, -1)
    return np.concatenate([labels, n_merged + np.arange(n_kept), both.ravel()])


@dataclass(frozen=True)
class Kept:
    """One column of ``obs`` to keep: labels as one column each, numbers scaled to [0, 1]."""

    key: str
    source: Source
    levels: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 1.0

    @property
    def names(self) -> list[str]:
        """Names of the design columns."""
        return [f"{self.key}={level}" for level in self.levels] or [self.key]

    def encode(self, start: int, stop: int) -> np.ndarray:
        """Design columns of rows ``start:stop``, NaN where a value is missing."""
        values = self.source.read(start, stop)
        if self.levels:
            coded = np.eye(len(self.levels))[np.maximum(values, 0)]
            return np.where(values[:, None] < 0, np.nan, coded)
        return ((values.astype(np.float64) - self.low) / (self.high - self.low))[:, None]


class Joined:
    """Several columns of ``obs`` read as one source."""

    dtype: np.dtype
    width: tuple[int, ...] = ()

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = tuple(sources)

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n_rows,)`` or ``(n_rows, n_columns)``."""
        return (self.sources[0].shape[0], *self.width)

    def read_bytes(self, rows: int) -> int:
        """Bytes held while `rows` rows are read."""
        own = 2 * rows * int(np.prod(self.width, dtype=np.int64)) * self.dtype.itemsize
        return own + sum(source.read_bytes(rows) for source in self.sources)

    def stored_bytes(self) -> int:
        """Bytes of the columns on disk."""
        return sum(source.stored_bytes() for source in self.sources)

    def fingerprint(self) -> str:
        """Fingerprints of the columns."""
        return " ".join(source.fingerprint() for source in self.sources)


class KeptColumns(Joined):
    """Design columns of all kept covariates, float64."""

    dtype = np.dtype(np.float64)

    def __init__(self, kept: Sequence[Kept]) -> None:
        super().__init__([one.source for one in kept])
        self.kept = tuple(kept)
        self.width = (sum(len(one.names) for one in kept),)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows ``start:stop``."""
        return np.concatenate([one.encode(start, stop) for one in self.kept], axis=1)


class OneHot(Joined):
    """Labels as soft clusters: 1 at the label; a missing label is NaN."""

    dtype = np.dtype(np.float32)

    def __init__(self, labels: Labels) -> None:
        super().__init__([labels.codes])
        self.width = (len(labels.names),)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows ``start:stop``."""
        codes = self.sources[0].read(start, stop)
        coded = np.eye(self.width[0], dtype=self.dtype)[np.maximum(codes, 0)]
        return np.where(codes[:, None] < 0, np.float32(np.nan), coded)


class CombinedCodes(Joined):
    """Codes of the combinations of labels, the last one fastest; -1 if one is missing."""

    dtype = np.dtype(np.int32)

    def __init__(self, sources: Sequence[Source], sizes: Sequence[int]) -> None:
        super().__init__(sources)
        self.sizes = tuple(sizes)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows ``start:stop``."""
        codes = [source.read(start, stop).astype(np.int32) for source in self.sources]
        combined = reduce(
            lambda total, pair: total * pair[1] + pair[0],
            zip(codes[1:], self.sizes[1:], strict=True),
            codes[0],
        )
        return np.where(np.min(codes, axis=0) < 0, np.int32(-1), combined)


def level_columns(kept: Sequence[Kept]) -> np.ndarray:
    """Design columns of every combination of kept labels, in the order of `CombinedCodes`."""
    rows = [np.concatenate(parts) for parts in product(*(np.eye(len(k.levels)) for k in kept))]
    return np.stack(rows)


def kept_covariates(data: Data, keys: Sequence[str]) -> list[Kept]:
    """Look up the columns to keep.

    Raises
    ------
    InputError
        If a column is unknown, has one value only, or numbers that are missing or not finite.
    """
    return [_kept(data, key) for key in keys]


def _kept(data: Data, key: str) -> Kept:
    if key not in data.obs_keys():
        raise InputError(
            "element-unknown",
            f"no column of obs is called {key!r}",
            place=data.place,
            remedy=f"obs has {', '.join(data.obs_keys()) or 'nothing'}",
        )
    if not _is_numeric(data, key):
        labels = data.labels(key)
        if len(labels.names) < 2:
            raise _constant(key)
        return Kept(key, labels.codes, tuple(labels.names))
    source = data.column(key)
    low, high = np.inf, -np.inf
    for start in range(0, data.n_obs, UNIQUE_BAND):
        values = source.read(start, min(data.n_obs, start + UNIQUE_BAND)).astype(np.float64)
        wrong = np.flatnonzero(~np.isfinite(values))
        if len(wrong):
            raise InputError(
                "kept-nonfinite",
                f"a value to keep is {values[wrong[0]]}",
                place=f"obs column {key!r}, row {start + int(wrong[0])}",
                remedy="fill it in, or filter these cells out",
            )
        low, high = min(low, values.min()), max(high, values.max())
    if not low < high:
        raise _constant(key)
    return Kept(key, source, (), float(low), float(high))


def _is_numeric(data: Data, key: str) -> bool:
    """Tell numbers, bool apart, from labels, without reading them."""
    if hasattr(data, "adata"):
        dtype = data.adata.obs[key].dtype
        return bool(pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_bool_dtype(dtype))
    element = data.store.element(f"obs/{key}")
    return not isinstance(element, CodesElement) and np.dtype(element.dtype).kind in "iuf"


def _constant(key: str) -> InputError:
    return InputError(
        "kept-constant",
        "a column to keep has one value only",
        place=f"obs column {key!r}",
        remedy="leave it out of keep",
    )
