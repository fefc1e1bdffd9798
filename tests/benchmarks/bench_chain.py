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
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from stdist.kernels.poisson_match import match_soft
from stdist.store import Store
from stdist.store.writer import open_for_writing
from tests.benchmarks.bench_core import events, read_events, run, stage_table


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


def seconds_of(work: Callable[[], Any], repeats: int = 3) -> float:
    """Median seconds of repeated calls, after one that compiles."""
    work()
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return float(np.median(found))


def bare_costs(path: Path) -> dict[str, float]:
    """Seconds per row of one core: bare decoding, matching and encoding of one block of a store."""
    store = Store(path)
    coefficients = xr.open_zarr(path, group="uns/crescendo/coefficients", consolidated=False).load()
    n_clusters = coefficients.sizes["cluster"]
    length = min(65536, store.n_obs)
    start = (store.n_obs // 2) // length * length
    rows = start, min(store.n_obs, start + length)
    elements = [store.element(key) for key in ("X", "obsm/clusters", "obs/batch")]
    counts, weights, batch = (element.read(*rows) for element in elements)
    weights = np.ascontiguousarray(weights[:, :n_clusters], np.float32)
    depth = counts.sum(axis=1).astype(np.float64)
    model = (
        coefficients["intercept"].values + coefficients["batch_effect"].values,
        coefficients["cluster_effect"].values + coefficients["interaction"].values,
        coefficients["intercept"].values,
        coefficients["target_coefficients"].values,
    )
    keys = np.arange(counts.shape[1], dtype=np.uint64)
    corrected = store.element("layers/crescendo").read(*rows)
    n = rows[1] - rows[0]
    with tempfile.TemporaryDirectory() as scratch:
        copied = Path(scratch, "layer")
        copied.mkdir()
        shutil.copy(path / "layers" / "crescendo" / "zarr.json", copied)
        written = open_for_writing(copied)

        def encode() -> None:
            written[: len(corrected)] = corrected

        return {
            "decode": seconds_of(lambda: [element.read(*rows) for element in elements]) / n,
            "match": seconds_of(lambda: match_soft(counts, weights, batch, depth, *model, keys, 0))
            / n,
            "encode": seconds_of(encode) / n,
        }


def limit_of_crescendo(store: Path) -> list[str]:
    """Wall of each stage on two workers, against what its bare work takes on two cores.

    Bare: reading a block, the kernel, writing a block, each by itself, in this process and right
    after the run; the kernel seconds of stages other than matching are their CPU seconds.
    """
    lines = [
        "| crescendo stage | decode s | kernel s | encode s | limit s (2 cores) | wall s | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    bare, n_rows = bare_costs(store), Store(store).n_obs
    _, found = events(store, "crescendo")
    limits, walls = 0.0, 0.0
    for name in dict.fromkeys(event["stage"] for event in found):
        mine = [event for event in found if event["stage"] == name]
        by_rows = any(event["bytes_read"] for event in mine)
        decode = bare["decode"] * n_rows if by_rows else 0.0
        encode = bare["encode"] * n_rows if name == "match" else 0.0
        other = sum(event["read_seconds"] + event["write_seconds"] for event in mine)
        kernel = max(0.0, sum(event["cpu_seconds"] for event in mine) - other)
        if name == "match":
            kernel = bare["match"] * n_rows
        begun = min(event["started"] for event in mine)
        wall = max(event["started"] + event["seconds"] for event in mine) - begun
        limit = (decode + kernel + encode) / 2
        limits, walls = limits + limit, walls + wall
        lines.append(
            f"| {name} | {decode:.1f} | {kernel:.1f} | {encode:.1f} | {limit:.1f} | {wall:.1f} "
            f"| {wall / limit:.2f} |"
        )
    lines.append(f"| all | | | | {limits:.1f} | {walls:.1f} | {walls / limits:.2f} |")
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


def projection(recorded: dict[str, tuple[dict, list[dict]]], dispatch: float) -> list[str]:
    """Table of projected seconds per program; blocks, not items, cut into the smallest (16,384).

    The client's own work between stages is what it was in the run: wall less the stages.
    """
    lines = [
        "| program | task s | client s | 2 workers | 8 workers | 64 workers | 512 workers |",
        "|---|---|---|---|---|---|---|",
    ]
    for program, (facts, found) in recorded.items():
        pieces = max(1, facts["block_length"] // 16384)
        rounds: list[list[dict[str, Any]]] = []  # a stage's tasks, once for each pass over blocks
        for event in found:
            last = rounds[-1] if rounds else []
            same = last and last[-1]["stage"] == event["stage"]
            if not same or event["index"] in {other["index"] for other in last}:
                rounds.append([])
            rounds[-1].append(event)
        spans = [
            max(e["started"] + e["seconds"] for e in tasks) - min(e["started"] for e in tasks)
            for tasks in rounds
        ]
        ended = max(event["started"] + event["seconds"] for event in found)
        client = ended - min(event["started"] for event in found) - sum(spans)
        cells = []
        for workers in (2, 8, 64, 512):
            total = max(0.0, client)
            for tasks in rounds:
                seconds = [event["seconds"] for event in tasks]
                whole = not any(event["bytes_read"] for event in tasks)  # items of genes
                cut = pieces if workers > len(seconds) / 4 and not whole else 1
                seconds = [one / cut for one in seconds for _ in range(cut)]
                total += makespan(seconds, workers, dispatch)
            cells.append(f"{total:.1f}")
        spent = sum(event["seconds"] for event in found)
        lines.append(f"| {program} | {spent:.0f} | {client:.0f} | " + " | ".join(cells) + " |")
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
    print("| step | wall s | CPU s | peak of all processes, MiB | largest process, MiB | load |")
    print("|---|---|---|---|---|---|")
    store = options.out / "cohort.zarr"
    recorded: dict[str, tuple[dict, list[dict]]] = {}
    for name, arguments in chosen.items():
        tasks = options.out / f"{name}.jsonl"
        tasks.unlink(missing_ok=True)
        found = run(*arguments, tasks=tasks if name == "bvr_cvr" else None)
        memory = f"{found['peak'] / 2**20:.0f} | {found['largest'] / 2**20:.0f}"
        seconds = f"{found['seconds']:.1f} | {found['cpu']:.1f}"
        print(f"| {name} | {seconds} | {memory} | {os.getloadavg()[0]:.1f} |")
        sys.stdout.flush()
        if name == "bvr_cvr":
            happened = read_events(tasks)
            rows = -(-options.cells // sum(event["bytes_read"] > 0 for event in happened))
            recorded[name] = {"block_length": rows}, happened
        else:
            recorded[name] = events(options.out / "raw.zarr" if name == "simulate" else store, name)
        if name == "filter":
            shutil.rmtree(options.out / "raw.zarr")
    for program, happened in recorded.items():
        print("\n" + "\n".join(stage_table(program, *happened)), flush=True)
    if "crescendo" in recorded:
        print("\n" + "\n".join(limit_of_crescendo(store)))
    dispatch = dispatch_seconds()
    print(f"\nScheduler: {1e3 * dispatch:.2f} ms per task\n")
    print("\n".join(projection(recorded, dispatch)))


if __name__ == "__main__":
    main()
