"""Deconvolution of simulated pairs beside the reference's own optimiser.

Run ``python -m tests.benchmarks.siid_simulated [--seeds 3]`` in the root of the repository. Pairs
have the true profiles of the recorded simulation `sim_h8`: six of its types on 90 genes and 600
cells, and each of its eight twice, with factors exp(N(0, 1)) on every gene, on 2000 cells with a
quarter of the counts.
Adam is ``solver="adam"``, which repeats the recorded steps of the reference, with its entropy
(lambda 500) and 5001 steps. JS is the mean divergence (nat) between true and estimated proportions
of the spots, of every seed, and of that of lowest loss.
"""

from __future__ import annotations

import argparse
import time
import warnings
from typing import Any

import numpy as np

import stdist
from stdist.kernels.imputation_scores import matched_js
from stdist.kernels.pair_simulation import pair_model
from stdist.store import StdistWarning
from tests.benchmarks.siid_quality import FIXTURES, slides

SIMULATIONS: dict[str, dict[str, Any]] = {
    "6 types, 600 x 90": {"n_types": 6, "n_cells": 600, "n_genes": 90, "share": 1.0},
    "16 types, 2000 x 200, quarter of the counts": {
        **{"n_types": 16, "n_cells": 2000, "n_genes": 200, "share": 0.25}
    },
}
SOLVERS: dict[str, dict[str, Any]] = {
    "stdist": {},
    "Adam": {"solver": "adam", "entropy_schedule": 500.0, "n_restarts": 1},
}


def pair(n_types: int, n_cells: int, n_genes: int, share: float, seed: int) -> tuple[Any, ...]:
    """Cells, spots, and true counts of types in the spots."""
    recorded = np.load(FIXTURES / "dataset_sim_h8.npz")
    rng = np.random.default_rng(seed)
    own = recorded["true_profiles"]
    types = own[rng.permutation(max(n_types, len(own)))[:n_types] % len(own)]
    if n_types > len(own):
        types = types * np.exp(rng.normal(size=types.shape))
    model = pair_model(
        n_cells=n_cells,
        n_genes=n_genes,
        n_types=n_types,
        profiles=types[:, rng.permutation(types.shape[1])[:n_genes]],
        mean_total=share * float(recorded["true_cell_umi"].mean()) * n_genes / types.shape[1],
        seed=seed,
    )
    cells, spots = model.cells(0, model.n_cells), model.spots(0, model.n_spots)
    genes = [f"g{number}" for number in range(n_genes)]
    slide_of = [slides(one.counts, one.spatial, genes) for one in (cells, spots)]
    return *slide_of, spots.type_total


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = parser.parse_args().seeds
    warnings.simplefilter("ignore", StdistWarning)
    print("| simulation | solver | JS of each seed | of lowest loss | hard | CPU s a fit |")
    print("|---|---|---|---|---|---|")
    for name, size in SIMULATIONS.items():
        given, spots, truth = pair(**size, seed=0)
        for solver, options in SOLVERS.items():
            began, found = time.process_time(), []
            for seed in range(seeds):
                cells = given.copy()
                stdist.tl.siid(
                    cells,
                    spots=spots,
                    n_factors=size["n_types"],
                    rng=seed,
                    n_solutions=1,
                    controls=False,
                    progress=False,
                    **options,
                )
                factors = cells.uns["siid"]["factors"]
                js = [
                    float(np.nanmean(matched_js(truth, factors[kind].values)[0]))
                    for kind in ("spot_proportion", "spot_proportion_hard")
                ]
                found.append((float(factors["type_loss"].values.sum(axis=1).min()), *js))
            spent = (time.process_time() - began) / seeds
            _, soft, hard = min(found)
            each = " ".join(f"{js:.4f}" for _, js, _ in found)
            print(f"| {name} | {solver} | {each} | {soft:.4f} | {hard:.4f} | {spent:.1f} |")


if __name__ == "__main__":
    main()
