"""Passes and CPU seconds of SIID to the final loss of its reference, on recorded folds.

Run ``python -m tests.benchmarks.siid_cost [--folds 0 1 2 3] [--seeds 8]`` in the root of the
repository; OMP_NUM_THREADS=1 and OPENBLAS_NUM_THREADS=1 make CPU seconds comparable. Every start
is fitted to all cells as `stdist.tl.siid` fits its sample (three E-steps a pass), and the first
pass is sought whose loss, that of cells and spots, is not above that of the reference after 5001
steps. Three rules, by what a user pays: ``seed``, one start alone; ``chosen``, the start with the
lowest loss after 50 passes of all, which are counted; ``short``, the same after 15.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import anndata
import numpy as np

from stdist.kernels.poisson_factors import tile_pass
from stdist.kernels.poisson_factors_global import GlobalStep, global_step, next_exponent
from stdist.kernels.poisson_factors_start import start_factors, start_rows
from stdist.kernels.spot_map import nearest_spots
from stdist.methods.data import open_data
from stdist.methods.siid.pair import Pair, read_counts
from stdist.methods.siid.spec import EXPONENT, SiidSpec
from tests.benchmarks.siid_quality import FIXTURES, SHARED, simulation

LONG, SHORT, MOST = 50, 15, 150
"""Passes before a start is chosen, and at most."""
SIM_CPU = 32.0
"""CPU seconds of a run of the reference on sim_h8 (specification, addendum: 31 to 33)."""


class Fold:
    """A pair without a fold of genes, in memory."""

    def __init__(self, cells: Any, spots: Any, held: list[str], n_factors: int) -> None:
        spec = SiidSpec(n_factors=n_factors, held_out=held)
        pair = Pair(open_data(cells), open_data(spots), spec)
        rows = (0, pair.cells.n_obs), (0, pair.spots.n_obs)
        counts, above = pair.counts.read(*rows[0]), pair.spot_counts.read(*rows[1])
        self.cells = read_counts(counts, rows[0], pair.panel_columns, "cells")
        self.spots = read_counts(above, rows[1], pair.spot_columns, "spots")
        points = pair.cell_places(rows[0])
        self.spot = nearest_spots(points, pair.places, spec.max_distance).spot
        self.n_panel, self.n_factors = pair.n_panel, n_factors

    def fit(self, seed: int, target: float) -> tuple[np.ndarray, np.ndarray]:
        """Losses before each pass, and CPU seconds since the start after it."""
        settings = SiidSpec(n_factors=self.n_factors).settings()
        profile = np.asarray(self.spots.sum(axis=0), np.float64).ravel()
        Q, numbers = start_factors(profile, self.n_factors, seed), np.arange(len(self.spot))
        rows = start_rows(self.cells, self.spots, self.spot, numbers, self.n_factors, seed)
        step = GlobalStep(Q, np.ones(len(profile)), np.ones(self.n_factors))
        losses: list[float] = []
        seconds: list[float] = []
        began, exponent = time.process_time(), 1.0
        while len(losses) < (LONG if losses and min(losses) <= target else MOST):
            rows, total = tile_pass(
                self.cells, self.spots, self.spot, rows, step.Q, step.phi, settings, step.gauge
            )
            loss = float(total["loss_x"] + total["loss_v"])
            exponent = next_exponent(exponent, loss, losses[-1] if losses else np.inf, EXPONENT)
            step = global_step(total, step.Q, step.phi, self.n_panel, exponent=exponent)
            losses.append(loss)
            seconds.append(time.process_time() - began)
        return np.array(losses), np.array(seconds)


def first(losses: np.ndarray, target: float) -> int | None:
    """Passes made when the loss was at the target."""
    reached = np.flatnonzero(losses <= target)
    return int(reached[0]) + 1 if len(reached) else None


def measure(name: str, fold: int, data: Fold, target: float, cpu: float, n_seeds: int) -> str:
    """One row of the table."""
    fits = [data.fit(seed, target) for seed in range(n_seeds)]
    passes = [first(losses, target) for losses, _ in fits]
    per_pass = float(np.median([seconds[-1] / len(seconds) for _, seconds in fits]))
    listed = " ".join("-" if n is None else str(n) for n in passes)
    cells = [f"{name} {fold}", listed, f"{1000 * per_pass:.0f}"]
    reached = [n for n in passes if n is not None]
    cells.append(f"{cpu / (np.median(reached) * per_pass):.0f}" if reached else "-")
    for before in (LONG, SHORT):
        best = int(np.argmin([losses[before - 1] for losses, _ in fits]))
        own = passes[best]
        if own is None:
            cells.append("never")
            continue
        paid = n_seeds * before + max(0, own - before)
        cells.append(f"{own} ({paid}, {paid * per_pass:.1f} s, 1/{cpu / (paid * per_pass):.0f})")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--seeds", type=int, default=8)
    arguments = parser.parse_args()
    print("| fold | passes of each seed | ms a pass | seed: 1/CPU | chosen: passes | short |")
    print("|---|---|---|---|---|---|")
    cells, spots, folds, _ = simulation()
    recorded = json.loads((FIXTURES / "holdout_sim_h8_and_osm.json").read_text())["sim_ref"]
    ends = {run["fold"]: sum(run["loss"][-1][2:4]) for run in recorded}
    for fold in arguments.folds:
        held = [name for name, number in folds.items() if number == fold]
        data = Fold(cells, spots, held, 8)
        print(measure("sim_h8", fold, data, ends[fold], SIM_CPU, arguments.seeds), flush=True)
    facts = json.loads((FIXTURES / "breast_pair_open.json").read_text())
    pair = [
        anndata.read_h5ad(SHARED / f"data/breast_pair_{slide}.h5ad")
        for slide in ("xenium", "visium")
    ]
    for fold in arguments.folds:
        of_fold = zip(facts["genes"], facts["fold_of_gene"], strict=True)
        data = Fold(*pair, [name for name, number in of_fold if number == fold], 15)
        found = facts["per_fold"][str(fold)]["reference"]
        end = sum(found["curve_epoch_total_X_V_r2_cpu"][-1][2:4])
        print(measure("breast", fold, data, end, found["cpu"], arguments.seeds), flush=True)


if __name__ == "__main__":
    main()
