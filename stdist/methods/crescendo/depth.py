"""The depth that counts are corrected to: of the cell, of the cohort, of a batch, or given."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from stdist.graph import Reduce
from stdist.methods.crescendo.spec import CrescendoSpec
from stdist.methods.crescendo.tiles import cell_depth
from stdist.methods.data import Data, Labels
from stdist.preprocess.bound import TileWorkspace
from stdist.preprocess.normalize import median_depth, merge_tables
from stdist.store import InputError, Source

FLOAT = 8
DISTINCT = 2**17
"""Distinct depths expected where depths are sums of counts."""
NO_DEPTH = 1e-300
"""Depth of a cell without counts: its means are positive and it stays without counts."""


class TargetDepth:
    """What ``target_offset`` stands for in given data.

    Raises
    ------
    InputError
        If it names neither a batch nor a column of ``obs``.
    """

    def __init__(self, data: Data, spec: CrescendoSpec, batch: Labels) -> None:
        wanted = spec.target_offset
        self.column: Source | None = None
        self.number: float | None = None
        self.median_of: int | None = None
        """Code of the batch whose median depth is meant; -1 for all cells."""
        self.batch_name: str | None = None
        if not isinstance(wanted, str):
            self.number = float(wanted)
        elif wanted == "median":
            self.median_of = -1
        elif wanted.startswith("batch:"):
            self.batch_name = wanted.removeprefix("batch:")
            self.median_of = _batch_code(self.batch_name, data, batch)
        elif wanted != "observed":
            if wanted not in data.obs_keys():
                raise InputError(
                    "target-unknown",
                    f"target_offset {wanted!r} is no depth and no column of obs",
                    place=data.place,
                    remedy="give 'observed', 'median', 'batch:NAME', a depth in UMI, or one of: "
                    f"{', '.join(data.obs_keys()) or 'nothing'}",
                )
            self.column = data.column(wanted)

    @property
    def is_observed(self) -> bool:
        """Whether cells keep their depth."""
        return self.column is None and self.number is None and self.median_of is None

    def stage(self, reads: dict[str, Source], n_genes: int) -> Reduce | None:
        """Return the pass that finds a median, where one is meant."""
        if self.median_of is None:
            return None
        names = ("counts", "batch", "depth")
        given = "depth" in reads
        distinct = reads["depth"].shape[0] if given else DISTINCT
        return Reduce(
            "target",
            depth_table,
            {name: reads[name] for name in names if name in reads},
            options={"batch_code": self.median_of},
            combine=merge_tables,
            finalize=partial(_median, batch=self.batch_name),
            workspace=TileWorkspace(3 * n_genes * FLOAT),
            nanoseconds=n_genes * 1.0,
            partial_bytes=2 * FLOAT * distinct,
        )


def _median(total: dict[str, np.ndarray], *, batch: str | None) -> dict[str, np.ndarray]:
    """Median depth of all cells with counts, or of those of a batch."""
    if batch is not None and not len(total["depth"]):
        raise InputError(
            "target-empty",
            f"no cell of batch {batch!r} has counts: there is no depth to correct to",
            place=f"target_offset 'batch:{batch}'",
            remedy="name another batch, or give a depth in UMI",
        )
    return median_depth(total, target_sum=None)


def _batch_code(name: str, data: Data, batch: Labels) -> int:
    if name not in batch.names:
        raise InputError(
            "target-unknown",
            f"there is no batch {name!r}",
            place=data.place,
            remedy=f"the batches are {', '.join(batch.names)}",
        )
    return batch.names.index(name)


def depth_table(
    rows: tuple[int, int],
    *,
    counts: Any,
    batch: np.ndarray,
    depth: np.ndarray | None = None,
    batch_code: int,
) -> dict[str, np.ndarray]:
    """Distinct depths of the cells of a batch (-1: of all) and how many cells have each."""
    own = cell_depth(counts) if depth is None else depth.astype(np.float64)
    chosen = (own > 0) if batch_code < 0 else (own > 0) & (batch == batch_code)
    value, cells = np.unique(own[chosen], return_counts=True)
    return {"depth": value, "cells": cells}


def tile_depths(
    own: np.ndarray,
    column: np.ndarray | None,
    value: float | None,
    source_offset: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Depths of source and target of the cells of a tile.

    Parameters
    ----------
    own : (n_cells,) array
        Observed depth.
    column : (n_cells,) array or None
        Wanted depth of each cell.
    value : float or None
        Wanted depth of all cells; the observed depth where neither is given.
    source_offset : {"observed", "final"}

    Returns
    -------
    source, target : (n_cells,) float64
        Almost zero for a cell without counts.
    """
    counted = own > 0
    own = np.where(counted, own, NO_DEPTH)
    target = own
    if column is not None:
        target = np.where(counted, column.astype(np.float64), NO_DEPTH)
    elif value is not None:
        target = np.where(counted, value, NO_DEPTH)
    return (target if source_offset == "final" else own), target
