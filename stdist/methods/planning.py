"""What a program will cost, from Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stdist.cluster import executor_for
from stdist.graph import Plan, make_plan, resources_for
from stdist.methods.registry import build
from stdist.store import Store


def plan(
    program: str,
    data: Path | str,
    *,
    client: Any = None,
    block_length: int | None = None,
    **parameters: Any,
) -> Plan:
    """Plan a program on a store: tasks, bytes, memory and a guess of time per stage.

    Parameters
    ----------
    program
        Name of a program of `stdist.methods.registry`: ``"crescendo"``, ``"pca"`` ...
    data
        Path of a store.
    client
        `distributed.Client` to plan for; default as in `stdist.tl.crescendo`.
    block_length
        Rows per block; default: from the memory of the smallest worker.
    **parameters
        What the program's own function takes: ``batch_key``, ``clusters`` ...

    Returns
    -------
    Plan
        Shown as a table in a notebook; ``to_dict()`` gives plain values. Nothing has run.

    Raises
    ------
    InputError
        If the program, the store or a parameter is wrong.
    PlanRefused
        If the worst stage does not fit the smallest worker; names a block length that would.

    Examples
    --------
    >>> plan("crescendo", "cohort.zarr", batch_key="batch", clusters="type")  # doctest: +SKIP
    """
    bound = build(program, {"data": str(data), **parameters})
    with executor_for(client, Store(data).n_obs) as executor:
        return make_plan(bound, resources_for(bound, executor), block_length)
