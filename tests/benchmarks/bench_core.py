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


WATCHED = """
import json, sys
from dataclasses import asdict
from stdist.cli import main
from stdist.graph.execution import Execution

path = sys.argv.pop(1)

def keep(self, record):
    with open(path, "a") as file:
        file.write(json.dumps(asdict(record)) + chr(10))

Execution._event = keep
main()
"""
"""A command that keeps no record of its tasks, with one."""


def run(*arguments: str, tasks: Path | None = None) -> dict[str, float]:
    """Run a command of stdist; return seconds, CPU seconds, and the peak of all its processes.

    The events of a command without a run record go to the file `tasks`.
    """
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [
        sys.executable,
        *(["-m", "stdist"] if tasks is None else ["-c", WATCHED, str(tasks)]),
    ]
    command += arguments
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
    return json.loads((folder / "run.json").read_text()), read_events(folder / "events.jsonl")


def read_events(path: Path) -> list[dict]:
    """Task events of a file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def stage_table(program: str, facts: dict, found: list[dict]) -> list[str]:
    """Per stage: tasks, task seconds, share, bytes, planned and measured memory."""
    total = sum(event["seconds"] for event in found)
    rows = [
        f"| {program} stage | tasks | task s | share | read MB | written MB | MB/s "
        "| projected MiB | peak MiB | ratio |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    planned = {
        stage["name"]: stage["memory"] for stage in facts.get("plan", {"stages": []})["stages"]
    }
    for stage in dict.fromkeys(event["stage"] for event in found):
        mine = [event for event in found if event["stage"] == stage]
        seconds = sum(event["seconds"] for event in mine)
        read, written = (
            sum(event[f"bytes_{way}"] for event in mine) / 1e6 for way in ("read", "written")
        )
        peak = max(event["peak_bytes"] for event in mine)
        memory = f" | {peak / 2**20:.0f} | "
        if stage in planned:
            memory = f"{planned[stage] / 2**20:.0f}{memory}{planned[stage] / peak:.2f}"
        rows.append(
            f"| {stage} | {len(mine)} | {seconds:.1f} | {seconds / total:.0%} | {read:.0f} "
            f"| {written:.0f} | {(read + written) / seconds:.0f} | {memory} |"
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
            tables += stage_table("crescendo", *events(store, "crescendo"))
    load = os.getloadavg()
    print(f"\n{options.cells} cells x {options.genes} genes, {options.batches} batches; "
          f"{os.cpu_count()} cores, load average at the end {load[0]:.1f}\n")  # fmt: skip
    print("\n".join(lines + tables))
    ratio = walls["run, 1 worker"] / walls["run, 2 workers"]
    print(f"\nspeed-up from 1 to 2 workers, first task to last: {ratio:.2f}")


if __name__ == "__main__":
    main()
