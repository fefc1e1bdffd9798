"""No array of cells x genes or cells x spots: a run holds less than one of float32 would be."""

from __future__ import annotations

import tracemalloc

import pytest

import stdist
from stdist.graph import InProcess, start
from stdist.kernels.pair_simulation import pair_model
from stdist.methods.siid import build_siid
from tests.methods.test_siid import FAST, slides

N_CELLS, N_GENES = 40_000, 300


SHORT = FAST | {"n_solutions": 1, "passes": 1, "convergence_passes": 1, "entropy_passes": 1}
ADAM = {"n_factors": 4, "n_restarts": 1, "n_solutions": 1, "epochs": 3, "sample_cells": 1024}
OPTIONS = {
    "default": FAST,
    "several spots": SHORT | {"n_spots_per_cell": 3},
    "adam": ADAM | {"solver": "adam"},
}


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_run_holds_less_than_one_float_per_entry(tmp_path, options):
    model = pair_model(
        n_cells=N_CELLS, n_genes=N_GENES, n_panel=N_GENES, n_types=4, mean_total=40, seed=2
    )
    genes = [f"g{i}" for i in range(N_GENES)]
    for name, rows in (
        ("cells", model.cells(0, model.n_cells)),
        ("spots", model.spots(0, model.n_spots)),
    ):
        stdist.io.write(slides(rows.counts, rows.spatial, genes), tmp_path / f"{name}.zarr")
    paths = str(tmp_path / "cells.zarr"), str(tmp_path / "spots.zarr")

    def run():
        start(build_siid(*paths, **options), InProcess(), block_length=1024, overwrite=True)

    run()  # compiles the kernels
    tracemalloc.start()
    try:
        run()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * model.n_cells * N_GENES
    assert model.n_spots > N_GENES
