"""One view of the data that a method works on: a store, a lazy AnnData or an AnnData in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stdist.store import InputError, MemorySource, Source, Store, open_element
from stdist.store.elements import ArrayElement, CodesElement

UNIQUE_BAND = 2**20


def as_text(values: Any) -> list[str]:
    """Labels as text: whole numbers without a fraction, missing values as ''."""
    return ["" if pd.isna(value) else str(value) for value in np.asarray(values, dtype=object)]


@dataclass(frozen=True)
class LabelCodes:
    """A string or integer column as codes into its sorted distinct values."""

    column: ArrayElement
    labels: tuple[str, ...]

    @property
    def store(self) -> str:
        """Store of the column."""
        return self.column.store

    @property
    def key(self) -> str:
        """Key of the column."""
        return self.column.key

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n_rows,)``."""
        return self.column.shape

    @property
    def dtype(self) -> Any:
        """Codes are int32."""
        return np.dtype(np.int32)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return codes ``start:stop``; -1 for a missing value."""
        values = as_text(self.column.read(start, stop))
        return pd.Index(self.labels).get_indexer(values).astype(np.int32)

    def read_bytes(self, rows: int) -> int:
        """Bytes held while `rows` rows are read."""
        return self.column.read_bytes(rows) + 4 * rows

    def stored_bytes(self) -> int:
        """Bytes of the column on disk."""
        return self.column.stored_bytes()

    def fingerprint(self) -> str:
        """Fingerprint of the column."""
        return self.column.fingerprint()


@dataclass(frozen=True)
class Labels:
    """A column of labels: a source of int32 codes (-1 missing) and the names of the codes."""

    codes: Source
    names: list[str]


class StoreData:
    """The elements of a store, as sources."""

    def __init__(self, path: Path | str) -> None:
        self.store = Store(Path(path).absolute())
        self.path: Path | None = self.store.path
        self.n_obs, self.n_vars = self.store.n_obs, self.store.n_vars

    @property
    def place(self) -> str:
        """Name of the data in errors."""
        return str(self.path)

    @cached_property
    def var_names(self) -> np.ndarray:
        """Gene names."""
        return self.store.var_names

    def matrix(self, layer: str | None) -> Source:
        """``X`` or a layer."""
        return self.store.element("X" if layer is None else f"layers/{layer}")

    def embedding(self, key: str) -> Source:
        """An entry of ``obsm``."""
        return self.store.element(f"obsm/{key}")

    def column(self, key: str) -> Source:
        """A numeric column of ``obs``."""
        return self.store.element(f"obs/{key}")

    def obs_keys(self) -> list[str]:
        """Names of the columns of ``obs``."""
        return self.store.keys("obs")

    def obsm_keys(self) -> list[str]:
        """Names of the entries of ``obsm``."""
        return self.store.keys("obsm")

    def labels(self, key: str) -> Labels:
        """A column of ``obs`` as codes and names."""
        column = open_element(self.store.path, f"obs/{key}")
        if isinstance(column, CodesElement):
            return Labels(column, list(column.categories))
        distinct: set[str] = set()
        for start in range(0, self.n_obs, UNIQUE_BAND):
            band = column.read(start, min(self.n_obs, start + UNIQUE_BAND))
            distinct |= set(as_text(pd.unique(band.astype(object))))
        names = tuple(sorted(distinct - {""}))
        return Labels(LabelCodes(column, names), list(names))


class AnnDataData:
    """The elements of an AnnData in memory, as sources."""

    path: Path | None = None

    def __init__(self, adata: Any) -> None:
        if getattr(adata, "isbacked", False):
            raise InputError(
                "data-backed",
                "a backed AnnData is neither in memory nor a store",
                place=str(adata.filename),
                remedy=f"make a store of it: `stdist convert {adata.filename} STORE`",
            )
        self.adata = adata
        self.n_obs, self.n_vars = adata.shape
        self.place = f"AnnData of {self.n_obs} x {self.n_vars}"
        for frame, names in (("obs", adata.obs_names), ("var", adata.var_names)):
            repeated = pd.Index(names)[pd.Index(names).duplicated()]
            if len(repeated):
                raise InputError(
                    f"{frame}-names-duplicated",
                    f"{len(repeated)} duplicated {frame} names, first {repeated[0]!r}",
                    place=f"adata.{frame}_names",
                    remedy=f"adata.{frame}_names_make_unique()",
                )

    @property
    def var_names(self) -> np.ndarray:
        """Gene names."""
        return np.asarray(self.adata.var_names.astype(str), dtype=object)

    def matrix(self, layer: str | None) -> Source:
        """``X`` or a layer."""
        values = self.adata.X if layer is None else _entry(self.adata.layers, layer, "layers")
        if values is None:
            raise InputError(
                "element-unknown", "adata.X is empty", place=self.place, remedy="name a layer"
            )
        if getattr(values, "format", "csr") not in ("csr",):
            values = values.tocsr()
        return MemorySource(values)

    def embedding(self, key: str) -> Source:
        """An entry of ``obsm``."""
        values = _entry(self.adata.obsm, key, "obsm")
        return MemorySource(values if hasattr(values, "dask") else np.asarray(values))

    def column(self, key: str) -> Source:
        """A numeric column of ``obs``."""
        return MemorySource(np.asarray(_entry(self.adata.obs, key, "obs")))

    def obs_keys(self) -> list[str]:
        """Names of the columns of ``obs``."""
        return [str(key) for key in self.adata.obs.columns]

    def obsm_keys(self) -> list[str]:
        """Names of the entries of ``obsm``."""
        return list(self.adata.obsm.keys())

    def labels(self, key: str) -> Labels:
        """A column of ``obs`` as codes and names."""
        column = _entry(self.adata.obs, key, "obs")
        if not isinstance(column.dtype, pd.CategoricalDtype):
            text = as_text(column)
            names = sorted(set(text) - {""})
            column = pd.Categorical([label or None for label in text], categories=names)
        categorical = pd.Categorical(column)
        codes = np.asarray(categorical.codes, dtype=np.int32)
        return Labels(MemorySource(codes), [str(name) for name in categorical.categories])


Data = StoreData | AnnDataData


def _entry(mapping: Mapping[str, Any], key: str, group: str) -> Any:
    if key not in mapping:
        raise InputError(
            "element-unknown",
            f"no {group} entry {key!r}",
            place=f"adata.{group}",
            remedy=f"choose one of: {', '.join(map(str, mapping.keys())) or 'none'}",
        )
    return mapping[key]


def open_data(data: Any) -> Data:
    """Wrap a store path, a lazy AnnData opened by `stdist.io.open`, or any AnnData.

    A lazy AnnData that is exactly a store (not a subset of one) is worked on as that store.
    """
    if isinstance(data, (str, Path)):
        return StoreData(data)
    from stdist.store.lazy import store_of

    path = store_of(data)
    return StoreData(path) if path is not None else AnnDataData(data)
