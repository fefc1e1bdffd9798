"""No array of cells x genes: all that a run holds is smaller than one of float32 would be."""

from __future__ import annotations

import tracemalloc

import anndata
import numpy as np
import pytest

from stdist import io
from stdist.graph import InProcess, start
from stdist.methods.crescendo import build_crescendo, passes, program

N_CELLS, N_GENES, N_BATCHES, N_CLUSTERS = 32_768, 256, 4, 5


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    rng = np.random.default_rng(0)
    rate = rng.lognormal(-2.5, 0.7, (N_BATCHES, N_GENES))
    batch = np.arange(N_CELLS) * N_BATCHES // N_CELLS
    adata = anndata.AnnData(rng.poisson(rate[batch]).astype(np.uint16))
    adata.obs["slide"] = batch.astype(str)
    adata.obs["type"] = rng.integers(0, N_CLUSTERS, N_CELLS).astype(str)
    adata.obsm["soft"] = rng.dirichlet(np.full(N_CLUSTERS, 0.3), N_CELLS).astype(np.float32)
    path = tmp_path_factory.mktemp("memory") / "cohort.zarr"
    io.write(adata, path)
    return path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*cells-empty")
@pytest.mark.parametrize(
    "options",
    [
        {"clusters": "type"},
        {"clusters": "soft"},
        {"clusters": "soft", "fit_cells": None},
        {"clusters": "soft", "margin": "negative_binomial", "main_effects": "drop"},
    ],
    ids=["labels", "sample", "passes", "negative binomial"],
)
def test_a_run_holds_less_than_one_float_per_entry(store, options, monkeypatch):
    for module in (passes, program):
        monkeypatch.setattr(module, "SAMPLE_CELLS", 3000)
    options = {"fit_cells": 3000, "min_cells": 50, "batch_key": "slide"} | options

    def run(**more):
        built = build_crescendo(str(store), **options, **more)
        start(built, InProcess(), block_length=1024, overwrite=True)

    run(genes=["0"])  # compiles the kernels
    tracemalloc.start()
    try:
        run()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * N_CELLS * N_GENES
