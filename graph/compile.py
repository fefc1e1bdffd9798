"""Compile a stage into a plain graph with explicit, deterministic keys."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from dataclasses import dataclass

from stdist.graph.blocks import Blocks, part_bounds
from stdist.graph.device import CPU
from stdist.graph.executors import Graph
from stdist.graph.rearrange import Moves, run_gather, run_scatter
from stdist.graph.reduce import fold
from stdist.graph.sinks import Sink
from stdist.graph.stage import Each, Map, Rearrange, Reduce
from stdist.graph.state import Recollection
from stdist.graph.task import (
    Values,
    run_combine,
    run_item,
    run_map_block,
    run_reduce_block,
)


@dataclass(frozen=True)
class Binding:
    """What a stage's tasks need beside the stage: keys, values, state, sink, record, device."""

    prefix: str
    values: Values
    state: Recollection | None = None
    sink: Sink | None = None
    done: str | None = None
    fingerprint: str = ""
    device: str = CPU


def compile_stage(
    stage: Map | Reduce | Each, blocks: Blocks, binding: Binding, finished: Collection[int] = ()
) -> tuple[Graph, list[Hashable]]:
    """Return the graph of a stage and the keys whose completion counts.

    Blocks in `finished` are left out (except in reductions, whose partials are not kept). The last
    watched key of a reduction is its root.
    """

    def key(kind: str, index: int) -> tuple[str, str, str, int]:
        return (binding.prefix, stage.name, kind, index)

    values = {name: binding.values[name] for name in stage.uses if name in binding.values}
    graph: dict[Hashable, tuple] = {}
    if isinstance(stage, Each):
        for item in range(stage.n_items):
            if item not in finished:
                graph[key("item", item)] = (run_item, stage, item, values, binding.device)
        return graph, list(graph)
    if isinstance(stage, Map):
        for index in range(len(blocks)):
            if index not in finished:
                done = binding.done and f"{binding.done}/{index:06d}.json"
                graph[key("block", index)] = (
                    run_map_block,
                    stage,
                    index,
                    blocks.bounds(index),
                    values,
                    binding.state,
                    binding.sink,
                    done,
                    binding.fingerprint,
                    binding.device,
                )
        return graph, list(graph)

    leaves = []

    first, last = part_bounds(stage.part, stage.n_rows)

    def leaf(index: int) -> Hashable | None:
        name = key("block", index)
        bounds = blocks.bounds(index)
        if not stage.takes(bounds):
            return None
        state = binding.state
        if state is not None and stage.part[1] > 1:
            state = state.of_part(stage.part, bounds[0] >= first, bounds[1] <= last)
        graph[name] = run_reduce_block, stage, index, bounds, values, state, binding.device
        leaves.append(name)
        return name

    def combine(left: Hashable, right: Hashable) -> Hashable:
        name = key("combine", len(graph) - len(leaves))
        graph[name] = (run_combine, stage, left, right)
        return name

    # a generator: each combination enters the graph as soon as its inputs are there
    root = fold((leaf(index) for index in range(len(blocks))), combine)
    return graph, [*(name for name in leaves if name != root), root]


def compile_rearrange(
    stage: Rearrange, blocks: Blocks, places: Blocks, binding: Binding, moves: Moves
) -> tuple[tuple[Graph, list[Hashable]], tuple[Graph, list[Hashable]]]:
    """Return the graphs of scattering and of gathering, each with the keys that count."""
    values = {name: binding.values[name] for name in stage.uses if name in binding.values}
    scatter: dict[Hashable, tuple] = {}
    gather: dict[Hashable, tuple] = {}
    for index in range(len(blocks)):
        scatter[(binding.prefix, stage.name, "scatter", index)] = (
            run_scatter,
            stage,
            index,
            blocks.bounds(index),
            places.length,
            values,
            binding.state,
            moves,
        )
    for index in range(len(places)):
        gather[(binding.prefix, stage.name, "gather", index)] = (
            run_gather,
            stage,
            index,
            places.bounds(index),
            len(blocks),
            binding.state,
            moves,
        )
    return (scatter, list(scatter)), (gather, list(gather))
