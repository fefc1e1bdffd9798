"""Programs whose blocks are CuPy's give the results of the CPU; who lacks a GPU hears of it."""

from __future__ import annotations

import shutil
import sys
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import anndata
import dask
import numpy as np
import pytest
from scipy import sparse

from stdist import cluster
from stdist.graph import (
    Each,
    InProcess,
    Loop,
    Map,
    Program,
    Reduce,
    State,
    by_name,
    resume,
    run_in_memory,
    start,
)
from stdist.graph.device import GPU, HOST, chosen_device, configured_device
from stdist.graph.executors import Cluster, Resources
from stdist.graph.record import RunRecord
from stdist.methods.data import AnnDataData
from stdist.preprocess.kmeans import kmeans_program
from stdist.preprocess.normalize import log1p_program, normalize_program
from stdist.preprocess.pca import pca_program
from stdist.preprocess.qc import qc_program
from stdist.preprocess.scale import scale_program
from stdist.starters import worker_environment
from stdist.store import InputError, Output, PlanRefused, open_element
from tests import fake_cupy, toy
from tests.fake_cupy import assert_agree

ON_CUDA = {"stdist.device": "cuda"}


def cells(form, n=3000, g=23):
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.lognormal(-1, 1, g) * rng.lognormal(0, 0.5, (n, 1))).astype(np.uint16)
    counts[5] = 0
    adata = anndata.AnnData(counts if form == "dense" else sparse.csr_matrix(counts))
    centres = rng.normal(0, 4, (4, 6))
    adata.obsm["X_pca"] = centres[rng.integers(0, 4, n)] + rng.normal(0, 1, (n, 6))
    return AnnDataData(adata)


PROGRAMS = {
    "normalize": partial(normalize_program, log1p=True),
    "normalize to a target": partial(normalize_program, target_sum=100.0),
    "log1p": log1p_program,
    "scale": partial(scale_program, max_value=2.0),
    "scale without centre": partial(scale_program, zero_center=False, max_value=2.0),
    "pca": partial(pca_program, n_comps=5),
    "kmeans": partial(kmeans_program, n_clusters=4),
    "qc": qc_program,
}


def flat(value):
    """Arrays of a result, by name."""
    if isinstance(value, dict):
        return {(k, *n): a for k, v in value.items() for n, a in flat(v).items()}
    if sparse.issparse(value):
        return {(): value.toarray()}
    return {(): getattr(value, "codes", value)}


