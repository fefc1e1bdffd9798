"""A small program with every kind of stage, used by the tests of the graph and the store."""

from __future__ import annotations

import errno
import json
import os
import time
from functools import partial
from pathlib import Path

import numpy as np
from scipy import sparse

from stdist.graph import Each, Loop, Map, Program, Reduce, State, concatenate
from stdist.store import InputError, Output, Store, open_element

COLUMNS = 37


def generate_tile(rows, *, seed):
    start, stop = rows
    parts = [np.random.default_rng([seed, tile]) for tile in range(start // 1024, -(-stop // 1024))]
    counts = np.concatenate([rng.poisson(0.7, (1024, COLUMNS)) for rng in parts])[: stop - start]
    places = np.random.default_rng([seed, 7, start]).normal(size=(stop - start, 2))
    names = np.array([f"row{i}" for i in range(start, stop)], dtype=object)
    return {
        "counts": counts.astype(np.uint16),
        "sparse": sparse.csr_matrix(counts.astype(np.uint16)),
        "name": names,
        "group": (np.arange(start, stop) % 3).astype(np.int8),
        "place": places.astype(np.float32),
    }


def generate_results(values):
    import pandas as pd

    return {"var": pd.DataFrame(index=[f"col{i}" for i in range(COLUMNS)]), "uns": {"seed": 1}}


def generate_program(target, n_rows=5000, seed=0):
    writes = {
        "counts": Output("X", (COLUMNS,), "uint16", attributes={"max": 9}),
        "sparse": Output("layers/sparse", (COLUMNS,), "uint16", kind="csr"),
        "name": Output("obs/_index", (), "str"),
        "group": Output("obs/group", (), "int8", kind="categorical", categories=("a", "b", "c")),
        "place": Output("obsm/spatial", (2,), "float32"),
    }
    stage = Map("generate", generate_tile, options={"seed": seed}, writes=writes, rows=n_rows)
    return Program(
        "generate",
        (stage,),
        {"target": str(target), "n_rows": n_rows, "seed": seed},
        Path(target),
        creates=True,
        results=generate_results,
    )


def moments(rows, *, counts):
    dense = counts.toarray() if sparse.issparse(counts) else counts
    values = np.log1p(dense.astype(float)) * np.pi
    return {"n": np.int64(len(values)), "sum": values.sum(0), "gram": values.T @ values}


def pick(rows, *, counts, every):
    keep = np.arange(*rows) % every == 0
    dense = counts.toarray() if sparse.issparse(counts) else counts
    return {"row": np.arange(*rows)[keep], "counts": dense[keep]}


def column_norm(item, *, moments):
    return {"norm": np.sqrt(np.diag(moments["gram"])[item * 10 : (item + 1) * 10])}


def collect_norms(parts):
    return {"norm": np.concatenate([part["norm"] for part in parts]), "shift": np.float64(1.0)}


def first_carried(rows, *, counts):
    dense = counts.toarray() if sparse.issparse(counts) else counts
    return {"n": np.int64(len(dense)), "carried": dense[:, :2].astype(np.float32)}


def shifted(rows, *, counts, carried, state):
    dense = counts.toarray() if sparse.issparse(counts) else counts
    summed = (dense * np.exp(-state["shift"])).sum() + 1e-3 * carried.sum(dtype=float)
    new = (0.5 * carried + state["shift"] * dense[:, 2:4]).astype(np.float32)
    return {"n": np.float64(len(dense)), "sum": summed, "carried": new}


def next_shift(total, *, state):
    return {"shift": 0.5 * state["shift"] + 0.5 * total["sum"] / total["n"] / COLUMNS}


def settled(previous, current):
    return bool(abs(previous["shift"] - current["shift"]) < 1e-6)


def scale(rows, *, counts, carried, norms, state, pause=0.0):
    time.sleep(pause)
    dense = counts.toarray() if sparse.issparse(counts) else counts
    scaled = np.log1p(dense.astype(float)) / norms["norm"] + state["shift"]
    scaled += carried.sum(axis=1, keepdims=True)
    doubled = sparse.csr_matrix((dense * 2).astype(np.uint16))
    return {
        "scaled": scaled.astype(np.float32),
        "total": dense.sum(1).astype(np.int64),
        "doubled": doubled,
        "turned": dense.astype(np.uint16),
    }


def scale_results(values, n_rows):
    return {"uns/toy": {"norm": values["norms"]["norm"], "shift": float(values["state"]["shift"])}}


def scale_program(target, source="X", every=7, rounds=40, pause=0.0):
    counts = open_element(target, source)
    reads = {"counts": counts}
    stages = (
        Reduce("moments", moments, reads),
        Reduce("sample", pick, reads, options={"every": every}, combine=concatenate),
        Each("norms", column_norm, uses=("moments",), n_items=4, collect=collect_norms),
        Reduce("first", first_carried, reads, updates=("carried",)),
        Loop(
            "state",
            (
                Reduce(
                    "next",
                    shifted,
                    reads,
                    ("state",),
                    finalize=next_shift,
                    recalls=("carried",),
                    updates=("carried",),
                ),
            ),
            "norms",
            settled,
            rounds,
        ),
        Map(
            "scale",
            scale,
            reads,
            ("norms", "state"),
            {"pause": pause},
            recalls=("carried",),
            writes={
                "scaled": Output("layers/scaled", (COLUMNS,), "float32"),
                "total": Output("obs/total", (), "int64"),
                "doubled": Output("layers/doubled", (COLUMNS,), "uint16", kind="csr"),
                "turned": Output("varm/turned", (COLUMNS,), "uint16", kind="transposed"),
            },
        ),
    )
    parameters = {"target": str(target), "source": source, "every": every}
    parameters |= {"rounds": rounds, "pause": pause}
    return Program(
        "scale",
        stages,
        parameters,
        Path(target),
        results=partial(scale_results, n_rows=Store(target).n_obs),
        result_keys=("uns/toy",),
        state={"carried": State((2,), "float32")},
    )


def copy_or_fail(rows, *, counts, folder, script):
    """Copy, unless `script` says that the tile fails its first so many times; counts its calls."""
    tile = rows[0] // 1024
    with (Path(folder) / str(tile)).open("ab") as file:
        file.write(b".")
        calls = file.tell()
    kind, times = script.get(str(tile), ("", 0))
    if calls <= times:
        if kind == "input":
            time.sleep(0.2)  # let others begin
            raise InputError("counts-negative", "a count is negative", place=f"tile {tile}")
        if kind == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if kind == "slow":
            time.sleep(1 + 0.2 * tile)
            return {"copy": counts}
        raise RuntimeError(f"scripted failure {calls} of tile {tile}")
    return {"copy": counts}


def copy_program(target, folder, script, source="X", key="layers/copy"):
    """Copy one element; `script` is ``{"tile": (kind, times)}``, calls are counted in `folder`."""
    counts = open_element(target, source)
    stage = Map(
        "copy",
        copy_or_fail,
        {"counts": counts},
        options={"folder": str(folder), "script": script},
        writes={"copy": Output(key, (COLUMNS,), "uint16", "dense" if source == "X" else "csr")},
    )
    parameters = {"target": str(target), "folder": str(folder), "script": script}
    return Program("copy", (stage,), parameters | {"source": source, "key": key}, Path(target))


def calls(folder):
    """How often each tile was computed."""
    return {int(path.name): path.stat().st_size for path in Path(folder).iterdir()}


def contents(store):
    """Every file of a store but stdist's records: bytes, and metadata as parsed JSON."""
    root = Path(store)
    found = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_file() and not name.startswith(".stdist/"):
            data = path.read_bytes()
            found[name] = json.loads(data) if path.name == "zarr.json" else data
    return found


PROGRAMS = {"generate": generate_program, "scale": scale_program, "copy": copy_program}


def build(name, parameters):
    return PROGRAMS[name](**parameters)
