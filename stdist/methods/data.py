"""One view of the data that a method works on: a store, a lazy AnnData or an AnnData in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from stdist.store import InputError, MemorySource, Source, Store, open_element
from stdist.store.elements import ArrayElement, CodesElement

UNIQUE_BAND = 2**20


def as_text(values: Any) -> list[str]:
    """Labels as text: whole numbers without a fraction, missing values as ''."""
    import pandas as pd  # here as elsewhere: data whose labels are categorical do without

    return ["" if pd.isna(value) else _text(value) for value in np.asarray(values, dtype=object)]


def _text(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


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
        import pandas as pd

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


def present_labels(labels: Labels) -> list[str]:
    """Names of the labels that some row has; reads the codes once, band by band."""
    n_rows, seen = labels.codes.shape[0], set[int]()
    for start in range(0, n_rows, UNIQUE_BAND):
        seen |= set(np.unique(labels.codes.read(start, min(n_rows, start + UNIQUE_BAND))).tolist())
    return [name for code, name in enumerate(labels.names) if code in seen]


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
        found = self.store.element(f"obs/{key}")
        check_numeric(found, key)
        return found

    def obs_keys(self) -> list[str]:
        """Names of the columns of ``obs``."""
        return self.store.keys("obs")

    def obsm_keys(self) -> list[str]:
        """Names of the entries of ``obsm``."""
        return self.store.keys("obsm")

    def uns(self, key: str) -> Any:
        """An entry of ``uns``, None without; of a lazy AnnData what its store holds."""
        return self.store.uns(key) if self.store.has(f"uns/{key}") else None

    def labels(self, key: str) -> Labels:
        """A column of ``obs`` as codes and names."""
        column = open_element(self.store.path, f"obs/{key}")
        if isinstance(column, CodesElement):
            return Labels(column, list(column.categories))
        import pandas as pd

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
        import pandas as pd

        if getattr(adata, "isbacked", False):
            raise InputError(
                "data-backed",
                "a backed AnnData is neither in memory nor a store",
                place=str(adata.filename),
                remedy=f"make a store of it: `stdist convert {adata.filename} STORE`",
            )
        self.adata = adata
        self.n_obs, self.n_vars = adata.shape
        if not self.n_obs or not self.n_vars:
            raise InputError(
                "data-empty",
                f"there are {self.n_obs} cells and {self.n_vars} genes",
                place="adata",
                remedy="give data with cells and genes",
            )
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
        if sparse.issparse(values) and not values.has_canonical_format:
            values = values.copy()
            values.sum_duplicates()  # two entries of one count are not two counts
        return MemorySource(values)

    def embedding(self, key: str) -> Source:
        """An entry of ``obsm``."""
        values = _entry(self.adata.obsm, key, "obsm")
        kept = hasattr(values, "dask") or sparse.issparse(values)
        return MemorySource(values if kept else np.asarray(values))

    def column(self, key: str) -> Source:
        """A numeric column of ``obs``."""
        found = MemorySource(np.asarray(_entry(self.adata.obs, key, "obs")))
        check_numeric(found, key)
        return found

    def obs_keys(self) -> list[str]:
        """Names of the columns of ``obs``."""
        return [str(key) for key in self.adata.obs.columns]

    def obsm_keys(self) -> list[str]:
        """Names of the entries of ``obsm``."""
        return list(self.adata.obsm.keys())

    def uns(self, key: str) -> Any:
        """An entry of ``uns``, None without."""
        return self.adata.uns.get(key)

    def labels(self, key: str) -> Labels:
        """A column of ``obs`` as codes and names."""
        return _as_labels(_entry(self.adata.obs, key, "obs"))


def _as_labels(column: Any) -> Labels:
    """A data frame's column as codes and names."""
    import pandas as pd

    if not isinstance(column.dtype, pd.CategoricalDtype):
        text = as_text(column)
        names = sorted(set(text) - {""})
        column = pd.Categorical([label or None for label in text], categories=names)
    categorical = pd.Categorical(column)
    codes = np.asarray(categorical.codes, dtype=np.int32)
    return Labels(MemorySource(codes), [str(name) for name in categorical.categories])


class LazyData(StoreData):
    """A lazy AnnData that is a store; what is used must be what the store holds."""

    def __init__(self, path: Path, adata: Any) -> None:
        super().__init__(path)
        self.adata = adata
        if list(adata.var_names) != list(self.var_names):
            raise _changed("var_names", path)

    def _same_array(self, key: str, values: Any) -> None:
        from stdist.store.lazy import array_name

        if getattr(values, "name", None) != array_name(self.store.element(key)):
            raise _changed(key, self.place)

    def matrix(self, layer: str | None) -> Source:
        """``X`` or a layer."""
        if layer is not None:
            self._same_array(f"layers/{layer}", _entry(self.adata.layers, layer, "layers"))
        return super().matrix(layer)

    def embedding(self, key: str) -> Source:
        """An entry of ``obsm``."""
        self._same_array(f"obsm/{key}", _entry(self.adata.obsm, key, "obsm"))
        return super().embedding(key)

    def column(self, key: str) -> Source:
        """A numeric column of ``obs``."""
        values = np.asarray(_entry(self.adata.obs, key, "obs"))
        if not self.store.has(f"obs/{key}"):
            raise _changed(f"obs/{key}", self.place)
        found = super().column(key)
        if not np.array_equal(values, found.read(0, self.n_obs), equal_nan=True):
            raise _changed(f"obs/{key}", self.place)
        return found

    def labels(self, key: str) -> Labels:
        """A column of ``obs`` as codes and names."""
        mine = _as_labels(_entry(self.adata.obs, key, "obs"))
        if not self.store.has(f"obs/{key}"):
            raise _changed(f"obs/{key}", self.place)
        found = super().labels(key)
        names = np.asarray([*found.names, ""], dtype=object)
        own = np.asarray([*mine.names, ""], dtype=object)
        if (names[found.codes.read(0, self.n_obs)] != own[mine.codes.read(0, self.n_obs)]).any():
            raise _changed(f"obs/{key}", self.place)
        return found

    def obs_keys(self) -> list[str]:
        """Names of the columns of ``obs`` of the object."""
        return [str(key) for key in self.adata.obs.columns]

    def obsm_keys(self) -> list[str]:
        """Names of the entries of ``obsm`` of the object."""
        return list(self.adata.obsm.keys())


def _changed(key: str, place: Any) -> InputError:
    return InputError(
        "data-changed",
        f"{key!r} of the lazy AnnData is not what its store holds",
        place=str(place),
        remedy="write the changed object with `stdist.io.write`, or use adata.to_memory()",
    )


def check_numeric(source: Any, key: str) -> None:
    """Refuse a column of labels where numbers are needed.

    Raises
    ------
    InputError
        With code column-not-numeric.
    """
    if isinstance(source, CodesElement) or np.dtype(source.dtype).kind not in "iuf":
        raise InputError(
            "column-not-numeric",
            f"obs column {key!r} does not hold numbers",
            place=f"obs/{key}",
            remedy="name a numeric column",
        )


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
    return LazyData(path, data) if path is not None else AnnDataData(data)
