"""Rows into another order and back: the same for any blocks, resumable, nothing lost."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from scipy import sparse

from stdist.graph import (
    InProcess,
    Map,
    Program,
    Rearrange,
    Reduce,
    State,
    resume,
    run_in_memory,
    start,
    unfinished,
)
from stdist.store import MemorySource, Output, RunStopped, Store
from tests import toy

N_GROUPS = 13
COLUMNS = toy.COLUMNS


def by_group(rows, *, counts, group, firsts):
    """Send each row to its group; the sum of a row goes with it."""
    numbers = np.arange(*rows)
    return {
        "position": firsts[group],
        "sorted": sparse.csr_matrix(counts),
        "origin": numbers + 1,
        "sum": counts.sum(axis=1, dtype=np.int64)[:, None].astype(np.float32),
    }


def total_of_tile(rows, *, sorted, origin, sum):
    """What a tile holds; places without a row count nothing."""
    assert (sorted[origin == 0].getnnz() if (origin == 0).any() else 0) == 0
    return {"counts": np.asarray(sorted.sum(axis=0)).ravel().astype(np.int64),
            "taken": np.int64((origin > 0).sum()),
            "checked": np.float64(np.abs(np.asarray(sorted.sum(axis=1)) - sum).max())}  # fmt: skip


def back(rows, *, origin, sum):
    taken = origin > 0
    position = np.where(taken, origin - 1, 0)
    return {"position": position[taken], "returned": sum[taken], "place": np.arange(*rows)[taken]}


def write(rows, *, returned, place):
    return {"returned": returned[:, 0], "place": place}


def program(path, counts, group, firsts, places):
    n_rows = len(group)
    reads = {"counts": counts, "group": MemorySource(group)}
    states = {
        "sorted": State((COLUMNS,), "uint16", entries=COLUMNS / 2),
        "origin": State((), "int64"),
        "sum": State((1,), "float32"),
        "returned": State((1,), "float32"),
        "place": State((), "int64"),
    }
    forth = Rearrange("forth", by_group, reads, options={"firsts": firsts},
                      updates=("sorted", "origin", "sum"), places=places)  # fmt: skip
    total = Reduce("total", total_of_tile, rows=places, recalls=("sorted", "origin", "sum"))
    return Program(
        "rearrange",
        (
            forth,
            total,
            Rearrange("back", back, rows=places, recalls=("origin", "sum"),
                      updates=("returned", "place"), places=n_rows),
            Map("write", write, rows=n_rows, recalls=("returned", "place"), writes={
                "returned": Output("obs/returned", (), "float32"),
                "place": Output("obs/place", (), "int64"),
            }),
        ),
        {},
        path,
        results=lambda values: {"uns/total": dict(values["total"])},
        result_keys=("uns/total",),
        state=states,
    )  # fmt: skip


def layout(group):
    """Groups one after the other, each beginning at a multiple of 1024."""
    sizes = np.bincount(group, minlength=N_GROUPS)
    tiles = -(-sizes // 1024)
    return np.concatenate([[0], np.cumsum(tiles)[:-1]]) * 1024, int(tiles.sum()) * 1024


@pytest.fixture
def problem(store):
    rng = np.random.default_rng(3)
    group = rng.integers(0, N_GROUPS, 5000).astype(np.int8)
    group[group == 2] = 3  # nobody is in group 2
    return group, *layout(group)


@pytest.mark.parametrize("block_length", [1024, 4096])
def test_rows_go_and_come_back(store, problem, block_length):
    group, firsts, places = problem
    counts = Store(store).element("X")
    start(program(store, counts, group, firsts, places), InProcess(), block_length=block_length)
    dense = counts.read(0, 5000)
    kept = Store(store)
    np.testing.assert_array_equal(kept.element("obs/returned").read(0, 5000), dense.sum(axis=1))
    order = np.argsort(group, kind="stable")
    rank = np.empty(5000, np.int64)
    rank[order] = np.arange(5000) - np.repeat(
        np.cumsum(np.bincount(group)) - np.bincount(group), np.bincount(group)
    )
    np.testing.assert_array_equal(kept.element("obs/place").read(0, 5000), firsts[group] + rank)
    total = kept.uns("total")
    np.testing.assert_array_equal(total["counts"], dense.sum(axis=0))
    assert (total["taken"], total["checked"]) == (5000, 0)
    folder = next((store / ".stdist" / "runs").glob("rearrange-*"))
    assert not (folder / "moves").exists()
    assert not (folder / "state").exists()


def test_in_memory_the_same(problem, store):
    group, firsts, places = problem
    counts = MemorySource(Store(store).element("X").read(0, 5000))
    found = run_in_memory(program(None, counts, group, firsts, places), InProcess())
    np.testing.assert_array_equal(found["obs/returned"], counts.read(0, 5000).sum(axis=1))


def test_a_run_stopped_amid_a_move_is_resumed(store, problem, tmp_path):
    other = tmp_path / "other.zarr"
    shutil.copytree(store, other)
    build = {path: program(path, Store(path).element("X"), *problem) for path in (store, other)}
    start(build[other], InProcess(), block_length=1024)
    calls = []

    def dies(rows, **arguments):
        calls.append(rows)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return back_kernel(rows, **arguments)

    back_kernel = back
    broken = program(store, Store(store).element("X"), *problem)
    object.__setattr__(broken.stages[2], "kernel", dies)
    with pytest.raises(RunStopped):
        start(broken, InProcess(), block_length=1024)
    (run,) = unfinished(store)
    assert (run / "values" / "forth.moved.npz").exists()
    resume(store, lambda *_: build[store], InProcess())
    found, wanted = toy.contents(store), toy.contents(other)
    assert {k: v for k, v in found.items() if k.startswith("obs/")} == {
        k: v for k, v in wanted.items() if k.startswith("obs/")
    }


def test_groups_that_overlap_are_refused(store, problem):
    group, firsts, places = problem
    counts = Store(store).element("X")
    with pytest.raises(RunStopped, match="has no place"):
        start(program(store, counts, group, firsts // 1024 * 8, places), InProcess())
