"""What the runs on a store are doing or did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stdist.graph.preflight import lock_path
from stdist.graph.record import RunRecord, run_folders
from stdist.store.lock import holder_is_alive


def describe_runs(target: Path) -> list[dict[str, Any]]:
    """Describe every run on the store `target`, oldest first.

    Returns
    -------
    list of dict
        ``run``, ``program``, ``state`` (running, committing, stopped, died or done), ``error``,
        ``folder``, ``created``, and per stage of the plan the number of finished tasks.
    """
    return [_describe(folder, target) for folder in run_folders(target)]


def _describe(folder: Path, target: Path) -> dict[str, Any]:
    record = RunRecord(folder)
    facts, state = record.read_json("run.json"), record.read_json("state.json")
    now = state.get("state", "died")
    if now in ("running", "committing") and not _is_locked(target, facts):
        now = "died"
    return {
        "run": facts["run"],
        "program": facts["program"],
        "state": now,
        "error": state.get("error"),
        "seconds": state.get("seconds"),
        "created": facts["created"],
        "folder": str(folder),
        "stages": [
            {"name": stage["name"], "tasks": stage["tasks"], "done": n}
            for stage, n in zip(facts["plan"]["stages"], _done(record, facts, now), strict=True)
        ],
    }


def _is_locked(target: Path, facts: dict[str, Any]) -> bool:
    path = lock_path(target, creates=facts["creates"])
    try:
        return holder_is_alive(json.loads(path.read_text()) | {"beat": path.stat().st_mtime})
    except (FileNotFoundError, ValueError):
        return False


def _done(record: RunRecord, facts: dict[str, Any], state: str) -> list[int]:
    """Finished tasks of each stage: all of a finished run; else records and checkpoints."""
    counts = []
    for stage in facts["plan"]["stages"]:
        name, tasks = stage["name"], stage["tasks"]
        if state == "done" or record.value(name) is not None:
            counts.append(tasks)
            continue
        written = len(list(record.done_folder(name).glob("*.json")))
        counts.append(written or len(record.values_named(f"{name}.item")))
    return counts
