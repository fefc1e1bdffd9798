"""Speed of one core at reading and writing blocks of counts, against plain copies and hashing.

    python tests/benchmarks/bench_store.py

Medians of process time in one process; MB are 10**6 decoded bytes.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "ZARR_THREADING__MAX_WORKERS", "BLOSC_NTHREADS"):
    os.environ[_name] = "1"

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numcodecs.blosc
import numpy as np

from stdist.graph import InProcess
from stdist.graph.sinks import StoreSink
from stdist.methods.simulate import simulate_program
from stdist.store import Output, Staging, Store, manifest

ROWS, GENES, REPEATS = 65536, 500, 7


def median_seconds(action: Callable[[], object]) -> float:
    """Median process time of `REPEATS` calls after a first one."""
    action()
    times = []
    for _ in range(REPEATS):
        started = time.process_time()
        action()
        times.append(time.process_time() - started)
    return statistics.median(times)


def main() -> None:
    """Print the table."""
    from stdist.graph import start

    numcodecs.blosc.set_nthreads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "counts.zarr"
        start(simulate_program(str(path), ROWS, GENES), InProcess(), block_length=ROWS)
        element = Store(path).element("X")
        counts = element.read(0, ROWS)
        shard = next(p for p in (path / "X" / "c").rglob("*") if p.is_file())
        staging = Staging(Path(folder) / "out.zarr", "bench", new=True)
        staging.prepare()
        output = Output("layers/out", (GENES,), "uint16")
        staging.create(output, ROWS, ROWS)
        sink = StoreSink(str(staging.root), folder)
        seconds = {
            "read a block (checked against the manifest)": lambda: element.read(0, ROWS),
            "write a block (compress, checksum, hash)": lambda: sink.write(
                output, 0, 0, counts, ""
            ),
            "copy in memory": counts.copy,
            "hash the compressed shard": lambda: manifest.digest_bytes(shard.read_bytes()),
        }
        print(f"| {ROWS} x {GENES} uint16, density {np.mean(counts > 0):.3f} | s | MB/s decoded |")
        print("|---|---|---|")
        for name, action in seconds.items():
            took = median_seconds(action)
            print(f"| {name} | {took:.4f} | {counts.nbytes / 1e6 / took:.0f} |")
        print(f"\nshard: {shard.stat().st_size / 1e6:.2f} MB on disk for {counts.nbytes / 1e6:.1f}")


if __name__ == "__main__":
    main()
