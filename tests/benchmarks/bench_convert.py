"""Speed and peak memory of ``stdist convert`` on 300,000 x 500, and the disk's own speed.

python tests/benchmarks/bench_convert.py [n_obs] [n_vars]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.io.large import convert_watched, write_large


def copy_speed(source, folder):
    """Bytes per second of a plain copy of the input: read and write, nothing computed."""
    began = time.perf_counter()
    data = source.read_bytes()
    (folder / "copy").write_bytes(data)
    return len(data) / (time.perf_counter() - began)


def main(n_obs=300_000, n_vars=500):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind in ("csr", "dense"):
            source = write_large(folder / f"{kind}.h5ad", n_obs, n_vars, kind=kind)
            size, speed = source.stat().st_size, copy_speed(source, folder)
            seconds, peak = convert_watched(source, folder / f"{kind}.zarr")
            files = (folder / f"{kind}.zarr").rglob("*")
            stored = sum(file.stat().st_size for file in files if file.is_file())
            print(
                f"{kind:>5}: {n_obs} x {n_vars}, {size / 1e6:.0f} MB -> {stored / 1e6:.0f} MB in "
                f"{seconds:.1f} s: {size / seconds / 1e6:.0f} MB/s of input, "
                f"{seconds / n_obs / n_vars * 1e9:.2f} ns per (cell x gene), "
                f"peak {peak / 2**20:.0f} MiB; plain copy {speed / 1e6:.0f} MB/s"
            )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
