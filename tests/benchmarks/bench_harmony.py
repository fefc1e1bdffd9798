"""Harmony on a store against harmonypy in memory: python tests/benchmarks/bench_harmony.py.

    python tests/benchmarks/bench_harmony.py --cells 1000000 --repeats 3
    python tests/benchmarks/bench_harmony.py --cells 7000000 --repeats 1 --only stdist

Simulated embedding (20 dimensions, 16 batches of unequal size, 40 cell types, effects of batch
and of batch in type), 100 clusters, defaults of both programs. Each run is a child process, the
programs in turn; harmonypy has two threads, stdist two workers of one thread (in the process of
the client, and in processes of their own). Seconds are
those of the call (data read by harmonypy's child and workers started before); memory is the peak
of the proportional set size over all processes of the child, sampled ten times a second, and of
the largest of them. The first run of a new installation compiles kernels: medians of three are
without that. Mixing is the share of cells of other batches among 30 neighbours, on 20,000 cells.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil

DIMS, BATCHES, TYPES, CHECKED = 20, 16, 40, 20_000
PROGRAMS = ["harmonypy", "stdist", "stdist, processes"]


def simulate(n_cells: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Embedding and batch of each cell."""
    rng = np.random.default_rng(seed)
    scale = np.linspace(2, 0.4, DIMS)
    types = rng.choice(TYPES, n_cells, p=rng.dirichlet(np.full(TYPES, 2.0)))
    batch = rng.choice(BATCHES, n_cells, p=rng.dirichlet(np.full(BATCHES, 5.0)))
    centres = rng.normal(0, 4, (TYPES, DIMS)) * scale
    effects = rng.normal(0, 1.5, (BATCHES, DIMS)) * scale
    inner = rng.normal(0, 0.7, (BATCHES, TYPES, DIMS))
    values = rng.normal(size=(n_cells, DIMS)).astype(np.float32)
    for first in range(0, n_cells, 2**18):
        rows = slice(first, first + 2**18)
        t, b = types[rows], batch[rows]
        values[rows] += (centres[t] + effects[b] + inner[b, t]).astype(np.float32)
    return values, batch


def write(path: Path, n_cells: int) -> None:
    """Make the store, and the same numbers for harmonypy."""
    import anndata
    import pandas as pd
    from scipy import sparse

    import stdist

    values, batch = simulate(n_cells)
    np.savez(path / "cells.npz", values=values, batch=batch)
    np.save(path / "checked.npy", batch[:CHECKED])
    names = np.arange(n_cells).astype(str)
    adata = anndata.AnnData(
        sparse.csr_matrix((n_cells, 1), dtype=np.float32),
        pd.DataFrame({"batch": pd.Categorical(batch.astype(str))}, index=names),
        obsm={"X_pca": values},
    )
    stdist.io.write(adata, path / "cells.zarr")


def run_harmonypy(path: Path) -> tuple[float, np.ndarray]:
    """Seconds and corrected rows of the cells that are checked."""
    import harmonypy
    import pandas as pd

    with np.load(path / "cells.npz") as arrays:
        values, batch = arrays["values"], arrays["batch"]
    frame = pd.DataFrame({"batch": batch})
    begun = time.perf_counter()
    found = harmonypy.run_harmony(values, frame, "batch", verbose=False, ncores=2)
    corrected = found.Z_corr
    seconds = time.perf_counter() - begun
    print("iterations", len(found.objective_harmony) - 1, file=sys.stderr)
    return seconds, corrected[:CHECKED]


