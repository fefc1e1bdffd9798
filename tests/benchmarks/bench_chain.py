"""The whole chain on a simulated cohort: counts to corrected counts and their measure.

    python -m tests.benchmarks.bench_chain --cells 7000000 --genes 500 --batches 16 --out DIR

Runs the command line in child processes (2 workers) and samples the memory of all of them. Prints
Markdown for RESULTS.md: every step, every stage, what limits Crescendo's stages, and the projected
time on 8, 64 and 512 workers from the measured tasks. State the machine's load.
"""

from __future__ import annotations

import argparse
import heapq
import os
import shutil
import sys
import time
from pathlib import Path

from tests.benchmarks.bench_core import events, run, stage_table


def steps(options: argparse.Namespace) -> dict[str, list[str]]:
    """Command lines by name."""
    raw, store = str(options.out / "raw.zarr"), str(options.out / "cohort.zarr")
    size = ["--cells", str(options.cells), "--genes", str(options.genes)]
    workers = ["--workers", "2"]
    crescendo = ["--batch-key", "batch", "--clusters", "clusters", "--no-report"]
    return {
        "simulate": ["simulate", raw, *size, "--batches", str(options.batches), *workers],
        "filter": ["filter", raw, store, "--min-counts", "1", "--min-genes", "1", *workers],
        "normalize_total": ["run", "normalize_total", store, "--log1p", *workers],
        "pca": ["run", "pca", store, "--layer", "normalized", "--n-comps", "20", *workers],
        "harmony": [
            *("run", "harmony", store, "--batch-key", "batch"),
            *("--n-clusters", str(options.clusters), "--keep-clusters", "clusters", *workers),
        ],
        "crescendo": ["run", "crescendo", store, *crescendo, *workers],
        "bvr_cvr": [
            *("measure", "bvr-cvr", store, "--layer", "crescendo", "--batch-key", "batch"),
            *("--label-key", "cell_type", "--output", str(options.out / "bvr_cvr.csv"), *workers),
        ],
    }


def limit_of_crescendo(store: Path) -> list[str]:
    """Per stage: seconds of reading, kernel and writing, against workers times wall."""
    lines = [
        "| crescendo stage | read s | kernel s | write s | sum / 2 workers | wall s | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    _, found = events(store, "crescendo")
    for name in dict.fromkeys(event["stage"] for event in found):
        mine = [event for event in found if event["stage"] == name]
        read = sum(event["read_seconds"] for event in mine)
        written = sum(event["write_seconds"] for event in mine)
        kernel = sum(event["seconds"] for event in mine) - read - written
        begun = min(event["started"] for event in mine)
        wall = max(event["started"] + event["seconds"] for event in mine) - begun
        limit = (read + kernel + written) / 2
        lines.append(
            f"| {name} | {read:.1f} | {kernel:.1f} | {written:.1f} | {limit:.1f} | {wall:.1f} "
            f"| {wall / limit:.2f} |"
        )
    return lines


def makespan(tasks: list[float], workers: int, dispatch: float) -> float:
    """Seconds until `workers` have done the tasks in order, each handed out after `dispatch`."""
    free = [0.0] * min(workers, max(1, len(tasks)))
    heapq.heapify(free)
    for number, seconds in enumerate(tasks):
        begin = max(heapq.heappop(free), (number + 1) * dispatch)
        heapq.heappush(free, begin + seconds)
    return max(free)


def dispatch_seconds() -> float:
    """Seconds of the scheduler per task, measured with tasks that do nothing."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        client.gather(client.map(abs, range(100)))
        started = time.perf_counter()
        client.gather(client.map(abs, range(1000, 6000)))
        return (time.perf_counter() - started) / 5000


def projection(store: Path, programs: list[str], dispatch: float) -> list[str]:
    """Table of projected seconds per program, tasks cut into the smallest blocks (16,384 rows)."""
    lines = [
        "| program | measured task s | 2 workers | 8 workers | 64 workers | 512 workers |",
        "|---|---|---|---|---|---|",
    ]
    for program in programs:
        facts, found = events(store, program)
        pieces = max(1, facts["block_length"] // 16384)
        names = list(dict.fromkeys(event["stage"] for event in found))
        cells = []
        for workers in (2, 8, 64, 512):
            total = 0.0
            for name in names:
                tasks = [event["seconds"] for event in found if event["stage"] == name]
                cut = pieces if workers > len(tasks) / 4 else 1
                tasks = [seconds / cut for seconds in tasks for _ in range(cut)]
                total += makespan(tasks, workers, dispatch)
            cells.append(f"{total:.1f}")
        spent = sum(event["seconds"] for event in found)
        lines.append(f"| {program} | {spent:.0f} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=7_000_000)
    parser.add_argument("--genes", type=int, default=500)
    parser.add_argument("--batches", type=int, default=16)
    parser.add_argument("--clusters", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("bench-chain"))
    parser.add_argument("--only", nargs="*", help="steps to run on what is there")
    options = parser.parse_args()
    chosen = steps(options)
    if options.only:
        chosen = {name: chosen[name] for name in options.only}
    else:
        shutil.rmtree(options.out, ignore_errors=True)
        options.out.mkdir(parents=True)
    print(f"\n{options.cells} cells x {options.genes} genes, {options.batches} batches, "
          f"{options.clusters} clusters; {os.cpu_count()} cores\n")  # fmt: skip
    print("| step | wall s | peak of all processes, MiB | largest process, MiB | load |")
    print("|---|---|---|---|---|")
    store = options.out / "cohort.zarr"
    for name, arguments in chosen.items():
        found = run(*arguments)
        memory = f"{found['peak'] / 2**20:.0f} | {found['largest'] / 2**20:.0f}"
        print(f"| {name} | {found['seconds']:.1f} | {memory} | {os.getloadavg()[0]:.1f} |")
        sys.stdout.flush()
        if name == "filter":
            shutil.rmtree(options.out / "raw.zarr")
    programs = [
        name for name in ("normalize_total", "pca", "harmony", "crescendo") if name in chosen
    ]
    for program in programs:
        print("\n" + "\n".join(stage_table(store, program)), flush=True)
    if "crescendo" in programs:
        print("\n" + "\n".join(limit_of_crescendo(store)))
    dispatch = dispatch_seconds()
    print(f"\nScheduler: {1e3 * dispatch:.2f} ms per task\n")
    print("\n".join(projection(store, programs, dispatch)))


if __name__ == "__main__":
    main()
