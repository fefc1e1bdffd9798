"""How often `stdist.tl.siid_align` is right where it says so, and silent where it should be.

Run ``python -m tests.benchmarks.siid_alignment [--seeds 0 20] [--cases NAME ...]`` in the root of
the repository; OMP_NUM_THREADS=1 and OPENBLAS_NUM_THREADS=1 make CPU seconds comparable. Every
seed is a tissue of its own (2500 cells, 100 genes, 6 types, about 95 spots where a case does not
say otherwise), its spots shifted by up to 80 um in a random direction and turned by up to half a
degree. The error is the root mean square distance of the spots from where they belong. ``--real``
shows what is said about the breast pair, whose truth nobody knows.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata
import numpy as np
from scipy import sparse

import stdist
from stdist.kernels.pair_simulation import PairModel, pair_model
from stdist.store import StdistWarning

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
TOLERANCE = 15.0
MODEL = {"n_cells": 2500, "n_genes": 100, "n_types": 6, "square": 150.0}


def as_drawn(model: PairModel, rng: np.random.Generator) -> PairModel:
    """Spots that capture the cells of the other slide themselves."""
    return model


def next_section(model: PairModel, rng: np.random.Generator) -> PairModel:
    """Spots that capture other cells of the same tissue."""
    return replace(model, tissue=replace(model.tissue, seed=model.tissue.seed + 1000))


def other_tissue(model: PairModel, rng: np.random.Generator) -> PairModel:
    """Spots of a tissue of the same types, arranged otherwise."""
    options = {**MODEL, "square": model.tissue.square, "seed": model.tissue.seed + 1000}
    return replace(model, tissue=pair_model(**options).tissue)


def as_counted(counts: Any, rng: np.random.Generator) -> Any:
    """Leave the counts as they are."""
    return counts


def noisy(counts: Any, rng: np.random.Generator) -> Any:
    """Overdisperse: every count of a spot has a factor of its own, of standard deviation 0.5."""
    dense = counts.toarray() * rng.gamma(4.0, 0.25, counts.shape)
    return sparse.csr_matrix(rng.poisson(dense))


def bleeding(counts: Any, rng: np.random.Generator) -> Any:
    """Half of the counts are those of all spots."""
    dense = counts.toarray().astype(float)
    return sparse.csr_matrix(rng.poisson(0.5 * dense + 0.5 * dense.mean(axis=0)))


def permuted(counts: Any, rng: np.random.Generator) -> Any:
    """Spots have each other's counts."""
    return counts[rng.permutation(counts.shape[0])]


Case = tuple[dict[str, Any], Callable, Callable]
CASES: dict[str, Case] = {
    "plain": ({}, as_drawn, as_counted),
    "next section": ({}, next_section, as_counted),
    "next section, noisy": ({}, next_section, noisy),
    "next section, bleeding": ({}, next_section, bleeding),
    "1000 cells": ({"n_cells": 1000}, next_section, as_counted),
    "20 counts per cell": ({"mean_total": 20.0}, next_section, as_counted),
    "types alike": ({"type_sigma": 0.15}, next_section, as_counted),
    "squares of 400 um": ({"square": 400.0}, next_section, as_counted),
    "squares of 50 um": ({"square": 50.0}, next_section, as_counted),
    "squares of 20 um": ({"square": 20.0}, next_section, as_counted),
    "hopeless: no structure": ({"square": 5.0}, next_section, as_counted),
    "hopeless: permuted": ({}, as_drawn, permuted),
    "hopeless: other tissue": ({}, other_tissue, as_counted),
    "hopeless: other, 400 um": ({"square": 400.0}, other_tissue, as_counted),
}


def slide(counts: Any, places: np.ndarray) -> anndata.AnnData:
    """Make one slide."""
    adata = anndata.AnnData(sparse.csr_matrix(counts, dtype=np.float32))
    adata.var_names = [f"gene_{g:04d}" for g in range(adata.n_vars)]
    adata.obsm["spatial"] = np.asarray(places, np.float64)
    return adata


def trial(case: Case, seed: int, **options: Any) -> tuple[bool, float, dict[str, Any]]:
    """Whether a move was said to be recovered, its error in um, and all numbers."""
    changed, captured, counted = case
    rng = np.random.default_rng(seed)
    model = pair_model(**{**MODEL, "seed": seed, **changed})
    block = model.cells(0, model.n_cells)
    cells = slide(block.counts, block.spatial)
    above = captured(model, rng)
    spots = above.spots(0, above.n_spots)
    true = spots.spatial.astype(np.float64)
    direction, angle = rng.uniform(0, 2 * np.pi), np.deg2rad(rng.uniform(-0.5, 0.5))
    shift = rng.uniform(0, 80) * np.array([np.cos(direction), np.sin(direction)])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    wrong = (true - true.mean(axis=0)) @ turn.T + true.mean(axis=0) + shift
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StdistWarning)
        stdist.tl.siid_align(
            cells, spots=slide(counted(spots.counts, rng), wrong), rng=seed, **options
        )
    found = cells.uns["siid_align"]
    there = np.column_stack([wrong, np.ones(len(wrong))]) @ found["best_transform"].T
    error = float(np.sqrt(((there[:, :2] - true) ** 2).sum(axis=1).mean()))
    return found["recovered"], error, found


def simulated(names: list[str], seeds: range, n_factors: int) -> None:
    """Print one row per case."""
    print(
        "| case | recovered | of these wrong by > 15 um | error of these, median / largest (um) | "
        "stated standard error, median | error where refused, median | CPU s |\n"
        "|---|---|---|---|---|---|---|"
    )
    for name in names:
        began = time.process_time()
        trials = [trial(CASES[name], seed, n_factors=n_factors) for seed in seeds]
        spent = (time.process_time() - began) / len(trials)
        said = [error for recovered, error, _ in trials if recovered]
        refused = [error for recovered, error, _ in trials if not recovered]
        stated = [found["standard_error"] for recovered, _, found in trials if recovered]
        wrong = sum(error > TOLERANCE for error in said)
        print(
            f"| {name} | {len(said)} of {len(trials)} | {wrong} | "
            f"{_number(said, np.median)} / {_number(said, np.max)} | {_number(stated, np.median)} "
            f"| {_number(refused, np.median)} | {spent:.1f} |",
            flush=True,
        )


def _number(values: list[float], statistic: Callable) -> str:
    return f"{statistic(values):.1f}" if values else "-"


def real() -> None:
    """Print what is said about the breast pair, with its spots also shifted on purpose."""
    cells = anndata.read_h5ad(SHARED / "data/breast_pair_xenium.h5ad")
    spots = anndata.read_h5ad(SHARED / "data/breast_pair_visium.h5ad")
    for n_factors in (8, 15, 25):
        for shift in ((0, 0), (40, -30)):
            above = spots.copy()
            above.obsm["spatial"] = np.asarray(spots.obsm["spatial"], float) + shift
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", StdistWarning)
                stdist.tl.siid_align(
                    cells, spots=above, n_factors=n_factors, overwrite=True, max_shift=150.0
                )
            found = cells.uns["siid_align"]
            move = np.asarray(found["shift"]) + shift
            print(f"{n_factors} factors, shifted by {shift}: {move.round(1)}, {found['message']}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs=2, type=int, default=(0, 20))
    parser.add_argument("--cases", nargs="+", default=list(CASES))
    parser.add_argument("--n-factors", type=int, default=6)
    parser.add_argument("--real", action="store_true")
    chosen = parser.parse_args()
    if chosen.real:
        real()
    else:
        simulated(chosen.cases, range(*chosen.seeds), chosen.n_factors)
