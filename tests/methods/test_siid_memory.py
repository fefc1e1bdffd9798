"""No array of cells x genes or cells x spots, of a byte or more for each entry.

Nor does it hold more where there are more cells, but for some numbers of each cell.
"""

from __future__ import annotations

import tracemalloc
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import zarr

import stdist
from stdist.graph import InProcess, start
from stdist.kernels.pair_simulation import pair_model
from stdist.methods.registry import build
from tests.methods.test_siid import FAST, slides

N_CELLS, N_GENES = 40_000, 300
NEGATIVE = "negative_binomial"


SHORT = FAST | {"n_solutions": 1, "passes": 1, "convergence_passes": 1, "entropy_passes": 1}
ADAM = {"n_factors": 4, "n_restarts": 1, "n_solutions": 1, "epochs": 3, "sample_cells": 1024}
HELD_OUT = {"held_out": [f"g{i}" for i in range(30)]}
FOLD = {"n_factors": 4, "n_restarts": 2, "n_solutions": 1, "passes": 1, "sample_cells": 1024}
FOLD_FIT = {name: value for name, value in FOLD.items() if name != "passes"}
FOLD |= {"folds": [0, 1]}
ALIGN = {"n_factors": 4, "n_starts": 1, "sample_cells": 8192}
CHOICE = {"n_factors": [2, 4], "n_restarts": 1, "sample_cells": 1024}
RUNS = {
    "default": ("siid", FAST),
    "held out": ("siid", SHORT | HELD_OUT),
    "dispersed, in parts": ("siid", SHORT | {"spots_model": NEGATIVE, "updates_per_pass": 2}),
    "tied": ("siid", SHORT | {"spot_scale": "tied"}),
    "several spots": ("siid", SHORT | {"n_spots_per_cell": 3}),
    "adam": ("siid", ADAM | {"solver": "adam"}),
    "alignment": ("siid_align", ALIGN),
    "impute": ("siid_impute", {"confidence": True}),
    "hold-out": ("siid_holdout", FOLD),
    "choice of passes": ("siid_choose_passes", FOLD_FIT | {"passes": [1, 2], "folds": [0]}),
    "choice of factors": ("siid_choose_factors", CHOICE),
    "hold-out, several spots": ("siid_holdout", FOLD | {"n_spots_per_cell": 3, "folds": [0]}),
}


def simulated(folder, n_cells):
    """Paths of the stores of a simulated pair, and its numbers of cells and spots."""
    model = pair_model(
        n_cells=n_cells, n_genes=N_GENES, n_panel=N_GENES, n_types=4, mean_total=40, seed=2
    )
    genes = [f"g{i}" for i in range(N_GENES)]
    for name, rows in (
        ("cells", model.cells(0, model.n_cells)),
        ("spots", model.spots(0, model.n_spots)),
    ):
        stdist.io.write(slides(rows.counts, rows.spatial, genes), folder / f"{name}.zarr")
    paths = {"data": str(folder / "cells.zarr"), "spots": str(folder / "spots.zarr")}
    return paths, model.n_cells, model.n_spots


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Stores of a simulated pair with more spots than genes, and a fit of it."""
    paths, n_cells, n_spots = simulated(tmp_path_factory.mktemp("pair"), N_CELLS)
    assert n_spots > N_GENES
    start(build("siid", paths | SHORT | {"n_solutions": 2}), InProcess(), block_length=1024)
    return paths, n_cells


def peak_of(paths, name, options):
    """Largest number of bytes that numbers take in a second run."""
    key = {"siid": "other", "siid_impute": "imputed"}.get(name, "scores")

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
    return peak


def peak_alone(paths, name, options):
    """The same in a process of its own that decodes one chunk at a time: always the same number."""
    with ProcessPoolExecutor(1, get_context("spawn"), one_chunk_at_a_time) as pool:
        return pool.submit(peak_of, paths, name, options).result()


def one_chunk_at_a_time():
    zarr.config.set({"async.concurrency": 1, "threading.max_workers": 1})


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), RUNS.values(), ids=RUNS)
def test_a_run_holds_no_array_of_cells_and_genes(pair, name, options):
    paths, n_cells = pair
    peak = peak_alone(paths, name, options) / (n_cells * N_GENES)
    # measured .65 to .71, the choice of factors .98, imputing 1.3: one of a byte would be too much
    assert peak < (2 if name == "siid_impute" else 1.5)


@pytest.mark.slow
def test_memory_hardly_grows_with_the_cells(pair, tmp_path):
    paths, n_cells = pair
    few, n_few, _ = simulated(tmp_path, N_CELLS // 4)
    more = peak_alone(paths, "siid", SHORT) - peak_alone(few, "siid", SHORT)
    assert more < 100 * (n_cells - n_few)  # places and orders; counts of a cell take 1200
