"""Stages and programs: what is computed over blocks, declared as data.

A kernel is called as ``kernel(rows, **inputs, **values, **options)``: `rows` is ``(start, stop)``,
`inputs` are the rows of each source, `values` are the results of earlier stages (dicts of arrays)
and `options` are small constants. It returns a dict of arrays. Kernels are module-level functions,
so that they travel to workers by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stdist.graph.blocks import Blocks, part_bounds
from stdist.graph.reduce import add
from stdist.graph.state import State
from stdist.store import TILE_ROWS, Output, Source

Arrays = Mapping[str, np.ndarray]
Kernel = Callable[..., dict[str, Any]]
Values = Mapping[str, Arrays]


def no_workspace(rows: int) -> int:
    """Workspace of a kernel that allocates nothing worth counting."""
    return 0


@dataclass(frozen=True)
class Stage:
    """What every stage declares.

    Parameters
    ----------
    name
        Name of the stage and of its value.
    kernel
        Function of the rows of one tile (or block), or of one item.
    reads
        Sources by argument name.
    uses
        Names of earlier stages whose values the kernel takes as arguments.
    options
        Small constants for the kernel.
    workspace
        Bytes that one kernel call allocates beyond its inputs and outputs, as a function of the
        number of rows of the call.
    nanoseconds
        Guess of the kernel's time per row, for the plan.
    recalls
        Names of the program's states whose rows the kernel takes as arguments.
    on_device
        True if the kernel also takes CuPy arrays, all rows dense, and then returns such: on a
        cluster of GPUs it runs there.
    keep_csr
        True if CSR rows are to stay so on the device: objects with ``indptr``, ``indices``,
        ``data`` and ``shape``.
    rows
        Number of rows where a stage has no source: it generates them, or only recalls states.
    """

    name: str
    kernel: Kernel
    reads: Mapping[str, Source] = field(default_factory=dict)
    uses: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    workspace: Callable[[int], int] = no_workspace
    nanoseconds: float = 0.0
    recalls: tuple[str, ...] = ()
    on_device: bool = False
    keep_csr: bool = False
    rows: int | None = None

    @property
    def n_rows(self) -> int:
        """Rows of the sources, which agree."""
        if self.rows is not None:
            return self.rows
        return next(iter(self.reads.values())).shape[0] if self.reads else 0


@dataclass(frozen=True)
class Map(Stage):
    """One pass that writes: the kernel returns the rows of each output.

    With ``whole_blocks`` the kernel sees a block at once; allowed only where rows do not interact
    (no BLAS, no sums over rows), because tiles are what makes results independent of blocks.
    """

    writes: Mapping[str, Output] = field(default_factory=dict)
    whole_blocks: bool = False

    def call_rows(self, block_length: int) -> int:
        """Rows that one kernel call sees."""
        return block_length if self.whole_blocks else TILE_ROWS


@dataclass(frozen=True)
class Reduce(Stage):
    """One pass that sums up: partial statistics per tile, combined in a fixed tree.

    `combine` merges two neighbours (default: add); `finalize(total, **values)` runs once, on the
    client, and gives the value of the stage. `partial_bytes` is the size of one partial, or, where
    `gathers` says that partials are appended, of the total. Of each state in `updates` the kernel
    returns, beside its statistics, the tile's new rows.

    With a `part` ``(number, n_parts)`` it takes one of as many even ranges of tiles; rows of states
    in all others stay as they are. A loop has such stages for all parts, in order.
    """

    combine: Callable[[Any, Any], dict[str, Any]] = add
    finalize: Callable[..., dict[str, Any]] | None = None
    partial_bytes: int = 0
    gathers: bool = False
    updates: tuple[str, ...] = ()
    part: tuple[int, int] = (0, 1)

    def takes(self, bounds: tuple[int, int]) -> bool:
        """Tell whether the part has tiles between two rows."""
        first, last = part_bounds(self.part, self.n_rows)
        return self.part[1] == 1 or (bounds[0] < last and first < bounds[1])

    def n_blocks(self, blocks: Blocks) -> int:
        """Number of blocks with tiles of the part."""
        if self.part[1] == 1:
            return len(blocks)
        return sum(self.takes(blocks.bounds(index)) for index in range(len(blocks)))


@dataclass(frozen=True)
class Each(Stage):
    """Independent work on numbered items (column panels ...): ``kernel(item, **values)``.

    `collect(list of results)` gives the value of the stage.
    """

    n_items: int = 1
    collect: Callable[[list[dict[str, Any]]], dict[str, Any]] | None = None


@dataclass(frozen=True)
class Rearrange(Stage):
    """One pass that moves rows into another order, where they stay as states.

    The kernel returns ``position``, the place of each row (int64), and the rows of every state in
    `updates`. Rows with the same position follow one another in the order they came, so a group
    needs only its first place. There are `places` places; those that no row takes hold zeros.
    A kernel sees a block at once: rows do not interact.
    """

    updates: tuple[str, ...] = ()
    places: int = 0


@dataclass(frozen=True)
class Loop:
    """Repeat a body of stages until ``converged(previous, current)``, checkpointing each round.

    The state starts as the value of stage `initial`; inside the body it is the value `name`; the
    value of the body's last stage is the next state. ``n_iterations`` is added to the state.
    A state of rows may be updated by one stage of the body, or by one for each part of the tiles;
    these recall it, and no other stage of the body does.
    """

    name: str
    body: tuple[Reduce | Each, ...]
    initial: str
    converged: Callable[[Arrays, Arrays], bool]
    max_iterations: int

    def __post_init__(self) -> None:
        for state in set(self.updates()):
            mine = [s for s in self.body if isinstance(s, Reduce) and state in s.updates]
            if [s.part for s in mine] != [(n, len(mine)) for n in range(len(mine))]:
                message = f"loop {self.name!r} updates {state!r} twice in a round, not in parts"
                raise ValueError(message)
            if len(mine) > 1 and mine != [s for s in self.body if state in s.recalls]:
                message = f"loop {self.name!r}: all parts recall {state!r}, and no other stage"
                raise ValueError(message)

    def updates(self) -> list[str]:
        """Names of the states that a round updates, each as often as it does."""
        return [name for s in self.body if isinstance(s, Reduce) for name in s.updates]


AnyStage = Map | Reduce | Each | Rearrange | Loop


def no_results(values: Values) -> dict[str, Any]:
    """Results of a program that writes nothing but its outputs."""
    return {}


@dataclass(frozen=True)
class Program:
    """A method bound to its data.

    Parameters
    ----------
    name
        Name under which the program can be built again from `parameters`.
    stages
        Stages in order.
    parameters
        JSON-able keyword arguments that build this program.
    target
        Store that the outputs go to; None for data in memory.
    creates
        True if the program makes the target.
    results
        Small elements computed from the values, written at the end: ``{"uns/pca": {...}}``.
    result_keys
        Keys of these elements, so that a clash with what the store has is found beforehand; not
        needed where the program makes the target.
    state
        Rows kept between passes, by name (see `State`).
    """

    name: str
    stages: tuple[AnyStage, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    target: Path | None = None
    creates: bool = False
    results: Callable[[Values], Mapping[str, Any]] = no_results
    result_keys: tuple[str, ...] = ()
    state: Mapping[str, State] = field(default_factory=dict)

    def block_stages(self) -> list[Map | Reduce | Each | Rearrange]:
        """All stages in order, with the bodies of loops in place of the loops."""
        flat: list[Map | Reduce | Each | Rearrange] = []
        for stage in self.stages:
            flat += list(stage.body) if isinstance(stage, Loop) else [stage]
        return flat

    @property
    def on_device(self) -> bool:
        """True if some stage can run on a device other than the host's processor."""
        return any(stage.on_device for stage in self.block_stages())

    def outputs(self) -> list[Output]:
        """Every array that the program writes."""
        return [o for s in self.stages if isinstance(s, Map) for o in s.writes.values()]

    def sources(self) -> list[Source]:
        """Every source that the program reads, each once."""
        found: dict[Source, None] = {}
        for stage in self.block_stages():
            found |= dict.fromkeys(stage.reads.values())
        return list(found)
