"""Rows into another order, through files: every block is scattered, then every new block gathered.

A scattering task sorts the rows of its block by the block they go to and writes them to one file;
a gathering task takes its part of every file, in the order of the files. Nobody holds more than a
block, and the order within equal positions is that of the rows, whatever the blocks are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from scipy import sparse

from stdist.graph.device import HOST
from stdist.graph.stage import Rearrange
from stdist.graph.state import Recollection, State
from stdist.graph.task import (
    TaskRecord,
    Values,
    join_rows,
    kernel_arguments,
    measured,
    read_inputs,
)
from stdist.store.manifest import temporary_path

POSITION = "position"
Rows = dict[str, Any]


class Moves(Protocol):
    """Holds the rows between scattering and gathering, by source and target block."""

    def write(self, source: int, parts: Mapping[int, Rows]) -> None: ...
    def read(self, source: int, target: int) -> Rows | None: ...


@dataclass(frozen=True)
class FileMoves:
    """One file for each source block; its archive checks the bytes that are read."""

    root: str

    def write(self, source: int, parts: Mapping[int, Rows]) -> None:
        """Write the rows of a source block, atomically."""
        path = Path(self.root, f"{source:06d}.npz")
        path.parent.mkdir(parents=True, exist_ok=True)
        members = {
            f"{target}/{name}": values
            for target, rows in parts.items()
            for name, values in rows.items()
        }
        temporary = temporary_path(path)
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **members)
        temporary.replace(path)

    def read(self, source: int, target: int) -> Rows | None:
        """Read what goes from one block to another; None if nothing does."""
        prefix = f"{target}/"
        with np.load(Path(self.root, f"{source:06d}.npz"), allow_pickle=False) as members:
            found = [name for name in members.files if name.startswith(prefix)]
            return {name.removeprefix(prefix): members[name] for name in found} or None


@dataclass(eq=False)
class MemoryMoves:
    """Holds the rows in this process."""

    parts: dict[tuple[int, int], Rows] = field(default_factory=dict)

    def write(self, source: int, parts: Mapping[int, Rows]) -> None:
        """Keep the rows of a source block."""
        self.parts |= {(source, target): rows for target, rows in parts.items()}

    def read(self, source: int, target: int) -> Rows | None:
        """Hand over what goes from one block to another."""
        return self.parts.pop((source, target), None)


def run_scatter(
    stage: Rearrange,
    index: int,
    bounds: tuple[int, int],
    length: int,
    values: Values,
    state: Recollection,
    moves: Moves,
) -> TaskRecord:
    """Send the rows of one block to the blocks that their positions are in."""
    with measured(stage.name, index, f"block {index} (rows {bounds[0]}:{bounds[1]})") as facts:
        constants = kernel_arguments(stage, values, HOST)
        inputs = read_inputs(stage, index, bounds, state, facts)
        moved = stage.kernel(bounds, **inputs, **constants)
        del inputs
        position = moved.pop(POSITION)
        if len(position) and not 0 <= position.min() <= position.max() < stage.places:
            message = f"positions are not within 0 and {stage.places}"
            raise ValueError(message)
        target = position // length
        order = np.argsort(target, kind="stable")
        present, first = np.unique(target[order], return_index=True)
        parts = {
            int(block): _pack({POSITION: position[rows]} | {n: v[rows] for n, v in moved.items()})
            for block, rows in zip(present, np.split(order, first[1:]), strict=True)
        }
        facts["bytes_written"] = sum(v.nbytes for part in parts.values() for v in part.values())
        moves.write(index, parts)
    record: TaskRecord = facts["record"]
    return record


def _pack(rows: Rows) -> Rows:
    """CSR rows as arrays."""
    packed: Rows = {}
    for name, values in rows.items():
        if sparse.issparse(values):
            packed |= {
                f"{name}.data": values.data,
                f"{name}.indices": values.indices,
                f"{name}.indptr": values.indptr,
            }
        else:
            packed[name] = values
    return packed


def _unpack(packed: Rows, name: str, state: State) -> Any:
    if state.entries is None:
        return packed[name]
    indptr = packed[f"{name}.indptr"]
    arrays = packed[f"{name}.data"], packed[f"{name}.indices"], indptr
    return sparse.csr_matrix(arrays, shape=(len(indptr) - 1, *state.columns))


def run_gather(
    stage: Rearrange,
    index: int,
    bounds: tuple[int, int],
    n_sources: int,
    state: Recollection,
    moves: Moves,
) -> TaskRecord:
    """Put the rows of one new block in their places."""
    with measured(stage.name, index, f"new block {index}") as facts:
        found = [moves.read(source, index) for source in range(n_sources)]
        parts = [part for part in found if part is not None]
        del found
        facts["bytes_read"] = sum(v.nbytes for part in parts for v in part.values())
        position = np.concatenate([np.empty(0, np.int64), *(part[POSITION] for part in parts)])
        order = np.argsort(position, kind="stable")
        place = position[order]
        begins = np.flatnonzero(np.diff(place, prepend=-1))  # of each run of equal positions
        run = np.repeat(begins, np.diff(begins, append=len(place)))
        place = place - bounds[0] + np.arange(len(place)) - run
        n_rows = bounds[1] - bounds[0]
        if len(place) and (place[-1] >= n_rows or (np.diff(place) <= 0).any()):
            message = "a row has no place: groups overlap, or one crosses the end of its block"
            raise ValueError(message)
        rows = {}
        for name in stage.updates:
            like = state.states[name]
            values = [_unpack(part, name, like) for part in parts]
            rows[name] = _place(values, order, place, n_rows, like)
            facts["bytes_written"] += like.row_bytes * n_rows
        state.write(index, rows)
    record: TaskRecord = facts["record"]
    return record


def _place(
    values: list[Any], order: np.ndarray, place: np.ndarray, n_rows: int, like: State
) -> Any:
    if like.entries is None:
        placed = np.zeros((n_rows, *like.columns), like.dtype)
        if values:
            placed[place] = join_rows(values)[order]
        return placed
    if not values:
        return sparse.csr_matrix((n_rows, *like.columns), dtype=like.dtype)
    ordered = sparse.csr_matrix(join_rows(values)[order])
    lengths = np.zeros(n_rows, np.int64)
    lengths[place] = np.diff(ordered.indptr)
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    shape = n_rows, *like.columns
    return sparse.csr_matrix((ordered.data, ordered.indices, indptr), shape=shape)
