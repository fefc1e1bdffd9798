"""How public functions run a program: on a store through a run record, or in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stdist.cluster import executor_for
from stdist.graph import (
    InProcess,
    Program,
    added_keys,
    choose_progress,
    run_in_memory,
    start,
)
from stdist.methods.data import AnnDataData, Data
from stdist.store import InputError


def run_program(
    program: Program,
    data: Data | None,
    *,
    client: Any = None,
    block_length: int | None = None,
    progress: bool | None = None,
    overwrite: bool = False,
) -> Path | None:
    """Run a program where its data are.

    On an AnnData in memory it runs in this process: `client`, `block_length` and `progress` matter
    for stores only.

    Returns
    -------
    Path or None
        Folder of the run record for a store; None for an AnnData, which is changed in place.
    """
    n_rows = max((stage.n_rows for stage in program.block_stages()), default=0)
    if isinstance(data, AnnDataData):
        _refuse_existing(data.adata, program, overwrite)
        put(data.adata, run_in_memory(program, InProcess()))
        return None
    with executor_for(client, n_rows) as executor:
        return start(
            program,
            executor,
            block_length=block_length,
            progress=choose_progress(progress),
            overwrite=overwrite,
        )


def _refuse_existing(adata: Any, program: Program, overwrite: bool) -> None:
    """Refuse to replace elements of an AnnData unawares, as a store does."""
    taken = [key for key in sorted(added_keys(program)) if _has(adata, key)]
    if taken and not overwrite:
        raise InputError(
            "output-exists",
            f"the AnnData already has {', '.join(taken)}",
            place="adata",
            remedy="pass overwrite=True, or another key_added where the function has one",
        )


def _has(adata: Any, key: str) -> bool:
    group, _, name = key.partition("/")
    return name in getattr(adata, group)


def put(adata: Any, results: dict[str, Any]) -> None:
    """Put results, by their keys, into an AnnData."""
    import pandas as pd

    for key, value in results.items():
        group, _, name = key.partition("/")
        if isinstance(value, pd.Series):
            value = value.array
        getattr(adata, group)[name] = value
