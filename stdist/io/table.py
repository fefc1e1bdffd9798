"""What every input format is turned into: named sources of rows, and small things in memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from stdist.io.sources import inconsistent
from stdist.store import InputError, Source


@dataclass(frozen=True)
class Column:
    """One column of ``obs``.

    Parameters
    ----------
    kind
        ``"plain"`` (numbers, booleans), ``"string"``, ``"categorical"`` (`values` are codes) or
        ``"nullable"`` (`mask` is True where a value is missing).
    """

    kind: str
    values: Any
    mask: Source | None = None
    categories: tuple[Any, ...] = ()
    ordered: bool = False

    @property
    def dtype(self) -> str:
        """Name of the dtype of the values, ``"str"`` for strings."""
        dtype = np.dtype(self.values.dtype)
        return "str" if dtype.kind == "O" else dtype.name


@dataclass
class Table:
    """An opened input: nothing of the size of the cells is in memory.

    `matrices` holds the sources of ``X``, ``raw/X``, ``layers/...``, ``obsm/...`` and ``obsp/...``;
    `small` the values of ``varm/...`` and ``varp/...``; `raw_var` the genes of ``raw``; `notes`
    what was left out, and why.
    """

    place: str
    names: Source
    var: pd.DataFrame
    obs: dict[str, Column] = field(default_factory=dict)
    matrices: dict[str, Source] = field(default_factory=dict)
    raw_var: pd.DataFrame | None = None
    small: dict[str, Any] = field(default_factory=dict)
    uns: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def n_obs(self) -> int:
        """Number of cells or spots."""
        return int(self.names.shape[0])

    @property
    def n_vars(self) -> int:
        """Number of genes."""
        return len(self.var)

    def sources(self) -> Iterable[Source]:
        """Every source of rows."""
        yield self.names
        for column in self.obs.values():
            yield column.values
            if column.mask is not None:
                yield column.mask
        yield from self.matrices.values()

    def check(self) -> Table:
        """Check that the parts have the same cells and genes, and return the table.

        Raises
        ------
        InputError
            ``input-empty``, ``input-inconsistent`` or ``genes-duplicated``.
        """
        if not self.n_obs or not self.n_vars:
            raise InputError(
                "input-empty",
                f"there are {self.n_obs} cells and {self.n_vars} genes",
                place=self.place,
                remedy="choose a file with cells and genes",
            )
        if self.obs.pop("_index", None) is not None:
            self.notes.append("obs column _index is left out: the name belongs to the cell names")
        parts = {f"obs/{name}": column.values for name, column in self.obs.items()}
        genes = {"raw/X": self.n_vars if self.raw_var is None else len(self.raw_var)}
        for key, source in (parts | self.matrices).items():
            if source.shape[0] != self.n_obs:
                thing = f"{key!r} has {source.shape[0]} rows and there are {self.n_obs} cells"
                raise inconsistent(self.place, thing)
            wanted = genes.get(key, self.n_vars)
            by_gene = key in ("X", "raw/X") or key.startswith("layers/")
            if by_gene and tuple(source.shape[1:]) != (wanted,):
                thing = f"{key!r} has row shape {source.shape[1:]} and there are {wanted} genes"
                raise inconsistent(self.place, thing)
        check_genes(self.var.index, self.place)
        return self


def check_genes(names: pd.Index, place: str) -> None:
    """Refuse gene names that occur twice, naming the first ones."""
    twice = names[names.duplicated()].unique()
    if len(twice):
        shown = ", ".join(map(repr, twice[:5]))
        raise InputError(
            "genes-duplicated",
            f"{len(twice)} gene names occur more than once: {shown}",
            place=place,
            remedy="for 10x files use gene_names='ids'; otherwise rename them "
            "(adata.var_names_make_unique()) and write the file again",
        )
