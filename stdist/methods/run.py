"""How public functions run a program: on a store through a run record, or in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from stdist.cluster import executor_for
from stdist.graph import Program, choose_progress, run_in_memory, start
from stdist.methods.data import AnnDataData, Data


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

    Returns
    -------
    Path or None
        Folder of the run record for a store; None for an AnnData, which is changed in place.
    """
    n_rows = max((stage.n_rows for stage in program.block_stages()), default=0)
    if isinstance(data, AnnDataData):
        from stdist.graph import InProcess

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


def put(adata: Any, results: dict[str, Any]) -> None:
    """Put results, by their keys, into an AnnData."""
    for key, value in results.items():
        group, _, name = key.partition("/")
        if isinstance(value, pd.Series):
            value = value.array
        getattr(adata, group)[name] = value
