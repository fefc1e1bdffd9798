"""Write data frames and their columns in AnnData's on-disk encoding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import zarr

from stdist.store.encoding import encoding, write_array


def write_pandas(group: zarr.Group, key: str, value: Any) -> None:
    """Write a data frame, series, index or categorical under `key`.

    Raises
    ------
    TypeError
        If the value is none of these.
    """
    if isinstance(value, pd.DataFrame):
        write_dataframe(group, key, value)
    elif isinstance(value, (pd.Series, pd.Index, pd.Categorical)):
        write_series(group, key, pd.Series(value) if isinstance(value, pd.Categorical) else value)
    else:
        message = f"no AnnData encoding for {type(value).__name__} at {key!r}"
        raise TypeError(message)


def write_series(group: zarr.Group, key: str, values: pd.Series | pd.Index) -> None:
    """Write one column of a data frame: categorical, nullable, string or plain."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        categorical = pd.Categorical(values)
        child = group.create_group(key)
        child.attrs.update(encoding("categorical") | {"ordered": bool(categorical.ordered)})
        write_array(child, "codes", np.asarray(categorical.codes))
        write_array(child, "categories", _plain(categorical.categories))
    elif isinstance(values.dtype, pd.BooleanDtype) or (
        pd.api.types.is_extension_array_dtype(values.dtype) and values.dtype.kind in "iu"
    ):
        child = group.create_group(key)
        kind = "nullable-boolean" if values.dtype.kind == "b" else "nullable-integer"
        child.attrs.update(encoding(kind))
        mask = np.asarray(values.isna())
        plain = values.dtype.numpy_dtype
        write_array(child, "values", values.array.to_numpy(plain, na_value=plain.type(0)))
        write_array(child, "mask", mask)
    else:
        write_array(group, key, _plain(values))


def _plain(values: pd.Series | pd.Index) -> np.ndarray:
    """Numeric arrays as they are; everything else as Python strings, missing ones as ''."""
    array = np.asarray(values)
    if array.dtype.kind in "biufc":
        return array
    missing = np.asarray(pd.isna(values))
    return np.where(missing, "", np.asarray([str(value) for value in array], dtype=object))


def write_dataframe(group: zarr.Group, key: str, frame: pd.DataFrame) -> None:
    """Write a data frame with its index as ``_index``."""
    child = group.create_group(key)
    child.attrs.update(
        encoding("dataframe")
        | {"_index": "_index", "column-order": [str(name) for name in frame.columns]}
    )
    write_series(child, "_index", frame.index.astype(str))
    for name in frame.columns:
        write_series(child, str(name), frame[name])
