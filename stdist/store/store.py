"""A store: AnnData's layout on disk, opened without loading it."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from stdist.store.elements import ArrayElement, open_element
from stdist.store.errors import CorruptionError, InputError
from stdist.store.layout import STORE_VERSION
from stdist.store.manifest import RECORDS


def check_store(path: Path) -> None:
    """Check that a folder is a store of this version of stdist.

    Raises
    ------
    InputError
        If it is no zarr v3 group in AnnData's layout, or written by anndata or a newer stdist.
    CorruptionError
        If the root's metadata or the manifest is gone or unreadable.
    """
    try:
        group = zarr.open_group(str(path), mode="r", zarr_format=3, use_consolidated=False)
        kind, own = group.attrs.get("encoding-type"), _version(group)
    except (FileNotFoundError, ValueError, NotADirectoryError):
        kind = own = None
    manifest = path / RECORDS / "manifest.jsonl"
    if kind != "anndata" and manifest.exists():
        raise CorruptionError(
            "store-damaged",
            "the metadata of the store cannot be read",
            place=str(path / "zarr.json"),
            remedy="run `stdist verify` on the store and restore what it names",
        )
    if kind != "anndata":
        raise InputError(
            "store-unknown",
            "no stdist store (a zarr v3 group in AnnData's layout)",
            place=str(path),
            remedy="make one with `stdist convert INPUT STORE`",
        )
    if own is None:
        raise InputError(
            "store-foreign",
            "the folder was written by anndata, not by stdist",
            place=str(path),
            remedy="make a store of it with `stdist convert INPUT STORE`",
        )
    if own != STORE_VERSION:
        raise InputError(
            "store-version",
            f"the store has version {own} and this stdist reads version {STORE_VERSION}",
            place=str(path),
            remedy="use a newer stdist",
        )
    if not manifest.exists():
        raise CorruptionError(
            "manifest-missing",
            "the manifest of the store is gone: its content cannot be checked",
            place=str(manifest),
            remedy=f"restore it, or accept the present content: `stdist verify --record {path}`",
        )


def _version(group: Any) -> str | None:
    return group.attrs.get("stdist", {}).get("encoding-version")


class Store:
    """Read access to the elements of a store.

    Parameters
    ----------
    path
        Folder of the store.

    Raises
    ------
    InputError, CorruptionError
        As of `check_store`.

    Examples
    --------
    >>> store = Store("cohort.zarr")  # doctest: +SKIP
    >>> store.n_obs, store.n_vars  # doctest: +SKIP
    (1000000, 500)
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        check_store(self.path)
        self.group = zarr.open_group(
            str(self.path), mode="r", zarr_format=3, use_consolidated=False
        )

    @cached_property
    def n_obs(self) -> int:
        """Number of cells or spots."""
        return self._index("obs").shape[0]

    @cached_property
    def n_vars(self) -> int:
        """Number of genes."""
        return self._index("var").shape[0]

    @cached_property
    def var_names(self) -> np.ndarray:
        """Gene names, ``(n_vars,)`` of str."""
        return self._names("var")

    def obs_names(self) -> np.ndarray:
        """Cell names, ``(n_obs,)`` of str; read at every call because there may be many."""
        return self._names("obs")

    def element(self, key: str) -> ArrayElement:
        """Open an element as a block source; see `stdist.store.elements.open_element`."""
        return open_element(self.path, key)

    def has(self, key: str) -> bool:
        """Tell whether the element `key` exists."""
        return (self.path / key / "zarr.json").exists()

    def keys(self, group: str) -> list[str]:
        """Names of the elements of ``"obs"``, ``"layers"``, ``"obsm"`` ..."""
        if group in ("obs", "var"):
            return [str(name) for name in self._child(group).attrs["column-order"]]
        return sorted(self._child(group).keys()) if self.has(group) else []

    def uns(self, key: str) -> Any:
        """Read one entry of ``uns`` (a dict of NumPy arrays and scalars)."""
        from anndata.io import read_elem

        return read_elem(self._child(f"uns/{key}"))

    def _child(self, key: str) -> Any:
        return zarr.open(str(self.path / key), mode="r", zarr_format=3)

    def _index(self, frame: str) -> ArrayElement:
        name = self._child(frame).attrs.get("_index", "_index")
        return ArrayElement(str(self.path), f"{frame}/{name}")

    def _names(self, frame: str) -> np.ndarray:
        index = self._index(frame)
        return index.read(0, index.shape[0]).astype(object)
