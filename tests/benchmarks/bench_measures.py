"""CPU and memory of the measures of space: python -m tests.benchmarks.bench_measures.

A simulated store of 200,000 cells x 300 genes with 12 types (132 ordered pairs) in 4 slices. Every
measure runs in a process of its own, on one worker that is a thread of it (OMP_NUM_THREADS=1
OPENBLAS_NUM_THREADS=1); CPU seconds are those of the call, memory is the peak of the resident set.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from distributed import Client

import stdist

CELLS, GENES, PAIRS, PERMUTATIONS = 200_000, 300, 1000, 32
KEYS = {"label_key": "cell_type", "slice_key": "batch"}


def measures(store: Path) -> dict[str, Callable[[], Any]]:
    """Calls by name."""
    names = np.array(stdist.io.open(store).var_names.astype(str))
    chosen = np.random.default_rng(0).choice(GENES**2, PAIRS, replace=False)
    pairs = pd.DataFrame({"ligand": names[chosen // GENES], "receptor": names[chosen % GENES]})
    return {
        f"SCI, {PAIRS} gene pairs": lambda: stdist.metrics.sci(store, pairs=pairs, **KEYS),
        f"SCI, all {GENES**2} gene pairs": lambda: stdist.metrics.sci(store, **KEYS),
        "Moran's I": lambda: stdist.metrics.morans_i(store, slice_key="batch"),
        f"ligand-receptor, {PAIRS} pairs, {PERMUTATIONS} permutations": (
            lambda: stdist.metrics.ligand_receptor(
                store, pairs=pairs, n_permutations=PERMUTATIONS, **KEYS
            )
        ),
    }


def main() -> None:
    """Print a row for each measure; with a store and a number, run that one."""
    if len(sys.argv) > 1:
        call = list(measures(Path(sys.argv[1])).values())[int(sys.argv[2])]
        with Client(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None):
            began = time.process_time()
            call()
            seconds = time.process_time() - began
        found = seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps(found))
        return
    print(f"| {CELLS} cells x {GENES} genes | CPU s | peak MiB |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "cohort.zarr"
        stdist.simulate(store, n_cells=CELLS, n_genes=GENES)
        for number, name in enumerate(measures(store)):
            command = [sys.executable, "-m", __spec__.name, str(store), str(number)]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            seconds, peak = json.loads(printed.splitlines()[-1])
            print(f"| {name} | {seconds:.1f} | {peak / 1024:.0f} |", flush=True)


if __name__ == "__main__":
    main()
