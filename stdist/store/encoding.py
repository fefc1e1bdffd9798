"""Write small in-memory elements in AnnData's on-disk encoding, every array checksummed.

anndata reads all of it; stdist writes it itself because anndata offers no checksum codec and its
defaults (chunks, sharding, string storage) change between the releases that stdist supports.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import zarr
from scipy import sparse
from zarr.codecs import Crc32cCodec, ZstdCodec

from stdist.store.layout import codecs

VECTOR_CHUNK = 2**20


def create_array(
    group: zarr.Group,
    key: str,
    *,
    shape: tuple[int, ...],
    dtype: Any,
    chunks: tuple[int, ...],
    shards: tuple[int, ...] | None = None,
    dimension_names: tuple[str, ...] | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> zarr.Array:
    """Create an array with checksums, all chunks written, NaN as the fill value of floats.

    An absent chunk reads as the fill value, so a store never leaves one out: empty chunks are
    written, and the manifest is the record of what is complete.
    """
    string = dtype is str
    dtype = "str" if string else np.dtype(dtype)
    fill: Any = "" if string else np.nan if dtype.kind == "f" else dtype.type(0)
    return group.create_array(
        key,
        shape=shape,
        dtype=dtype,
        chunks=chunks,
        shards=shards,
        fill_value=fill,
        compressors=[ZstdCodec(level=3), Crc32cCodec()] if string else codecs(dtype.itemsize),
        dimension_names=dimension_names,
        config={"write_empty_chunks": True},
        attributes=dict(attributes or {}),
    )


def encoding(kind: str) -> dict[str, Any]:
    """AnnData's encoding attributes of one element kind."""
    version = {"array": "0.2.0", "string-array": "0.2.0", "categorical": "0.2.0"}
    version |= {"dataframe": "0.2.0", "string": "0.2.0", "numeric-scalar": "0.2.0"}
    return {"encoding-type": kind, "encoding-version": version.get(kind, "0.1.0")}


def write_array(group: zarr.Group, key: str, values: np.ndarray, **options: Any) -> None:
    """Write a numeric, boolean or string array of any dimension."""
    string = values.dtype.kind in "OUST"
    chunks = tuple(max(1, min(VECTOR_CHUNK, length)) for length in values.shape)
    array = create_array(
        group,
        key,
        shape=values.shape,
        dtype=str if string else values.dtype,
        chunks=chunks,
        attributes=encoding("string-array" if string else "array"),
        **options,
    )
    if values.size:
        array[...] = values.astype(object) if string else values


def write_dataset(group: zarr.Group, key: str, dataset: Any) -> None:
    """Write an xarray Dataset that both ``xarray.open_zarr`` and anndata (as a dict) can read."""
    child = group.create_group(key)
    child.attrs.update(encoding("dict"))
    for name, variable in dataset.variables.items():
        write_array(
            child,
            str(name),
            np.asarray(variable.values),
            dimension_names=tuple(str(dim) for dim in variable.dims),
        )


def write_element(group: zarr.Group, key: str, value: Any) -> None:
    """Write `value` under `key` in AnnData's encoding.

    Mappings become groups; arrays, data frames, CSR/CSC matrices, xarray Datasets, strings,
    numbers and booleans are supported; a ``None`` entry is left out.

    Raises
    ------
    TypeError
        If a value has no encoding here.
    """
    if hasattr(value, "data_vars"):  # an xarray Dataset is a Mapping too
        write_dataset(group, key, value)
    elif isinstance(value, Mapping):
        child = group.create_group(key)
        child.attrs.update(encoding("dict"))
        for name, item in value.items():
            write_element(child, str(name), item)
    elif value is None:
        return
    elif sparse.issparse(value):
        matrix = value if value.format in ("csr", "csc") else value.tocsr()
        child = group.create_group(key)
        shape = [int(length) for length in matrix.shape]
        child.attrs.update(encoding(f"{matrix.format}_matrix") | {"shape": shape})
        write_array(child, "data", matrix.data)
        write_array(child, "indices", matrix.indices.astype(np.int64))
        write_array(child, "indptr", matrix.indptr.astype(np.int64))
    elif isinstance(value, str):
        array = create_array(
            group, key, shape=(), dtype=str, chunks=(), attributes=encoding("string")
        )
        array[...] = np.asarray(value, dtype=object)
    elif isinstance(value, (bool, int, float, np.generic)):
        write_array(group, key, np.asarray(value))
        group[key].attrs.update(encoding("numeric-scalar"))
    elif isinstance(value, (list, tuple, np.ndarray)):
        values = np.asarray(value)
        if values.dtype.kind == "O":
            text = [str(item) for item in values.ravel()]
            values = np.asarray(text, dtype=np.object_).reshape(values.shape)
        write_array(group, key, values)
    else:
        from stdist.store.frames import write_pandas  # workers do without pandas: 30 MB each

        write_pandas(group, key, value)
