"""Assemble the CSR parts of blocks into AnnData's three arrays, by whole shards of entries.

The number of stored entries of a block is known only once it is computed, so blocks go aside as
parts and a second pass of tasks, each owning one shard of ``data`` and ``indices``, gathers them.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from stdist.graph.blocks import Blocks
from stdist.graph.sinks import part_path
from stdist.graph.task import TaskRecord, measured
from stdist.store import Output
from stdist.store.encoding import create_array, encoding
from stdist.store.layout import CSR_CHUNK, CSR_SHARD
from stdist.store.manifest import record_file, write_atomically
from stdist.store.writer import fit, open_for_writing, write_rows

INDPTR_BAND = 2**20


def assembly_memory(part_bytes: int) -> int:
    """Bytes that one task holds: a shard of values and indices, twice, and one part."""
    return CSR_SHARD * (4 + 4) * 2 + part_bytes


def part_sizes(parts: str, key: str, n_blocks: int) -> np.ndarray:
    """Stored entries of each part, ``(n_blocks,)`` int64."""
    sizes = np.zeros(n_blocks, np.int64)
    for index in range(n_blocks):
        with np.load(part_path(Path(parts), key, index)) as part:
            sizes[index] = part["indptr"][-1]
    return sizes


def create_csr(root: Path, output: Output, n_rows: int, n_entries: int) -> None:
    """Create the group and the empty arrays of a CSR output."""
    if (root / output.key / "indptr" / "zarr.json").exists():
        return
    # a crash between the three arrays leaves some of them: begin again
    shutil.rmtree(root / output.key, ignore_errors=True)
    group = zarr.open_group(str(root), mode="r+", use_consolidated=False).require_group(output.key)
    shape = [n_rows, output.columns[0]]
    attributes: dict[str, Any] = {"stdist": dict(output.attributes)} if output.attributes else {}
    group.attrs.update(encoding("csr_matrix") | {"shape": shape} | attributes)
    array = encoding("array")
    for name, dtype in (("data", output.dtype), ("indices", "int32")):
        create_array(
            group,
            name,
            shape=(n_entries,),
            dtype=dtype,
            chunks=(CSR_CHUNK,),
            shards=(CSR_SHARD,),
            attributes=array,
        )
    create_array(
        group,
        "indptr",
        shape=(n_rows + 1,),
        dtype="int64",
        chunks=(INDPTR_BAND,),
        attributes=array,
    )


def run_assemble_shard(
    output: Output,
    shard: int,
    parts: str,
    sizes: np.ndarray,
    root: str,
    done: str,
    fingerprint: str,
) -> TaskRecord:
    """Write one shard of ``data`` and ``indices`` from the parts that it covers."""
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    first, last = shard * CSR_SHARD, min(int(offsets[-1]), (shard + 1) * CSR_SHARD)
    with measured(f"{output.key}:assemble", shard, f"shard {shard}") as facts:
        data = np.empty(last - first, output.dtype)
        indices = np.empty(last - first, np.int32)
        for index in np.flatnonzero((offsets[1:] > first) & (offsets[:-1] < last)).tolist():
            base = int(offsets[index])
            low, high = max(first, base), min(last, int(offsets[index + 1]))
            with np.load(part_path(Path(parts), output.key, index)) as part:
                entries = fit(part["data"][low - base : high - base], data.dtype, output.key)
                data[low - first : high - first] = entries
                indices[low - first : high - first] = part["indices"][low - base : high - base]
        files = []
        for name, values in (("data", data), ("indices", indices)):
            key = f"{output.key}/{name}"
            files += write_rows(Path(root), key, first, values, stage=fingerprint)
            facts["bytes_written"] += values.nbytes
    record: TaskRecord = facts["record"]
    body = {"task": asdict(record), "files": [asdict(file) for file in files]}
    write_atomically(Path(done), json.dumps(body).encode())
    return record


def write_offsets(
    output: Output, blocks: Blocks, parts: str, sizes: np.ndarray, root: str, done: str, stage: str
) -> None:
    """Write ``indptr``, band by band, from the parts in row order."""
    array = open_for_writing(Path(root) / output.key / "indptr")
    pending, written, base = [np.zeros(1, np.int64)], 0, 0
    for index in range(len(blocks)):
        with np.load(part_path(Path(parts), output.key, index)) as part:
            pending.append(part["indptr"][1:] + base)
        base += int(sizes[index])
        last = index == len(blocks) - 1
        while (held := sum(map(len, pending))) >= INDPTR_BAND or (last and held):
            joined = np.concatenate(pending)
            band, rest = joined[:INDPTR_BAND], joined[INDPTR_BAND:]
            array[written : written + len(band)] = band
            written += len(band)
            pending = [rest] if len(rest) else []
    folder = Path(root) / output.key / "indptr" / "c"
    files = [
        record_file(Path(root), path, stage=stage, shard=(int(path.name),))
        for path in sorted(folder.iterdir())
        if not path.name.endswith(".partial")
    ]
    write_atomically(Path(done), json.dumps({"files": [asdict(f) for f in files]}).encode())
