"""No array of cells x genes or cells x spots: a run holds less than one of float32 would be."""

from __future__ import annotations

import tracemalloc

import pytest

import stdist
from stdist.graph import InProcess, start
from stdist.kernels.pair_simulation import pair_model
from stdist.methods.registry import build
from tests.methods.test_siid import FAST, slides

N_CELLS, N_GENES = 40_000, 300


SHORT = FAST | {"n_solutions": 1, "passes": 1, "convergence_passes": 1, "entropy_passes": 1}
ADAM = {"n_factors": 4, "n_restarts": 1, "n_solutions": 1, "epochs": 3, "sample_cells": 1024}
HELD_OUT = {"held_out": [f"g{i}" for i in range(30)]}
FOLD = {"n_factors": 4, "n_restarts": 2, "n_solutions": 1, "passes": 1, "sample_cells": 1024}
FOLD |= {"folds": [0, 1]}
RUNS = {
    "default": ("siid", FAST),
    "held out": ("siid", SHORT | HELD_OUT),
    "several spots": ("siid", SHORT | {"n_spots_per_cell": 3}),
    "adam": ("siid", ADAM | {"solver": "adam"}),
    "impute": ("siid_impute", {"confidence": True}),
    "hold-out": ("siid_holdout", FOLD),
    "hold-out, several spots": ("siid_holdout", FOLD | {"n_spots_per_cell": 3, "folds": [0]}),
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Stores of a simulated pair with more spots than genes, and a fit of it."""
    folder = tmp_path_factory.mktemp("pair")
    model = pair_model(
        n_cells=N_CELLS, n_genes=N_GENES, n_panel=N_GENES, n_types=4, mean_total=40, seed=2
    )
    assert model.n_spots > N_GENES
    genes = [f"g{i}" for i in range(N_GENES)]
    for name, rows in (
        ("cells", model.cells(0, model.n_cells)),
        ("spots", model.spots(0, model.n_spots)),
    ):
        stdist.io.write(slides(rows.counts, rows.spatial, genes), folder / f"{name}.zarr")
    paths = {"data": str(folder / "cells.zarr"), "spots": str(folder / "spots.zarr")}
    start(build("siid", paths | SHORT | {"n_solutions": 2}), InProcess(), block_length=1024)
    return paths, model.n_cells


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), RUNS.values(), ids=RUNS)
def test_a_run_holds_less_than_one_float_per_entry(pair, name, options):
    paths, n_cells = pair
    key = {"siid": "other", "siid_impute": "imputed", "siid_holdout": "scores"}[name]

    def run():
        program = build(name, paths | {"key_added": key} | options)
        start(program, InProcess(), block_length=1024, overwrite=True)

    run()  # compiles the kernels
    tracemalloc.start()
    try:
        run()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * n_cells * N_GENES
