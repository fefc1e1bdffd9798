"""What one task does: read a block, call the kernel tile by tile, write shards or fold partials.

These functions run on workers. A task is safe to repeat: it opens its inputs itself, writes whole
shards, and writes its record last.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from scipy import sparse

from stdist.graph.allocator import return_freed_memory
from stdist.graph.blocks import tiles
from stdist.graph.compilation import free_compilation
from stdist.graph.device import HOST, Memory, memory_of
from stdist.graph.reduce import fold
from stdist.graph.sinks import Sink
from stdist.graph.stage import Arrays, Each, Map, Reduce, Stage
from stdist.graph.state import Recollection
from stdist.graph.threads import one_thread
from stdist.store import RunStopped, StdistError
from stdist.store.manifest import Record, digest_bytes, write_atomically


@dataclass(frozen=True)
class TaskRecord:
    """What one finished task did: seconds of wall and CPU time, bytes, and peak memory.

    `read_seconds` and `write_seconds` are parts of `seconds`; the rest is the kernel.
    """

    stage: str
    index: int
    worker: str
    started: float
    seconds: float
    cpu_seconds: float
    read_seconds: float
    write_seconds: float
    bytes_read: int
    bytes_written: int
    peak_bytes: int


@dataclass(frozen=True)
class ValueReference:
    """A stage's value in a file; workers read it once and keep it (parameters travel once)."""

    path: str
    digest: str

    def load(self, memory: Memory = HOST) -> Arrays:
        """Return the arrays."""
        key = self, memory
        loaded = _LOADED.get(key)
        if loaded is None:
            loaded = _LOADED[key] = _read_value(self.path, self.digest, memory)
        return loaded


_LOADED: dict[tuple[ValueReference, Memory], Arrays] = {}
"""Values that this worker's current stage uses; those of stages that are over are dropped."""


def _read_value(path: str, digest: str, memory: Memory) -> Arrays:
    data = Path(path).read_bytes()
    if digest_bytes(data) != digest:
        raise RunStopped(
            "value-altered",
            "a checkpointed value is not what was written",
            place=path,
            remedy="delete the file and `stdist resume`: the stage is computed again",
        )
    with np.load(path, allow_pickle=False) as arrays:
        return memory.take({name: arrays[name] for name in arrays.files})


Values = Mapping[str, ValueReference | Arrays]


def load_values(values: Values, names: tuple[str, ...], memory: Memory = HOST) -> dict[str, Arrays]:
    """Resolve the named values, and let go of all others."""
    found = {name: values[name] for name in names}
    wanted = {(v, memory) for v in found.values() if isinstance(v, ValueReference)}
    for key in [key for key in list(_LOADED) if key not in wanted]:
        _LOADED.pop(key, None)
    return {
        n: v.load(memory) if isinstance(v, ValueReference) else memory.take(v)
        for n, v in found.items()
    }


def kernel_arguments(stage: Stage, values: Values, memory: Memory) -> dict[str, Any]:
    """Arguments of the kernel that all calls of a task share."""
    return load_values(values, stage.uses, memory) | memory.take(stage.options)


@contextmanager
def measured(stage: str, index: int, where: str) -> Iterator[dict[str, Any]]:
    """Run a task's body on one BLAS thread, time it, and say where an error happened."""
    return_freed_memory()
    _reset_peak()
    started, wall, cpu = time.time(), time.perf_counter(), time.thread_time()
    facts: dict[str, Any] = {"bytes_read": 0, "bytes_written": 0}
    facts |= {"read_seconds": 0.0, "write_seconds": 0.0}
    try:
        with one_thread(), zarr.config.set({"async.concurrency": 4}):
            yield facts
    except StdistError:
        raise
    except Exception as error:
        # the place travels with the error; its type and errno stay (a full disk must be seen)
        error.add_note(f"in stage {stage!r}, {where}")
        raise
    free_compilation()
    facts["record"] = TaskRecord(
        stage=stage,
        index=index,
        worker=f"{os.uname().nodename}:{os.getpid()}",
        started=started,
        seconds=time.perf_counter() - wall,
        cpu_seconds=time.thread_time() - cpu,
        read_seconds=facts["read_seconds"],
        write_seconds=facts["write_seconds"],
        bytes_read=facts["bytes_read"],
        bytes_written=facts["bytes_written"],
        peak_bytes=_peak(),
    )


