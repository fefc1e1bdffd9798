"""P1: memory is planned, and refused before anything is written."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stdist.graph import Cluster, Each, InProcess, Map, Program, Reduce, make_plan, start
from stdist.graph.executors import Resources
from stdist.store import Output, PlanRefused
from tests import toy

GIB = 2**30


class Columns:
    """A source of any size that is never read."""

    def __init__(self, n_rows, n_columns):
        self.shape, self.dtype = (n_rows, n_columns), "u2"

    def read_bytes(self, rows):
        return rows * self.shape[1] * 2

    def stored_bytes(self):
        return self.shape[0] * self.shape[1]

    def fingerprint(self):
        return ""


def program(n_rows, n_columns):
    reads = {"counts": Columns(n_rows, n_columns)}
    return Program(
        "big",
        (
            Reduce("sums", print, reads, partial_bytes=8 * n_columns**2),
            Each("solve", print, uses=("sums",), n_items=4, workspace=lambda _: 2**20),
            Map(
                "write",
                print,
                reads,
                ("solve",),
                writes={
                    "a": Output("layers/a", (n_columns,), "float32"),
                    "b": Output("layers/b", (n_columns,), "uint16", "csr"),
                },
                workspace=lambda rows: rows * n_columns * 8,
            ),
        ),
    )


def cluster(memory=4 * GIB, threads=1, n_workers=4):
    return Resources(n_workers, memory, threads, 200 * 2**20)


@given(
    n_rows=st.integers(1, 10**8),
    n_columns=st.integers(1, 500),
    level=st.integers(0, 5),
    threads=st.integers(1, 4),
)
def test_projected_memory_is_monotone(n_rows, n_columns, level, threads):
    def memory(columns=n_columns, power=level, per_worker=threads):
        resources = cluster(None, per_worker)
        plan = make_plan(program(n_rows, columns), resources, 1024 << power)
        return [stage.memory for stage in plan.stages]

    def below(small, large):
        return all(a <= b for a, b in zip(small, large, strict=True))

    assert below(memory(), memory(power=level + 1))
    assert below(memory(), memory(columns=n_columns + 1))
    assert below(memory(), memory(per_worker=threads + 1))
    assert min(memory()) > 200 * 2**20


@given(n_columns=st.integers(1, 2000), memory=st.integers(500, 8000), threads=st.integers(1, 4))
def test_a_refusal_names_the_stage_and_a_block_that_fits(n_columns, memory, threads):
    work, resources = program(10**8, n_columns), cluster(memory * 2**20, threads)
    try:
        plan = make_plan(work, resources, 2**20)
    except PlanRefused as error:
        text = str(error)
        assert re.search(r"stage '(sums|write|.*:assemble)'", text)
        found = re.search(r"use block length (\d+), which fits", text)
        if found:
            length = int(found[1])
            assert make_plan(work, resources, length).fits
            with pytest.raises(PlanRefused):
                make_plan(work, resources, 2 * length)
        else:
            needed = int(re.search(r"workers of at least (\d+) MiB", text)[1])
            with pytest.raises(PlanRefused):
                make_plan(work, resources)
            assert make_plan(work, replace(resources, memory=(needed + 1) * 2**20), 1024).fits
    else:
        assert plan.fits
        assert make_plan(work, resources).fits


def test_blocks_are_chosen_for_memory_and_for_work_for_all():
    lengths = [
        make_plan(program(10**8, 1000), cluster(memory * 2**20)).block_length
        for memory in (900, 1500, 3000, 10**5)
    ]
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1] == 65536
    few = make_plan(program(10**6, 10), cluster())
    many = make_plan(program(10**6, 10), cluster(n_workers=12))
    assert many.block_length < few.block_length
    assert -(-(10**6) // many.block_length) >= 12


class Small(InProcess):
    def resources(self, *, device=True):
        return Resources(1, 300 * 2**20, 1, 250 * 2**20)

    def run(self, graph, watched, on_done):
        raise AssertionError("a task ran")


def test_a_refused_run_writes_nothing(store, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    for work in (toy.scale_program(store), toy.generate_program(tmp_path / "new.zarr")):
        with pytest.raises(PlanRefused, match="MiB") as caught:
            start(work, Small())
        assert caught.value.code == "memory"
    assert sorted(tmp_path.rglob("*")) == before


def test_the_smallest_worker_decides(client):
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    found = Cluster(client).resources()
    assert found.memory == min(worker["memory_limit"] for worker in workers)
    assert found.n_workers == 2
    assert found.threads == 1
    assert 20 * 2**20 < found.reserved < GIB


def test_a_small_worker_among_large_ones_decides():
    from types import SimpleNamespace

    workers = {
        name: {"memory_limit": memory, "nthreads": threads}
        for name, memory, threads in (("a", 64 * GIB, 8), ("b", 1 * GIB, 1), ("c", 0, 1))
    }
    fake = SimpleNamespace(
        wait_for_workers=lambda n, timeout: None,
        scheduler_info=lambda n_workers: {"workers": workers},
        run=lambda function, device, on_error: {
            n: (u, "cpu", None) for n, u in zip("abc", (100, 300, 200), strict=True)
        },
    )
    assert Cluster(fake).resources() == Resources(3, GIB, 8, 300)


def test_without_workers_the_run_is_refused_after_the_configured_patience(store):
    import dask
    from distributed import Client, LocalCluster

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with (
            LocalCluster(n_workers=0, dashboard_address=":0", processes=False) as cluster,
            Client(cluster, set_as_default=False) as client,
            dask.config.set({"stdist.wait-for-workers": "300ms"}),
            pytest.raises(PlanRefused) as caught,
        ):
            start(toy.scale_program(store), Cluster(client))
    assert caught.value.code == "no-workers"
    assert not (store / "layers/scaled").exists()
