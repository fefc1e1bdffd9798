"""CPU of a pass of SIID against the counts: python -m tests.benchmarks.siid_passes.

Simulated pairs of 300 genes at 1, 3 and 10 times 5000 cells, one after the other in one process,
one thread (OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1). CPU seconds are those of the tasks of all
passes, reading and writing of rows included, divided by the passes; the least of some repeats.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from pathlib import Path

import anndata
import numpy as np

import stdist
from stdist.kernels.pair_simulation import pair_model
from stdist.store import StdistWarning

CELLS, GENES, FACTORS, PASSES, REPEATS = 5000, 300, 8, 20, 3


def measure(folder: Path, times: int) -> tuple[int, float]:
    """Counts of both slides that are not zero, and CPU seconds of a pass."""
    model = pair_model(n_cells=times * CELLS, n_genes=GENES, n_panel=GENES, n_types=FACTORS, seed=1)
    non_zero = 0
    for name, rows in (
        ("cells", model.cells(0, model.n_cells)),
        ("spots", model.spots(0, model.n_spots)),
    ):
        adata = anndata.AnnData(rows.counts)
        adata.obsm["spatial"] = rows.spatial
        non_zero += int(np.count_nonzero(rows.counts.data))
        stdist.io.write(adata, folder / f"{name}.zarr")
    found = []
    for _ in range(REPEATS):
        run = stdist.tl.siid(
            folder / "cells.zarr", spots=folder / "spots.zarr", n_factors=FACTORS, n_solutions=1,
            n_restarts=1, passes=PASSES, deconvolve=False, controls=False,
            overwrite=True, progress=False,
        )  # fmt: skip
        events = map(json.loads, (run / "events.jsonl").read_text().splitlines())
        mine = [event["cpu_seconds"] for event in events if event["stage"] == "solution0_pass"]
        found.append(sum(mine) / PASSES)
    return non_zero, min(found)


def main() -> None:
    """Print a row for each size."""
    warnings.simplefilter("ignore", StdistWarning)
    print("| cells | counts not zero | ms of CPU a pass | ns a count |\n|---|---|---|---|")
    for times in (1, 3, 10):
        with tempfile.TemporaryDirectory() as folder:
            non_zero, seconds = measure(Path(folder), times)
        cost = f"{1e3 * seconds:.1f} | {1e9 * seconds / non_zero:.1f}"
        print(f"| {times * CELLS} | {non_zero} | {cost} |", flush=True)


if __name__ == "__main__":
    main()
