"""Stages that take a part of the tiles: the same for any blocks, resumable, in order."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stdist.graph import (
    Cluster,
    InProcess,
    Loop,
    Map,
    Program,
    Reduce,
    RunRecord,
    State,
    fold,
    make_plan,
    part_bounds,
    resume,
    run_in_memory,
    start,
    tiles,
    unfinished,
)
from stdist.graph.state import FileState
from stdist.store import Output, RunStopped, Store, verify

N_ROWS, N_TILES, N_PARTS, ROUNDS = 5000, 5, 3, 4


@given(n_rows=st.integers(1, 10**6), n_parts=st.integers(1, 70))
def test_parts_cover_the_tiles_once(n_rows, n_parts):
    found = [part_bounds((number, n_parts), n_rows) for number in range(n_parts)]
    assert [tile for bounds in found for tile in tiles(*bounds)] == list(tiles(0, n_rows))
    n_tiles = [len(list(tiles(*bounds))) for bounds in found]
    assert max(n_tiles) - min(n_tiles) <= 1


@given(present=st.lists(st.booleans(), min_size=1, max_size=99), level=st.integers(0, 6))
def test_folding_blocks_with_leaves_left_out_folds_tiles(present, level):
    def pair(left, right):
        return (left, right)

    leaves = [number if here else None for number, here in enumerate(present)]
    blocks = [leaves[at : at + 2**level] for at in range(0, len(leaves), 2**level)]
    if not any(present):
        with pytest.raises(ValueError, match="nothing"):
            fold(leaves, pair)
        return
    folded = [fold(block, pair) if any(x is not None for x in block) else None for block in blocks]
    assert fold(folded, pair) == fold(leaves, pair)


def begin(rows):
    carried = np.sin(np.arange(*rows, dtype=float))[:, None]
    return {"sum": carried.sum(), "carried": carried}


def move(rows, *, carried, name, **values):
    new = np.cos(carried + values[name]["sum"])
    return {"sum": new.sum(), "carried": new}


def after(total, *, part, **values):
    (now,) = values.values()
    sums = np.array(now.get("sums", np.zeros(N_PARTS)))
    sums[part] = total["sum"]
    return {"sum": np.sin(sums.sum()), "sums": sums}


def never(previous, current):
    return False


def write(rows, *, carried, loop):
    return {"carried": carried + loop["sum"]}


def body():
    names = ["loop", *(f"part{number}" for number in range(N_PARTS))]
    return tuple(
        Reduce(
            names[number + 1],
            move,
            uses=(names[number],),
            options={"name": names[number]},
            finalize=partial(after, part=number),
            rows=N_ROWS,
            partial_bytes=8,
            recalls=("carried",),
            updates=("carried",),
            part=(number, N_PARTS),
        )
        for number in range(N_PARTS)
    )


def program(target=None):
    stages = (
        Reduce("begin", begin, rows=N_ROWS, updates=("carried",)),
        Loop("loop", body(), "begin", never, ROUNDS),
        Map("write", write, uses=("loop",), rows=N_ROWS, recalls=("carried",),
            writes={"carried": Output("obsm/carried", (1,), "float64")}),
    )  # fmt: skip
    parameters = {"data": str(target)}
    return Program("parts", stages, parameters, target, state={"carried": State((1,), "float64")})


def expected():
    carried = np.concatenate([begin(rows)["carried"] for rows in tiles(0, N_ROWS)])
    now = {"sum": fold((begin(rows)["sum"] for rows in tiles(0, N_ROWS)), np.add)}
    for _ in range(ROUNDS):
        for number in range(N_PARTS):
            sums = [None] * N_TILES
            for at, (first, last) in enumerate(tiles(0, N_ROWS)):
                if _mine(at, number):
                    carried[first:last] = np.cos(carried[first:last] + now["sum"])
                    sums[at] = carried[first:last].sum()
            now = after({"sum": fold(sums, np.add)}, part=number, now=now)
    return carried + now["sum"]


def _mine(tile, number):
    return N_TILES * number // N_PARTS <= tile < N_TILES * (number + 1) // N_PARTS


@pytest.mark.parametrize("length", [1024, 2048, 4096, 16384])
def test_parts_move_in_turn_for_any_blocks(length):
    found = run_in_memory(program(), InProcess(), block_length=length)["obsm/carried"]
    np.testing.assert_array_equal(found, expected())


def build(name, parameters):
    return program(Path(parameters["data"]))


def carried_of(store):
    return Store(store).element("obsm/carried").read(0, N_ROWS)


@pytest.mark.parametrize("n_tiles", range(1, N_TILES))
def test_a_run_killed_within_a_round_is_resumed(store, n_tiles):
    """Killed in the third round after so many of its tiles; parts have 1, 2 and 2 of them."""
    broken, done = program(store), []

    def dies(rows, **arguments):
        done.append(rows)
        if len(done) > 2 * N_TILES + n_tiles:
            raise KeyboardInterrupt
        return move(rows, **arguments)

    for stage in broken.block_stages():
        if stage.kernel is move:
            object.__setattr__(stage, "kernel", dies)
    with pytest.raises(RunStopped):
        start(broken, InProcess(), block_length=2048)
    (run,) = unfinished(store)
    assert len(list((run / "state" / "carried").iterdir())) > 1
    resume(store, build, InProcess())
    np.testing.assert_array_equal(carried_of(store), expected())
    assert not list(verify.verify(store)[0])


def test_on_a_cluster_the_same(store, client):
    start(program(store), Cluster(client), block_length=1024)
    np.testing.assert_array_equal(carried_of(store), expected())


def test_a_round_keeps_one_version_of_the_rows(store, monkeypatch):
    found = []
    drop = FileState.drop_before

    def watched(self, name, version):
        drop(self, name, version)
        found.append(sorted(path.name for path in (Path(self.root) / name).iterdir()))

    monkeypatch.setattr(FileState, "drop_before", watched)
    start(program(store), InProcess(), block_length=2048)
    assert found[N_PARTS - 1] == [f"{1 + N_PARTS:06d}"]
    assert max(map(len, found)) == 1


def test_a_part_reads_only_blocks_with_tiles_of_it(store):
    folder = start(program(store), InProcess(), block_length=1024)
    tasks = [event for event in RunRecord(folder).events() if event.stage.startswith("part")]
    assert len(tasks) == ROUNDS * N_TILES
    assert {event.index for event in tasks if event.stage == "part1"} == {1, 2}
    plan = make_plan(program(), InProcess().resources(), 1024)
    parts = [stage for stage in plan.stages if stage.name.startswith("part")]
    assert sum(stage.bytes_read for stage in parts) == ROUNDS * 8 * N_ROWS
    assert [stage.tasks for stage in parts] == [ROUNDS, 3 * ROUNDS, 3 * ROUNDS]


@pytest.mark.parametrize("order", [(1, 0, 2), (0, 1), (0, 0, 1, 2)])
def test_a_loop_has_all_parts_in_order(order):
    stages = body()
    with pytest.raises(ValueError, match="twice"):
        Loop("loop", tuple(stages[number] for number in order), "begin", never, 1)


def test_no_other_stage_sees_rows_between_parts():
    look = Reduce("look", move, rows=N_ROWS, recalls=("carried",))
    with pytest.raises(ValueError, match="no other"):
        Loop("loop", (*body(), look), "begin", never, 1)
    forgets = (replace(body()[0], recalls=()), *body()[1:])
    with pytest.raises(ValueError, match="recall"):
        Loop("loop", forgets, "begin", never, 1)
