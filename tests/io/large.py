"""Write a large .h5ad piece by piece, and convert it in a child process whose memory is watched."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import psutil
from scipy import sparse

PIECE = 20000
CHILD = """
import sys, time
import stdist.io
began = time.perf_counter()
stdist.io.convert(sys.argv[1], sys.argv[2])
print(time.perf_counter() - began)
"""


def write_large(path, n_obs, n_vars, density=0.09, kind="csr"):
    """Write counts of about `density`, with names, two columns and coordinates."""
    rng = np.random.default_rng(0)
    # a few random pieces repeated: the time goes to writing, not to random numbers
    pieces = []
    for _ in range(4):
        mask = rng.random((PIECE, n_vars), np.float32) < density
        pieces.append(mask * rng.geometric(0.5, (PIECE, n_vars)).astype(np.float32))
    strings = h5py.string_dtype()
    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        for name, length in (("obs", n_obs), ("var", n_vars)):
            frame = file.create_group(name)
            frame.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.2.0"})
            frame.attrs["_index"] = "_index"
            frame.attrs["column-order"] = np.asarray(["area"] if name == "obs" else [], strings)
            index = frame.create_dataset("_index", (length,), strings)
            index.attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})
            for first in range(0, length, PIECE):
                last = min(first + PIECE, length)
                index[first:last] = [f"{name}-{i:012d}" for i in range(first, last)]
        area = file["obs"].create_dataset("area", data=rng.random(n_obs, np.float32))
        place = file.create_dataset("obsm/spatial", data=rng.random((n_obs, 2)))
        for node in (area, place):
            node.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        if kind == "dense":
            matrix = file.create_dataset("X", (n_obs, n_vars), "f4")
            matrix.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
            for number, first in enumerate(range(0, n_obs, PIECE)):
                matrix[first : first + PIECE] = pieces[number % 4][: n_obs - first]
            return path
        group = file.create_group("X")
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
        group.attrs["shape"] = [n_obs, n_vars]
        data, indices = (
            group.create_dataset(name, (0,), dtype, maxshape=(None,), chunks=(2**16,))
            for name, dtype in (("data", "f4"), ("indices", "i4"))
        )
        indptr = group.create_dataset("indptr", (n_obs + 1,), "i8")
        rows = [sparse.csr_matrix(piece) for piece in pieces]
        stored = 0
        for number, first in enumerate(range(0, n_obs, PIECE)):
            part = rows[number % 4][: n_obs - first]
            for target, values in ((data, part.data), (indices, part.indices)):
                target.resize((stored + part.nnz,))
                target[stored:] = values
            indptr[first + 1 : first + 1 + part.shape[0]] = part.indptr[1:] + stored
            stored += part.nnz
    return path


def convert_watched(source, target):
    """Convert in a child process; return seconds and peak resident bytes."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(source), str(target)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    process, peak = psutil.Process(child.pid), 0
    while child.poll() is None:
        try:
            peak = max(peak, process.memory_info().rss)
        except psutil.NoSuchProcess:
            break
        time.sleep(0.005)
    output, _ = child.communicate()
    assert child.returncode == 0
    # the kernel's own high-water mark of each task, which polling could miss
    for events in Path(target).glob(".stdist/runs/*/events.jsonl"):
        peaks = [json.loads(line)["peak_bytes"] for line in events.read_text().splitlines()]
        peak = max(peak, *peaks)
    return float(output), peak
