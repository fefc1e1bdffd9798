"""A plan counts the memory of compilation until a run of the program has left its code behind."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path

import anndata
import numba
import numpy as np
import pytest

import stdist
from stdist.graph import InProcess, resources_for
from stdist.graph.compilation import COMPILATION
from stdist.graph.task import measured
from tests import toy

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import json, sys, stdist
data, n_clusters, use_rep, run = sys.argv[1:]
options = {"n_clusters": int(n_clusters), "use_rep": use_rep}
if run == "run":
    stdist.tl.kmeans(data, **options, overwrite=True)
plan = stdist.plan("kmeans", data, **options)
print(json.dumps([plan.compilation, plan.worst.memory, plan.note]))
"""


@pytest.fixture
def child(tmp_path):
    rng = np.random.default_rng(0)
    adata = anndata.AnnData(np.zeros((40, 1), np.float32))
    adata.obsm["single"] = rng.normal(size=(40, 2)).astype(np.float32)
    adata.obsm["double"] = rng.normal(size=(40, 2))
    stdist.io.write(adata, tmp_path / "cells.zarr")

    def run(*arguments):
        result = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", CODE, tmp_path / "cells.zarr", *arguments],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(tmp_path / "numba")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    return run


def test_the_first_run_is_planned_with_compilation(child):
    cold, needed, note = child("2", "single", "plan")
    assert cold == COMPILATION
    assert "compiling" in note
    assert child("2", "single", "run")[0] == 0
    warm, needed_then, note = child("3", "single", "plan")  # another process, another number
    assert warm == 0
    assert note == ""
    assert needed - needed_then > COMPILATION // 2
    assert child("2", "double", "plan")[0] == COMPILATION  # code for other types


def test_a_program_without_compiled_kernels_needs_no_such_memory(store):
    assert resources_for(toy.scale_program(store), InProcess()).compilation == 0


def test_cycles_of_a_task_that_compiles_are_freed_and_others_cost_nothing():
    class Frame:  # as those in which Numba compiles: it refers to itself, and to the task's arrays
        def __init__(self):
            self.itself = self

    def left(work):
        with measured("stage with cycles", 0, "here"):
            work()
            return weakref.ref(Frame())

    gc.disable()
    try:
        left(lambda: None)  # Numba may have been used before
        assert left(lambda: numba.njit(lambda value: value + 1)(1.0))() is None
        assert left(lambda: None)() is not None
    finally:
        gc.enable()