@pytest.mark.parametrize("form", ["dense", "csr"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_agree(cuda, name, form):
    program = PROGRAMS[name](cells(form))
    # drawing initial centres by key has nothing to compute
    assert {stage.name for stage in program.block_stages() if not stage.on_device} <= {"start"}
    expected = flat(run_in_memory(program, InProcess(), block_length=2048))
    with dask.config.set(ON_CUDA):
        found = flat(run_in_memory(program, InProcess(), block_length=2048))
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        if np.asarray(values).dtype.kind in "biuf":
            assert_agree(cuda, found[key], values)


# a program with rows of state, a loop, items, options, text and every kind of output


def add_up(rows, *, counts, names, weights):
    assert isinstance(names, np.ndarray)  # text stays
    return {"sum": (counts * weights).sum(axis=0), "largest": counts.max(axis=0), "n": len(names)}


def as_floats(item, *, sums):
    return {"sum": sums["sum"][item::2] / sums["n"], "shift": sums["largest"].max() * 0.5}


def joined(parts):
    return {"sum": np.concatenate([p["sum"] for p in parts]), "shift": np.float64(1.0)}


def first_rows(rows, *, counts):
    return {"n": np.int64(len(counts)), "carried": counts[:, :2].astype(np.float32)}


def next_rows(rows, *, counts, carried, state):
    new = 0.5 * carried + (counts[:, 2:4] * state["shift"]).astype(np.float32)
    return {"sum": new.astype(np.float64).sum(), "carried": new}


def next_state(total, *, state):
    return {"shift": state["shift"] * 0.5 + total["sum"] * 1e-6}


def write_rows(rows, *, counts, carried, state):
    scaled = np.exp(-state["shift"]) * counts.astype(np.float64) + carried.sum(axis=1)[:, None]
    return {
        "scaled": scaled.astype(np.float32),
        "doubled": (counts * 2).astype(np.uint16),
        "turned": counts + np.uint16(1),
    }


def moving_program(target, element="X"):
    counts = open_element(target, element)
    names = open_element(target, "obs/_index")
    reads, n = {"counts": counts}, toy.COLUMNS
    weights = np.linspace(0, 1, n)
    stages = (
        Reduce(
            "sums",
            add_up,
            reads | {"names": names},
            options={"weights": weights},
            combine=by_name(largest=np.maximum),
            on_device=True,
        ),
        Each("floats", as_floats, uses=("sums",), n_items=2, collect=joined, on_device=True),
        Reduce("first", first_rows, reads, updates=("carried",), on_device=True),
        Loop(
            "state",
            (
                Reduce(
                    "next",
                    next_rows,
                    reads,
                    ("state",),
                    finalize=next_state,
                    recalls=("carried",),
                    updates=("carried",),
                    on_device=True,
                ),
            ),
            "floats",
            toy.settled,
            5,
        ),
        Map(
            "write",
            write_rows,
            reads,
            ("state",),
            recalls=("carried",),
            writes={
                "scaled": Output("layers/scaled", (n,), "float32"),
                "doubled": Output("layers/doubled", (n,), "uint16", kind="csr"),
                "turned": Output("varm/turned", (n,), "uint16", kind="transposed"),
            },
            on_device=True,
        ),
    )
    return Program(
        "moving",
        stages,
        {"target": str(target), "element": element},
        Path(target),
        state={"carried": State((2,), "float32")},
    )


def build(name, parameters):
    return moving_program(**parameters)


def write_csr_rows(rows, **arguments):
    """The same on the host, where kernels make CSR rows themselves."""
    found = write_rows(rows, **arguments)
    return found | {"doubled": sparse.csr_matrix(found["doubled"])}


@pytest.mark.parametrize("block_length", [1024, 4096])
def test_a_store_gets_the_same_rows_whatever_moved(cuda, store, tmp_path, block_length):
    other = shutil.copytree(store, tmp_path / "other.zarr")
    *stages, last = moving_program(other).stages
    on_host = (*stages, replace(last, kernel=write_csr_rows))
    programs = {
        "cpu": replace(moving_program(other), stages=on_host),
        "cuda": moving_program(store, "layers/sparse"),  # dense rows for the kernels
    }
    for device, program in programs.items():
        with dask.config.set({"stdist.device": device}):
            folder = start(program, InProcess(), block_length=block_length)
        assert RunRecord(folder).read_json("run.json")["device"] == device
    for key in ("layers/scaled", "layers/doubled", "varm/turned"):
        found, expected = (open_element(path, key) for path in (store, other))
        rows = [values.read(0, values.shape[0]) for values in (found, expected)]
        assert_agree(cuda, *(r.toarray() if sparse.issparse(r) else r for r in rows))


def test_a_run_is_not_resumed_on_another_device(store, monkeypatch):
    fake_cupy.install(monkeypatch)
    with dask.config.set(ON_CUDA), monkeypatch.context() as patched:
        patched.setattr(f"{__name__}.next_state", _interrupt)
        with pytest.raises(Exception, match="interrupted"):
            start(moving_program(store), InProcess(), block_length=1024)
    with pytest.raises(InputError, match="device") as caught:
        resume(store, build, InProcess())
    assert caught.value.code == "run-changed"
    with dask.config.set(ON_CUDA):
        resume(store, build, InProcess())
    assert (store / "layers/scaled").exists()


def _interrupt(total, **values):
    raise KeyboardInterrupt


def test_a_program_without_such_stages_runs_on_the_host(store, monkeypatch):
    fake_cupy.install(monkeypatch)
    with dask.config.set(ON_CUDA):
        folder = start(toy.scale_program(store), InProcess(), block_length=4096)
    assert RunRecord(folder).read_json("run.json")["device"] == "cpu"


def test_duplicates_and_explicit_zeros_of_csr_rows(cuda):
    rows = sparse.csr_matrix(
        (np.array([1, 2, 0, 4], np.int32), np.array([3, 3, 1, 0]), np.array([0, 2, 2, 4])), (3, 5)
    )
    (moved,) = GPU.take({"counts": rows}).values()
    assert_agree(cuda, moved[0:3].get(), rows.toarray())
    assert_agree(cuda, moved[1:3].get(), rows.toarray()[1:3])
    back = GPU.give({"counts": moved[0:3]}, {"counts"})["counts"]
    assert back.nnz == 2
    assert_agree(cuda, back.toarray(), rows.toarray())


def test_what_moves_and_what_stays(cuda):
    given = {"a": np.arange(3), "s": np.float64(2), "z": np.array(3.0), "t": np.array(["x"], "O"),
             "f": True, "n": None}  # fmt: skip
    moved = GPU.take(given)
    assert isinstance(moved["a"], cuda.ndarray)
    assert isinstance(moved["z"], np.float64)
    assert all(moved[name] is given[name] for name in "stfn")
    back = GPU.give(moved | {"sum": moved["a"].sum()})
    assert isinstance(back["a"], np.ndarray)
    assert back["sum"] == 3
    assert isinstance(back["sum"], np.int64)
    assert HOST.take(given) == given


@pytest.mark.parametrize(
    ("setting", "available", "code"),
    [
        ("gpu", True, "device-unknown"),
        ("cuda", False, "cuda-driver"),
        ("cuda", None, "extra-missing"),
    ],
)
def test_a_missing_device_is_named_before_anything_runs(
    monkeypatch, store, setting, available, code
):
    if available is None:
        monkeypatch.setitem(sys.modules, "cupy", None)
    else:
        fake_cupy.install(monkeypatch, available=available)
    with dask.config.set({"stdist.device": setting}), pytest.raises(InputError) as caught:
        start(moving_program(store), InProcess())
    assert caught.value.code == code
    assert not (store / "layers/scaled").exists()


def test_the_memory_of_the_device_bounds_the_plan(monkeypatch):
    fake_cupy.install(monkeypatch, n_bytes=2**28)
    with dask.config.set(ON_CUDA):
        assert chosen_device() == ("cuda", 2**28)
        assert InProcess().resources().memory == 2**28
        with pytest.raises(PlanRefused):
            run_in_memory(pca_program(cells("dense"), n_comps=2), InProcess())


class Answers:
    """A client whose workers answer so."""

    def __init__(self, *offers):
        self.offers = offers

    def wait_for_workers(self, n, timeout):
        pass

    def scheduler_info(self, n_workers=-1):
        workers = {str(i): {"memory_limit": 2**30, "nthreads": 1} for i in range(len(self.offers))}
        return {"workers": workers, "address": "tcp://there"}

    def run(self, function, *arguments, on_error):
        return {str(i): offer for i, offer in enumerate(self.offers)}


def test_workers_decide_the_device_of_a_cluster():
    offers = (1, "cuda", 2**29), OSError("leaving"), (3, "cuda", 2**31)
    assert Cluster(Answers(*offers)).resources() == Resources(3, 2**29, 1, 3, "cuda")
    with pytest.raises(PlanRefused) as caught:
        Cluster(Answers((1, "cuda", 2**29), (1, "cpu", None))).resources()
    assert caught.value.code == "devices-differ"
    lacking = InputError("cuda-driver", "none", place="there", remedy="run elsewhere")
    with pytest.raises(InputError, match="none"):
        Cluster(Answers((1, "cuda", 2**29), lacking)).resources()


def test_data_too_large_for_this_process_start_one_worker_per_gpu(monkeypatch):
    asked = []

    @contextmanager
    def connect(*address):
        asked.append(address)
        yield SimpleNamespace()

    monkeypatch.setattr(cluster, "active_client", lambda: None)
    monkeypatch.setattr(cluster, "connect", connect)
    for settings in ({}, ON_CUDA):
        with dask.config.set(settings), cluster.executor_for(None, 10**6):
            pass
    assert asked == [(), ("cuda",)]


def test_workers_of_connect_cuda_carry_the_device(monkeypatch):
    from distributed import LocalCluster

    monkeypatch.setitem(sys.modules, "dask_cuda", SimpleNamespace(LocalCUDACluster=LocalCluster))
    with cluster.connect("cuda", n_workers=1, threads_per_worker=1) as client:
        client.cluster.scale(2)  # a worker that the user adds later
        client.wait_for_workers(2, timeout=60)
        assert set(client.run(configured_device).values()) == {"cuda"}
    assert configured_device() == "cpu"


def test_workers_elsewhere_get_it_from_their_environment():
    with dask.config.set(ON_CUDA):
        assert worker_environment()["DASK_STDIST__DEVICE"] == "cuda"
    assert "DASK_STDIST__DEVICE" not in worker_environment()
