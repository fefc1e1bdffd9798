"""The whole way on a simulated cohort: time, memory, bytes and scaling of every step.

    python tests/benchmarks/bench_core.py --cells 1000000 --genes 500 --batches 8 --out DIR

Runs the command line in child processes and samples the resident memory of all of them. Prints
Markdown for RESULTS.md. Ratios are taken within one run of this script; state the machine's load.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil


def resident(process: psutil.Process) -> tuple[int, dict[int, int]]:
    """Resident bytes of a process and its children, and of each."""
    each = {}
    for one in [process, *process.children(recursive=True)]:
        try:
            info = one.memory_full_info()
            each[one.pid] = info.pss  # shared libraries are counted once
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return sum(each.values()), each


def run(*arguments: str) -> dict[str, float]:
    """Run a command of stdist; return seconds, CPU seconds, and the peak of all its processes."""
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "stdist", *arguments]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    process, peak, done = psutil.Process(child.pid), [0, 0], threading.Event()

    def watch() -> None:
        while not done.wait(0.25):
            try:
                total, each = resident(process)
            except psutil.NoSuchProcess:
                return
            peak[0] = max(peak[0], total)
            peak[1] = max([peak[1], *each.values()])

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = child.wait()
    done.set()
    watcher.join()
    if code:
        raise SystemExit(f"{arguments}: exit code {code}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "cpu": cpu, "peak": peak[0], "largest": peak[1]}


def events(store: Path, program: str) -> tuple[dict, list[dict]]:
    """Record and task events of the newest run of a program."""
    folder = sorted((store / ".stdist" / "runs").glob(f"{program}-*"))[-1]
    lines = (folder / "events.jsonl").read_text().splitlines()
    return json.loads((folder / "run.json").read_text()), [json.loads(line) for line in lines]


def stage_table(store: Path, program: str) -> list[str]:
    """Per stage: tasks, task seconds, share, MB/s, planned and measured memory."""
    facts, found = events(store, program)
    total = sum(event["seconds"] for event in found)
    rows = [
        f"| {program} stage | tasks | task s | share | read MB/s | write MB/s "
        "| projected MiB | peak MiB | ratio |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for stage in facts["plan"]["stages"]:
        mine = [event for event in found if event["stage"] == stage["name"]]
        if not mine:
            continue
        seconds = sum(event["seconds"] for event in mine)
        read = sum(event["bytes_read"] for event in mine) / 1e6 / seconds
        written = sum(event["bytes_written"] for event in mine) / 1e6 / seconds
        peak = max(event["peak_bytes"] for event in mine)
        rows.append(
            f"| {stage['name']} | {len(mine)} | {seconds:.1f} | {seconds / total:.0%} | {read:.0f} "
            f"| {written:.0f} | {stage['memory'] / 2**20:.0f} | {peak / 2**20:.0f} "
            f"| {stage['memory'] / peak:.2f} |"
        )
    return rows


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=1_000_000)
    parser.add_argument("--genes", type=int, default=500)
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("bench-core"))
    options = parser.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    simulated, store = options.out / "simulated.zarr", options.out / "cohort.zarr"
    size = ["--cells", str(options.cells), "--genes", str(options.genes)]
    crescendo = [str(store), "--batch-key", "batch", "--clusters", "cell_type"]
    steps = {
        "simulate": ["simulate", str(simulated), *size, "--batches", str(options.batches)],
        "convert": ["convert", str(simulated), str(store)],
        "plan": ["plan", "crescendo", *crescendo],
        "run, 1 worker": ["run", "crescendo", *crescendo, "--workers", "1"],
        "run, 2 workers": ["run", "crescendo", *crescendo, "--workers", "2", "--overwrite"],
        "verify": ["verify", str(store)],
    }
    lines = [
        "| step | seconds | peak of all processes, MiB | largest process, MiB |",
        "|---|---|---|---|",
    ]
    tables = []
    walls = {}
    for name, arguments in steps.items():
        found = run(*arguments)
        lines.append(
            f"| {name} | {found['seconds']:.1f} | {found['peak'] / 2**20:.0f} "
            f"| {found['largest'] / 2**20:.0f} |"
        )
        if name.startswith("run"):
            _, happened = events(store, "crescendo")
            begun = min(event["started"] for event in happened)
            ended = max(event["started"] + event["seconds"] for event in happened)
            walls[name] = ended - begun
            tables += ["", f"{name}: tasks from first to last {walls[name]:.1f} s", ""]
            tables += stage_table(store, "crescendo")
    load = os.getloadavg()
    print(f"\n{options.cells} cells x {options.genes} genes, {options.batches} batches; "
          f"{os.cpu_count()} cores, load average at the end {load[0]:.1f}\n")  # fmt: skip
    print("\n".join(lines + tables))
    ratio = walls["run, 1 worker"] / walls["run, 2 workers"]
    print(f"\nspeed-up from 1 to 2 workers, first task to last: {ratio:.2f}")


if __name__ == "__main__":
    main()