def run_stdist(path: Path, processes: bool) -> tuple[float, np.ndarray]:
    """Seconds and corrected rows of the cells that are checked."""
    from distributed import Client, LocalCluster

    import stdist
    from stdist.store import Store

    store = path / "cells.zarr"
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=processes, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        begun = time.perf_counter()
        folder = stdist.pp.harmony(
            store, batch_key="batch", client=client, overwrite=True, progress=False
        )
        seconds = time.perf_counter() - begun
    tasks: dict[str, list[float]] = {}
    for line in (folder / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        tasks.setdefault(event["stage"], []).append(event["cpu_seconds"])
    for stage, found in tasks.items():
        print(f"{stage}: {len(found)} tasks, {sum(found):.1f} s of CPU", file=sys.stderr)
    return seconds, Store(store).element("obsm/X_pca_harmony").read(0, CHECKED)


def mixing(corrected: np.ndarray, batch: np.ndarray) -> float:
    """Share of other batches among 30 neighbours."""
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(n_neighbors=31).fit(corrected).kneighbors(return_distance=False)
    return float((batch[index] != batch[: len(corrected), None]).mean())


def child(program: str, path: Path) -> dict[str, float]:
    """Run a program in a process of its own and watch its memory."""
    command = [sys.executable, "-W", "ignore", __file__, "--child", program, "--out", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    watched, peak, done = psutil.Process(process.pid), [0, 0], threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            sizes = []
            with suppress(psutil.NoSuchProcess):
                for one in [watched, *watched.children(recursive=True)]:
                    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                        sizes.append(one.memory_full_info().pss)
            peak[0], peak[1] = max(peak[0], sum(sizes)), max([peak[1], *sizes])

    watcher = threading.Thread(target=watch)
    watcher.start()
    out, _ = process.communicate()
    done.set()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{program}: exit code {process.returncode}")
    return json.loads(out.splitlines()[-1]) | {"peak": peak[0], "largest": peak[1]}


def main() -> None:
    """Run the benchmark."""
    from stdist.store import Store

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=PROGRAMS, action="append")
    parser.add_argument("--out", type=Path, help="folder for the data; kept")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child == "write":
        write(options.out, options.cells)
        return
    if options.child:
        if options.child == "harmonypy":
            seconds, corrected = run_harmonypy(options.out)
        else:
            seconds, corrected = run_stdist(options.out, options.child == "stdist, processes")
        np.save(options.out / "corrected.npy", corrected)
        print(json.dumps({"seconds": seconds}))
        return
    with tempfile.TemporaryDirectory() as scratch:
        path = options.out or Path(scratch)
        path.mkdir(exist_ok=True)
        if not (path / "cells.zarr").exists():
            cells = ["--cells", str(options.cells)]
            subprocess.run(
                [sys.executable, __file__, "--child", "write", *cells, "--out", str(path)],
                check=True,
            )
        programs = options.only or PROGRAMS
        found: dict[str, list[dict[str, float]]] = {program: [] for program in programs}
        for _ in range(options.repeats):
            for program in programs:
                measured = child(program, path)
                if program != "harmonypy":  # read here: anndata's memory is not the program's
                    rounds = Store(path / "cells.zarr").uns("X_pca_harmony")["rounds"]
                    print("rounds", rounds, file=sys.stderr)
                score = mixing(np.load(path / "corrected.npy"), np.load(path / "checked.npy"))
                found[program].append(measured | {"mixing": score})
    load = os.getloadavg()[0]
    print(f"\n{options.cells} cells, {DIMS} dimensions, {BATCHES} batches, medians of "
          f"{options.repeats}; load average at the end {load:.1f}\n")  # fmt: skip
    print("| program | seconds | all | peak, MiB | largest process, MiB | mixing |")
    print("|---|---|---|---|---|---|")
    for program, runs in found.items():
        median = {name: float(np.median([run[name] for run in runs])) for name in runs[0]}
        every = ", ".join(f"{run['seconds']:.1f}" for run in runs)
        print(
            f"| {program} | {median['seconds']:.1f} | {every} | {median['peak'] / 2**20:.0f} "
            f"| {median['largest'] / 2**20:.0f} | {median['mixing']:.3f} |"
        )


if __name__ == "__main__":
    main()
