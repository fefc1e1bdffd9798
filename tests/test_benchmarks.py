"""The benchmark of kernels on a GPU runs, under the strict fake where there is none."""

from __future__ import annotations

from stdist.kernels import poisson_match_cuda
from tests import fake_cupy
from tests.benchmarks import bench_gpu
from tests.kernels.test_on_device import on_host

SMALL = {"BLOCK": 2048, "N_CELLS": 4096, "N_GENES": 12, "N_BATCHES": 3, "N_CLUSTERS": 5}
SMALL |= {"N_COMPONENTS": 8, "N_DIMS": 4, "SAMPLE": 500, "PANEL": 30, "DRAWS": 2, "N_TYPES": 3}


class Calls:
    """Makes every call once, and keeps its bytes."""

    def __init__(self, cupy):
        self.cupy, self.n_bytes = cupy, {}

    def report(self, name, call, n_bytes, scale=1.0):
        call()
        self.n_bytes[name] = n_bytes


def test_every_kernel_of_the_benchmark_runs(cuda, monkeypatch):
    for name, value in SMALL.items():
        monkeypatch.setattr(bench_gpu, name, value)
    if cuda.ndarray is fake_cupy.ndarray:  # it has no compiler: the twin stands in
        for name in ("soft", "labelled"):
            monkeypatch.setattr(poisson_match_cuda, name, on_host(name))
    calls = Calls(cuda)
    bench_gpu.measure(calls)
    assert all(calls.n_bytes.values())
    of = (
        "normalize",
        "covariance",
        "Harmony, a round",
        "fit to strata",
        "Moran",
        "SCI",
        "matching",
    )
    for part in of:
        assert any(name.startswith(part) for name in calls.n_bytes), part
    rows = SMALL["BLOCK"] * (SMALL["N_DIMS"] + 1) * 4  # float32 coordinates and an int32 batch
    assert calls.n_bytes["Harmony, a round"] == rows
