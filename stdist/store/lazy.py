"""Open a store lazily: an AnnData whose matrices are Dask arrays on whole shards."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from stdist.store import CorruptionError, Store, floor_block_length, manifest
from stdist.store.elements import ArrayElement, CsrElement
from stdist.store.layout import CSR_SHARD, SHARD_ROWS
from stdist.store.manifest import digest_bytes

if TYPE_CHECKING:
    import anndata
    import dask.array

PREFIX = "stdist"


def open(path: Path | str, *, columns: Iterable[str] | None = None) -> anndata.AnnData:
    """Open a store without reading its matrices.

    ``X``, ``layers``, ``obsm`` and ``obsp`` are Dask arrays with one chunk per row band of whole
    shards (CSR blocks where the store has CSR), whose names depend only on the store's content.
    Every chunk is compared with the manifest when it is read. ``obs`` and ``var`` are ordinary
    data frames: at 100 million cells choose `columns`, or use `anndata.experimental.read_lazy`,
    which the store supports too.

    Parameters
    ----------
    path
        Folder of the store.
    columns
        Columns of ``obs`` to read (default: all).

    Returns
    -------
    AnnData
        ``(n_obs, n_vars)``, lazy.

    Raises
    ------
    InputError
        If `path` is no store.
    CorruptionError
        If a part of the store that is read is damaged; for matrices, when they are computed.

    Examples
    --------
    >>> adata = open("cohort.zarr")  # doctest: +SKIP
    >>> adata.X.sum(axis=0).compute()  # doctest: +SKIP
    """
    import anndata

    path = Path(path).absolute()
    store = Store(path)
    lazy = {
        group: {
            name: lazy_array(element)
            for name in store.keys(group)
            if isinstance(element := _element(store, f"{group}/{name}"), ArrayElement)
        }
        for group in ("layers", "obsm", "obsp")
    }
    return anndata.AnnData(
        X=lazy_array(store.element("X")) if store.has("X") else None,
        obs=_read_obs(store, columns),
        var=_read(path, "var"),
        uns=_read(path, "uns"),
        varm=_read(path, "varm"),
        varp=_read(path, "varp"),
        **lazy,
    )


def lazy_array(element: ArrayElement) -> dask.array.Array:
    """Return an element as a Dask array with a deterministic name.

    Parameters
    ----------
    element
        Matrix of a store, ``(n_rows, ...)``.

    Returns
    -------
    dask.array.Array
        Chunks of whole row bands; CSR elements have CSR blocks.
    """
    import dask.array

    shape, rows = element.shape, _chunk_rows(element)
    name = array_name(element)
    starts = range(0, shape[0], rows) if shape[0] else [0]
    lengths = tuple(min(rows, shape[0] - start) for start in starts)
    zeros = (0,) * (len(shape) - 1)
    graph = {
        (name, number, *zeros): (read_rows, element, start, start + lengths[number])
        for number, start in enumerate(starts)
    }
    meta: Any = np.empty((0,) * len(shape), element.dtype)
    if isinstance(element, CsrElement):
        meta = sparse.csr_matrix((0, 0), dtype=element.dtype)
    chunks = (lengths, *((length,) for length in shape[1:]))
    return dask.array.Array(graph, name, chunks, meta=meta)


def read_rows(element: ArrayElement, start: int, stop: int) -> Any:
    """Read one chunk (a task of the arrays that `open` returns)."""
    return element.read(start, stop)


def array_name(element: ArrayElement) -> str:
    """Name of an element's Dask array: path, key and the recorded content decide it."""
    identity = f"{element.store}:{element.key}:{element.fingerprint()}"
    return f"{PREFIX}-{element.key.replace('/', '-')}-{digest_bytes(identity.encode())}"


def store_of(adata: anndata.AnnData) -> Path | None:
    """Tell which store a lazy AnnData's ``X`` is, whole and unchanged.

    Parameters
    ----------
    adata
        Any AnnData.

    Returns
    -------
    Path or None
        None if ``X`` is no array that `open` made, or was subset or changed, or if the store
        changed since.

    Examples
    --------
    >>> store_of(open("cohort.zarr"))  # doctest: +SKIP
    PosixPath('/data/cohort.zarr')
    """
    name = getattr(adata.X, "name", "")
    if not str(name).startswith(f"{PREFIX}-X-"):
        return None
    task: Any = dict(adata.X.dask)[(name, 0, 0)]
    element = next(a for a in getattr(task, "args", task) if isinstance(a, ArrayElement))
    if not Path(element.store).is_dir() or array_name(element) != name:
        return None
    return Path(element.store)


def _element(store: Store, key: str) -> ArrayElement | None:
    from stdist.store import InputError

    try:
        return store.element(key)
    except InputError:
        return None  # a data frame or another encoding that has no blocks of rows


def _chunk_rows(element: ArrayElement) -> int:
    """Rows of a chunk: a shard's band, or bands of as many rows as a CSR shard has entries."""
    if isinstance(element, CsrElement):
        per_row = element.array.shape[0] / max(1, element.shape[0])
        return min(SHARD_ROWS, floor_block_length(int(CSR_SHARD / max(1.0, per_row))))
    array = element.array
    if array.shards is not None:
        return array.shards[0]
    return array.chunks[0] * max(1, SHARD_ROWS // array.chunks[0])


def _read(path: Path, key: str) -> Any:
    """Read a small part with anndata, after comparing its files with the manifest."""
    import zarr
    from anndata.io import read_elem

    for record in manifest.load(path).under(key):
        file = path / record.path
        if not file.is_file() or digest_bytes(file.read_bytes()) != record.digest:
            raise CorruptionError(
                "file-damaged",
                f"{record.path} is not what was written",
                place=str(file),
                remedy="restore the file from a copy; `stdist verify` lists all damage",
            )
    root = zarr.open_group(str(path), mode="r", use_consolidated=False)
    return read_elem(root[key])


def _read_obs(store: Store, columns: Iterable[str] | None) -> Any:
    import pandas as pd

    if columns is None:
        return _read(store.path, "obs")
    index = pd.Index(store.obs_names())
    return pd.DataFrame(
        {name: pd.Series(_read(store.path, f"obs/{name}"), index=index) for name in columns},
        index=index,
    )
