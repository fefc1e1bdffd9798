"""The folder that records a run: run.json, state.json, events, values, finished shards.

Everything a resume needs is here; nothing is ever edited in place.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from stdist.graph.task import TaskRecord, ValueReference
from stdist.store.manifest import Record, digest_bytes, temporary_path, write_atomically
from stdist.store.staging import partial_path


class RunRecord:
    """Read and write the record of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write_json(self, name: str, body: Mapping[str, Any]) -> None:
        """Replace one of the small JSON files."""
        text = json.dumps(body, indent=2, default=plain)
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
        """Every task that ended; a line cut short by a crash is left out."""
        path = self.folder / "events.jsonl"
        found = []
        for line in path.read_text().splitlines() if path.exists() else []:
            with suppress(ValueError):
                found.append(TaskRecord(**json.loads(line)))
        return found

    def attempts(self) -> int:
        """Count one more attempt and return its number."""
        events = self.folder / "events.jsonl"
        if events.exists() and not events.read_bytes().endswith(b"\n"):
            with events.open("a") as file:  # the attempt before this one died while it wrote
                file.write("\n")
        number = self.read_json("attempts.json").get("attempts", 0) + 1
        self.write_json("attempts.json", {"attempts": number})
        return number

    def save_value(self, name: str, arrays: Mapping[str, Any]) -> ValueReference:
        """Checkpoint a stage's value."""
        path = self.folder / "values" / f"{name}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_path(path)
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **{k: np.asarray(v) for k, v in arrays.items()})
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

    def drop_values(self, pattern: str) -> None:
        """Remove checkpoints that are no longer needed."""
        for path in (self.folder / "values").glob(f"{pattern}.npz"):
            path.unlink()

    def done_folder(self, stage: str) -> Path:
        """Folder of the records of a stage's finished tasks."""
        return self.folder / "done" / stage.replace("/", "-")

    def finished(self, stage: str, root: Path) -> set[int]:
        """Numbers of the finished tasks of a stage whose files under `root` are still there."""
        paths = sorted(self.done_folder(stage).glob("*.json"))
        return {int(path.stem) for path in paths if _files_exist(path, root)}

    def contents(self, stage: str, key: str) -> list[dict[str, int]]:
        """What the finished tasks of a stage found in the rows of the output `key`."""
        paths = sorted(self.done_folder(stage).glob("*.json"))
        return [json.loads(path.read_text())["contents"].get(key, {}) for path in paths]

    def files(self) -> Iterator[Record]:
        """Every recorded file of every finished task."""
        for path in sorted((self.folder / "done").rglob("*.json")):
            for fields in json.loads(path.read_text())["files"]:
                fields["shard"] = None if fields["shard"] is None else tuple(fields["shard"])
                yield Record(**fields)

    def tidy(self) -> None:
        """Drop what only a resume would need."""
        for name in ("values", "done", "parts", "state", "moves"):
            shutil.rmtree(self.folder / name, ignore_errors=True)


def _files_exist(done: Path, root: Path) -> bool:
    """Tell whether the files of a finished task have their sizes (a power cut may empty them)."""
    for fields in json.loads(done.read_text())["files"]:
        file = root / fields["path"]
        if not file.is_file() or file.stat().st_size != fields["nbytes"]:
            return False
    return True


def plain(value: Any) -> Any:
    """Turn what JSON does not know into plain Python values."""
    if isinstance(value, (np.integer, np.floating, np.bool_)):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    return str(value)


def run_folders(target: Path) -> list[Path]:
    """Folders of all runs that wrote, or are writing, the store `target`; oldest first."""
    folders: list[Path] = []
    for root in (target, partial_path(target)):
        runs = root / ".stdist" / "runs"
        folders += [path for path in runs.glob("*") if (path / "run.json").exists()]
    return sorted(folders, key=lambda path: RunRecord(path).read_json("run.json")["created"])


def unfinished(target: Path) -> list[Path]:
    """Folders of the runs on `target` that did not finish."""
    return [
        path
        for path in run_folders(target)
        if RunRecord(path).read_json("state.json").get("state") != "done"
    ]