def _reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak() -> int:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def read_inputs(
    stage: Stage,
    index: int,
    bounds: tuple[int, int],
    state: Recollection | None,
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Read the rows of a block from the sources and states of a stage."""
    started = time.perf_counter()
    inputs = {name: source.read(*bounds) for name, source in stage.reads.items()}
    if state is not None:
        inputs |= state.read(index)
    facts["read_seconds"] = time.perf_counter() - started
    facts["bytes_read"] = sum(_nbytes(block) for block in inputs.values())
    return inputs


def _nbytes(block: Any) -> int:
    if sparse.issparse(block):
        return block.data.nbytes + block.indices.nbytes + block.indptr.nbytes
    return int(getattr(block, "nbytes", 0))


def slice_rows(inputs: dict[str, Any], start: int, first: int, last: int) -> dict[str, Any]:
    """Rows ``first:last`` of inputs that begin at row `start`."""
    return {name: block[first - start : last - start] for name, block in inputs.items()}


def run_map_block(
    stage: Map,
    index: int,
    bounds: tuple[int, int],
    values: Values,
    state: Recollection | None,
    sink: Sink,
    done: str | None,
    fingerprint: str,
    device: str,
) -> TaskRecord:
    """Compute and write one block; `done` is the file that records it."""
    start, stop = bounds
    memory = memory_of(device, on_device=stage.on_device, keep_csr=stage.keep_csr)
    csr = {name for name, output in stage.writes.items() if output.kind == "csr"}
    where = f"block {index} (rows {start}:{stop})"
    with measured(stage.name, index, where) as facts:
        constants = kernel_arguments(stage, values, memory)  # lets go of those of the stage before
        inputs = memory.take(read_inputs(stage, index, bounds, state, facts))
        calls = [bounds] if stage.whole_blocks else list(tiles(start, stop))
        results = [
            memory.give(stage.kernel(rows, **slice_rows(inputs, start, *rows), **constants), csr)
            for rows in calls
        ]
        del inputs
        files: list[Record] = []
        contents: dict[str, dict[str, int]] = {}
        for name, output in stage.writes.items():
            rows = join_rows([result.pop(name) for result in results])
            if rows.shape[0] != stop - start:
                message = f"the kernel returned {rows.shape[0]} rows of {name!r}"
                raise ValueError(message)
            facts["bytes_written"] += _nbytes(rows)
            contents[output.key] = _contents(rows)
            written = time.perf_counter()
            files += sink.write(output, index, start, rows, fingerprint)
            facts["write_seconds"] += time.perf_counter() - written
    record: TaskRecord = facts["record"]
    if done is not None:
        body = {
            "task": asdict(record),
            "files": [asdict(file) for file in files],
            "contents": contents,
        }
        write_atomically(Path(done), json.dumps(body).encode())
    return record


def _contents(rows: Any) -> dict[str, int]:
    """Largest value and number of non-zeros of integers: they decide dtypes and memory later."""
    data = rows.data if sparse.issparse(rows) else rows
    if data.dtype.kind not in "iu" or rows.ndim != 2:
        return {}
    return {"max": int(data.max(initial=0)), "nonzero": int(np.count_nonzero(data))}


def join_rows(parts: list[Any]) -> Any:
    """Dense or CSR rows, one after the other."""
    if len(parts) == 1:
        return parts[0]
    return (
        sparse.vstack(parts, format="csr") if sparse.issparse(parts[0]) else np.concatenate(parts)
    )


Partial = tuple[dict[str, Any], tuple[TaskRecord, ...]]


def run_reduce_block(
    stage: Reduce,
    index: int,
    bounds: tuple[int, int],
    values: Values,
    state: Recollection | None,
    device: str,
) -> Partial:
    """Compute the partial statistic of one block: a whole subtree of the tree over tiles.

    New rows of the states that the stage updates are written before the statistic is returned.
    """
    start, stop = bounds
    memory = memory_of(device, on_device=stage.on_device, keep_csr=stage.keep_csr)
    with measured(stage.name, index, f"block {index} (rows {start}:{stop})") as facts:
        constants = kernel_arguments(stage, values, memory)
        inputs = memory.take(read_inputs(stage, index, bounds, state, facts))
        updated: dict[str, list[np.ndarray]] = {name: [] for name in stage.updates}

        def partials() -> Iterator[dict[str, Any] | None]:
            for rows in tiles(start, stop):
                mine = slice_rows(inputs, start, *rows)
                if not stage.takes(rows):
                    for name, tiles_so_far in updated.items():
                        tiles_so_far.append(memory.give({name: mine[name]})[name])
                    yield None
                    continue
                statistic = stage.kernel(rows, **mine, **constants)
                for name, tiles_so_far in updated.items():
                    tiles_so_far.append(memory.give({name: statistic.pop(name)})[name])
                yield statistic

        total = memory.give(fold(partials(), stage.combine))
        if state is not None and updated:
            written = time.perf_counter()
            state.write(index, {name: join_rows(parts) for name, parts in updated.items()})
            facts["write_seconds"] = time.perf_counter() - written
            facts["bytes_written"] = sum(t.nbytes for parts in updated.values() for t in parts)
    return total, (facts["record"],)


def run_combine(stage: Reduce, left: Partial, right: Partial) -> Partial:
    """Combine the partials of two neighbours."""
    return stage.combine(left[0], right[0]), left[1] + right[1]


def run_item(stage: Each, item: int, values: Values, device: str) -> Partial:
    """Compute one item."""
    memory = memory_of(device, on_device=stage.on_device, keep_csr=stage.keep_csr)
    with measured(stage.name, item, f"item {item}") as facts:
        result = memory.give(stage.kernel(item, **kernel_arguments(stage, values, memory)))
    return result, (facts["record"],)
