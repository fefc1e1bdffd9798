"""An AnnData object in memory (or one whose arrays are Dask arrays) as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from stdist.io.table import Column, Table
from stdist.store import MemorySource, Source

PLACE = "the AnnData object"


def open_memory(adata: Any) -> Table:
    """Name the parts of `adata` as sources; nothing is copied but CSC matrices."""
    notes: list[str] = []
    obs = {str(name): series_column(adata.obs[name]) for name in adata.obs}
    matrices = {}
    parts = {"X": adata.X, "raw/X": None if adata.raw is None else adata.raw.X}
    for group in ("layers", "obsm", "obsp"):
        members = getattr(adata, group).items()
        parts |= {f"{group}/{name}": value for name, value in members if name is not None}
    for key, value in parts.items():
        if isinstance(value, pd.DataFrame) or not hasattr(value, "dtype"):
            if value is not None:
                notes.append(f"{key} is left out: it is a {type(value).__name__}, not a matrix")
            continue
        matrices[key] = _source(value)
    small = {
        f"{group}/{name}": value
        for group in ("varm", "varp")
        for name, value in getattr(adata, group).items()
    }
    return Table(
        PLACE,
        MemorySource(np.asarray(adata.obs_names.astype(str), dtype=object)),
        _named(adata.var),
        obs,
        matrices,
        None if adata.raw is None else _named(adata.raw.var),
        small,
        dict(adata.uns) if isinstance(adata.uns, Mapping) else {},
        notes,
    )


def _named(frame: pd.DataFrame) -> pd.DataFrame:
    frame = pd.DataFrame(frame)
    return frame.set_axis(frame.index.astype(str).astype(object), axis="index")


def _source(values: Any) -> Source:
    if sparse.issparse(values) and values.format != "csr":
        values = values.tocsr()
    return MemorySource(values)


def series_column(series: pd.Series) -> Column:
    """Turn a column of a data frame into a source, by its dtype."""
    dtype = series.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        codes = MemorySource(np.asarray(series.cat.codes))
        labels = tuple(np.asarray(series.cat.categories).tolist())
        return Column("categorical", codes, categories=labels, ordered=bool(series.cat.ordered))
    missing = np.asarray(series.isna())
    if isinstance(dtype, pd.BooleanDtype) or (
        pd.api.types.is_extension_array_dtype(dtype) and dtype.kind in "iu"
    ):
        plain = dtype.numpy_dtype
        values = series.array.to_numpy(plain, na_value=plain.type(0))
        return Column("nullable", MemorySource(values), MemorySource(missing))
    if dtype.kind in "biuf":
        return Column("plain", MemorySource(np.asarray(series)))
    strings = np.asarray(["" if gone else str(v) for v, gone in zip(series, missing, strict=True)])
    values = MemorySource(strings.astype(object))
    if missing.any():
        return Column("nullable", values, MemorySource(missing))
    return Column("string", values)
