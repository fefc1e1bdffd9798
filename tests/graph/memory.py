"""Child of test_memory.py: one run over counts of a given size; prints plan and measured peak."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from stdist.graph import InProcess, Map, Program, Reduce, start
from stdist.graph.executors import Resources
from stdist.graph.record import RunRecord
from stdist.store import Output, open_element

COLUMNS = 256


def generate(rows):
    draw = np.random.default_rng(rows[0])
    return {
        "counts": draw.poisson(0.5, (rows[1] - rows[0], COLUMNS)).astype(np.uint16),
        "name": np.array([f"c{i}" for i in range(*rows)], dtype=object),
    }


def gram(rows, *, counts):
    values = counts.astype(np.float64)
    return {"gram": values.T @ values}


def scale(rows, *, counts, gram):
    return {"scaled": (counts / np.sqrt(np.diag(gram["gram"]))).astype(np.float32)}


def names(values):
    import pandas as pd

    return {"var": pd.DataFrame(index=[str(i) for i in range(COLUMNS)])}


def generation(target, n_rows):
    writes = {"counts": Output("X", (COLUMNS,), "uint16"), "name": Output("obs/_index", (), "str")}
    stage = Map("generate", generate, writes=writes, rows=n_rows)
    return Program("generate", (stage,), {}, Path(target), creates=True, results=names)


def scaling(target):
    reads = {"counts": open_element(target, "X")}
    return Program(
        "scale",
        (
            Reduce(
                "gram",
                gram,
                reads,
                workspace=lambda rows: rows * COLUMNS * 8,
                partial_bytes=COLUMNS**2 * 8,
            ),
            Map(
                "scale",
                scale,
                reads,
                ("gram",),
                writes={"scaled": Output("layers/scaled", (COLUMNS,), "float32")},
                workspace=lambda rows: rows * COLUMNS * 12,
            ),
        ),
        {},
        Path(target),
    )


class Fresh(InProcess):
    """Counts the memory that this process holds before its first task."""

    def resources(self, *, device=True):
        return Resources(1, None, 1, super().resources(device=device).reserved)


def main(command, target, n_rows, block_length):
    if command == "generate":
        start(generation(target, int(n_rows)), InProcess(), block_length=65536)
        return
    folder = start(scaling(target), Fresh(), block_length=int(block_length))
    record = RunRecord(folder)
    plan = record.read_json("run.json")["plan"]
    peaks = {}
    for event in record.events():
        peaks[event.stage] = max(peaks.get(event.stage, 0), event.peak_bytes)
    planned = {stage["name"]: stage["memory"] for stage in plan["stages"]}
    print(json.dumps({"planned": planned, "peak": peaks}))


if __name__ == "__main__":
    main(*sys.argv[1:])
