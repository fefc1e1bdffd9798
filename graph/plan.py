"""The plan: tasks, bytes and memory of every stage, before anything runs."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from stdist.graph.blocks import Blocks
from stdist.graph.executors import Resources
from stdist.graph.stage import Each, Loop, Map, Program, Rearrange, Reduce
from stdist.store import TILE_ROWS, Output, PlanRefused, floor_block_length

DEFAULT_BLOCK = 65536
MINIMUM_BLOCK = 16384
MEMORY_SHARE = 0.8
"""Share of a worker's limit that a plan may use; Dask pauses a worker at 0.8 of its limit."""
LOADED_LATER = 160 * 2**20
"""Bytes that a fresh worker still adds: compiled kernels, codecs, zarr, buffers of a write."""
READ_SPEED, WRITE_SPEED = 5e8, 3e8
"""Decoded bytes per second and core (specs/platform.md section 4), for the guess of time only."""


@dataclass(frozen=True)
class StagePlan:
    """One stage: number of tasks, bytes, memory of one worker, guess of seconds on this cluster."""

    name: str
    kind: str
    tasks: int
    bytes_read: int
    bytes_written: int
    memory: int
    seconds: float


@dataclass(frozen=True)
class Plan:
    """A program bound to a cluster; nothing has run."""

    program: str
    n_rows: int
    block_length: int
    n_workers: int
    threads: int
    worker_memory: int | None
    stages: tuple[StagePlan, ...]
    compilation: int = 0
    """Bytes of each stage's memory that are for compilation: the first run of the program."""

    @property
    def worst(self) -> StagePlan:
        """The stage that needs most memory."""
        return max(self.stages, key=lambda stage: stage.memory)

    @property
    def fits(self) -> bool:
        """True if the worst stage fits the smallest worker."""
        limit = self.worker_memory
        return limit is None or self.worst.memory <= MEMORY_SHARE * limit

    @property
    def note(self) -> str:
        """What a reader of the plan should know of its memory."""
        if not self.compilation:
            return ""
        return (
            f"memory includes {self.compilation / 2**20:.0f} MiB for compiling kernels, which "
            "the first run of a program on a machine does"
        )

    def _repr_html_(self) -> str:
        """Show the plan as a table in a notebook."""
        head = "".join(f"<th>{name}</th>" for name in StagePlan.__dataclass_fields__)
        mib = 2**20
        body = "".join(
            f"<tr><td>{s.name}</td><td>{s.kind}</td><td>{s.tasks}</td>"
            f"<td>{s.bytes_read / mib:.1f} MiB</td><td>{s.bytes_written / mib:.1f} MiB</td>"
            f"<td>{s.memory / mib:.0f} MiB</td><td>{s.seconds:.1f} s</td></tr>"
            for s in self.stages
        )
        return (
            f"<p>{self.program}: {self.n_rows} rows in blocks of {self.block_length}, "
            f"{self.n_workers} workers</p><p>{self.note}</p><table><tr>{head}</tr>{body}</table>"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain Python values, for JSON."""
        return asdict(self) | {"fits": self.fits}


def make_plan(program: Program, resources: Resources, block_length: int | None = None) -> Plan:
    """Bind a program to a cluster.

    The block length is chosen from the memory of the smallest worker unless it is given.

    Raises
    ------
    PlanRefused
        If not even the smallest block fits, or a given one does not; names the worst stage and
        the largest block length that fits.
    """
    n_rows = max((stage.n_rows for stage in program.block_stages()), default=0)
    length = block_length or _preferred_length(n_rows, resources.n_workers * resources.threads)
    plan = _bind(program, resources, n_rows, length)
    if block_length is None:
        while not plan.fits and plan.block_length > TILE_ROWS:
            plan = _bind(program, resources, n_rows, plan.block_length // 2)
    if not plan.fits:
        _refuse(program, resources, plan)
    return plan


def _preferred_length(n_rows: int, slots: int) -> int:
    share = floor_block_length(math.ceil(n_rows / (4 * slots)))
    return min(DEFAULT_BLOCK, max(MINIMUM_BLOCK, share))


def _refuse(program: Program, resources: Resources, plan: Plan) -> None:
    length = plan.block_length
    while length > TILE_ROWS:
        length //= 2
        if _bind(program, resources, plan.n_rows, length).fits:
            break
    else:
        length = 0
    assert plan.worker_memory is not None
    smallest = _bind(program, resources, plan.n_rows, TILE_ROWS).worst.memory / MEMORY_SHARE
    raise PlanRefused(
        "memory",
        f"stage {plan.worst.name!r} needs {plan.worst.memory / 2**20:.0f} MiB per worker, "
        f"more than {MEMORY_SHARE:.0%} of the smallest worker's "
        f"{plan.worker_memory / 2**20:.0f} MiB",
        place=f"program {plan.program!r}, block length {plan.block_length}",
        remedy=(
            f"use block length {length}, which fits"
            if length
            else f"no block length fits: use workers of at least {smallest / 2**20:.0f} MiB "
            "(fewer workers per machine, or fewer threads per worker)"
        ),
    )


def _bind(program: Program, resources: Resources, n_rows: int, block_length: int) -> Plan:
    stages: list[StagePlan] = []
    for stage in program.stages:
        body = stage.body if isinstance(stage, Loop) else (stage,)
        repeats = stage.max_iterations if isinstance(stage, Loop) else 1
        for part in body:
            stages.append(_plan_stage(part, program, resources, block_length, repeats))
            if isinstance(part, Map):
                stages += [
                    _plan_assembly(output, part.n_rows, resources, block_length)
                    for output in part.writes.values()
                    if output.kind == "csr"
                ]
    return Plan(
        program.name,
        n_rows,
        block_length,
        resources.n_workers,
        resources.threads,
        resources.memory,
        tuple(stages),
        resources.compilation,
    )


def _plan_stage(
    stage: Map | Reduce | Each | Rearrange,
    program: Program,
    resources: Resources,
    block_length: int,
    repeats: int,
) -> StagePlan:
    blocks = Blocks(stage.n_rows, block_length)
    rows = min(block_length, max(1, stage.n_rows))
    stored = sum(source.stored_bytes() for source in stage.reads.values())
    inputs = sum(source.read_bytes(rows) for source in stage.reads.values())
    recalled = sum(program.state[name].row_bytes for name in stage.recalls)
    inputs += recalled * rows
    stored += recalled * stage.n_rows
    decoded = inputs / rows * stage.n_rows
    written, share = 0, 1.0
    if isinstance(stage, Map):
        tasks = len(blocks)
        row_bytes = sum(output.row_bytes for output in stage.writes.values())
        written = row_bytes * stage.n_rows
        call = stage.workspace(min(rows, stage.call_rows(block_length)))
        memory = inputs + 2 * row_bytes * rows + call
    elif isinstance(stage, Reduce):
        taken = max(1, stage.n_blocks(blocks))
        tasks, share = 2 * taken - 1, taken / len(blocks)
        # pending nodes of the tree; what is gathered is there once, and again as it is appended
        depth = 2 if stage.gathers else 2 + int(np.log2(max(1, block_length // TILE_ROWS)))
        memory = inputs + stage.workspace(min(rows, TILE_ROWS)) + depth * stage.partial_bytes
        updated = sum(program.state[name].row_bytes for name in stage.updates)
        memory += 3 * updated * rows  # tiles, the block, and its bytes as they are written
        written = int(updated * stage.n_rows * share)
    elif isinstance(stage, Rearrange):
        tasks = len(blocks) + len(Blocks(stage.places, block_length))
        updated = 8 + sum(program.state[name].row_bytes for name in stage.updates)
        most = max(rows, min(block_length, stage.places))
        memory = max(inputs + stage.workspace(rows), updated * most)
        memory += 3 * updated * most  # rows, rows in order, and their bytes
        written = updated * (stage.n_rows + stage.places)
    else:
        tasks, memory = stage.n_items, stage.workspace(1)
    slots = resources.n_workers * resources.threads
    kernel = stage.nanoseconds * 1e-9 * (stage.n_items if isinstance(stage, Each) else stage.n_rows)
    if isinstance(stage, Reduce):
        kernel /= stage.part[1]
    seconds = decoded * share / READ_SPEED + written / WRITE_SPEED + kernel
    return StagePlan(
        stage.name,
        type(stage).__name__.lower(),
        tasks * repeats,
        int(stored * share) * repeats,
        written * repeats,
        int(_before_tasks(resources) + resources.threads * memory),
        seconds / min(slots, tasks) * repeats,
    )


def _before_tasks(resources: Resources) -> int:
    return resources.reserved + LOADED_LATER + resources.compilation


def _plan_assembly(
    output: Output, n_rows: int, resources: Resources, block_length: int
) -> StagePlan:
    """Plan the second pass of a CSR output: parts of blocks into whole shards of entries."""
    from stdist.graph.assemble import assembly_memory

    written = output.row_bytes * n_rows
    memory = assembly_memory(output.row_bytes * min(n_rows, block_length))
    return StagePlan(
        f"{output.key}:assemble",
        "assemble",
        max(1, written // 2**25),
        written,
        written,
        _before_tasks(resources) + resources.threads * memory,
        2 * written / WRITE_SPEED / (resources.n_workers * resources.threads),
    )
