"""Where a measure runs, and the genes and labels that it names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd

from stdist.cluster import executor_for
from stdist.graph import InProcess
from stdist.methods.data import AnnDataData, Data
from stdist.store import InputError


@contextmanager
def executor_of(opened: Data, client: Any) -> Iterator[Any]:
    """Run where the data are: an AnnData in this process, a store as `stdist.tl.crescendo`."""
    if isinstance(opened, AnnDataData):
        yield InProcess()
        return
    with executor_for(client, opened.n_obs) as executor:
        yield executor


def columns_of(opened: Data, genes: Sequence[str]) -> np.ndarray:
    """Columns of genes, in the order given, int64.

    Raises
    ------
    InputError
        If there is none, or one is not in the data.
    """
    columns = pd.Index(opened.var_names).get_indexer(pd.Index(genes, dtype=object))
    absent = [gene for gene, column in zip(genes, columns, strict=True) if column < 0]
    if absent or not len(columns):
        known = ", ".join(map(str, opened.var_names[:3]))
        raise InputError(
            "gene-absent",
            f"{len(absent)} genes are not in the data, first {absent[0]!r}"
            if absent
            else "no gene is named",
            place=opened.place,
            remedy=f"var_names has {known}, ... ({opened.n_vars} genes)",
        )
    return columns.astype(np.int64)


def check_positive(**values: float) -> None:
    """Refuse parameters that are not positive numbers.

    Raises
    ------
    InputError
        With code parameter-range, naming the parameter.
    """
    for name, value in values.items():
        if not (np.isfinite(value) and value > 0):
            raise InputError(
                "parameter-range",
                f"{name} is {value}, not a positive number",
                place=name,
                remedy="give a positive number",
            )
