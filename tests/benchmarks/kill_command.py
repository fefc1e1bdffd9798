"""SIGKILL `stdist run crescendo` with all its workers at random moments, resume, compare bytes.

    python tests/benchmarks/kill_command.py [repeats] [seed]

Simulates 200,000 cells x 200 genes once; every repeat works on a copy.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STDIST = [sys.executable, "-m", "stdist"]
RUN = ["--batch-key", "batch", "--clusters", "cell_type", "--block-length", "8192"]


def digest(store: Path) -> dict[str, bytes]:
    """Bytes of everything that the run adds."""
    folders = (store / "layers/crescendo", store / "uns/crescendo", store / "var/crescendo_status")
    files = sorted(p for folder in folders for p in folder.rglob("*") if p.is_file())
    return {str(path.relative_to(store)): path.read_bytes() for path in files}


def main(repeats: int = 10, seed: int = 0) -> int:
    """Return the number of runs that did not end with the bytes of an uninterrupted one."""
    draw, wrong = random.Random(seed), 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = folder / "base.zarr"
        size = ["--cells", "200000", "--genes", "200", "--batches", "4"]
        subprocess.run([*STDIST, "simulate", base, *size], check=True, capture_output=True)
        whole = Path(shutil.copytree(base, folder / "whole.zarr"))
        started = time.monotonic()
        subprocess.run([*STDIST, "run", "crescendo", whole, *RUN], check=True, capture_output=True)
        length, expected = time.monotonic() - started, digest(whole)
        for number in range(repeats):
            store = Path(shutil.copytree(base, folder / f"{number}.zarr"))
            child = subprocess.Popen(
                [*STDIST, "run", "crescendo", store, *RUN],
                start_new_session=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            runs = store / ".stdist" / "runs"
            while not list(runs.glob("crescendo-*/run.json")) and child.poll() is None:
                time.sleep(0.05)
            delay = draw.uniform(0, length / 3)
            time.sleep(delay)
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            written = len(list(runs.glob("crescendo-*/done/match/*.json")))
            status = subprocess.run([*STDIST, "status", store], capture_output=True, text=True)
            if "done in" not in status.stdout.split("crescendo")[-1]:
                subprocess.run([*STDIST, "resume", store], check=True, capture_output=True)
            same = digest(store) == expected
            verified = subprocess.run([*STDIST, "verify", store], capture_output=True).returncode
            wrong += not same or bool(verified)
            print(
                f"{number + 1:3d} after {delay:4.1f} s, {written} blocks written: "
                f"{'same bytes' if same else 'DIFFERS'}, verify {verified}",
                flush=True,
            )
            shutil.rmtree(store)
    print(f"{repeats - wrong} of {repeats} ended with the same bytes")
    return wrong


if __name__ == "__main__":
    sys.exit(bool(main(*map(int, sys.argv[1:]))))
