"""The folder that records a run: run.json, state.json, events, values, finished shards.

Everything a resume needs is here; nothing is ever edited in place.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from stdist.graph.task import TaskRecord, ValueReference
from stdist.store.manifest import Record, digest_bytes, write_atomically


class RunRecord:
    """Read and write the record of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write_json(self, name: str, body: Mapping[str, Any]) -> None:
        """Replace one of the small JSON files."""
        text = json.dumps(body, indent=2, default=_plain)
        write_atomically(self.folder / name, text.encode())

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON file; empty if it is not there."""
        path = self.folder / name
        return json.loads(path.read_text()) if path.exists() else {}

    def set_state(self, state: str, **facts: Any) -> None:
        """Record where the run stands: running, stopped, committing or done."""
        self.write_json("state.json", {"state": state, "time": time.time(), **facts})

    def add_event(self, record: TaskRecord) -> None:
        """Append what a task did."""
        with (self.folder / "events.jsonl").open("a") as file:
            file.write(json.dumps(asdict(record)) + "\n")

    def events(self) -> list[TaskRecord]:
        """Every task that ended; a last line cut short by a crash is left out."""
        path = self.folder / "events.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [TaskRecord(**json.loads(line)) for line in lines]

    def attempts(self) -> int:
        """Count one more attempt and return its number."""
        number = self.read_json("attempts.json").get("attempts", 0) + 1
        self.write_json("attempts.json", {"attempts": number})
        return number

    def save_value(self, name: str, arrays: Mapping[str, Any]) -> ValueReference:
        """Checkpoint a stage's value."""
        path = self.folder / "values" / f"{name}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.partial")
        with temporary.open("wb") as file:
            np.savez(file, **{key: np.asarray(value) for key, value in arrays.items()})
        data = temporary.read_bytes()
        temporary.replace(path)
        return ValueReference(str(path), digest_bytes(data))

    def value(self, name: str) -> ValueReference | None:
        """Return a checkpointed value, if there is one."""
        path = self.folder / "values" / f"{name}.npz"
        return ValueReference(str(path), digest_bytes(path.read_bytes())) if path.exists() else None

    def values_named(self, prefix: str) -> list[str]:
        """Names of checkpointed values that begin with `prefix`, sorted."""
        return sorted(path.stem for path in (self.folder / "values").glob(f"{prefix}*.npz"))

    def drop_value(self, name: str) -> None:
        """Remove a checkpoint that is no longer needed."""
        (self.folder / "values" / f"{name}.npz").unlink(missing_ok=True)

    def done_folder(self, stage: str) -> Path:
        """Folder of the records of a stage's finished tasks."""
        return self.folder / "done" / stage.replace("/", "-")

    def finished(self, stage: str) -> dict[int, dict[str, Any]]:
        """Finished tasks of a stage, by number."""
        folder = self.done_folder(stage)
        paths = sorted(folder.glob("*.json")) if folder.exists() else []
        return {int(path.stem): json.loads(path.read_text()) for path in paths}

    def files(self) -> Iterator[Record]:
        """Every recorded file of every finished task."""
        for path in sorted((self.folder / "done").rglob("*.json")):
            for fields in json.loads(path.read_text())["files"]:
                fields["shard"] = None if fields["shard"] is None else tuple(fields["shard"])
                yield Record(**fields)

    def tidy(self) -> None:
        """Drop what only a resume would need."""
        for name in ("values", "done", "parts"):
            shutil.rmtree(self.folder / name, ignore_errors=True)


def _plain(value: Any) -> Any:
    if isinstance(value, (np.integer, np.floating, np.bool_)):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    return str(value)
