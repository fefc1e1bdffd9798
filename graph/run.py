"""Execute a plan: start, resume, and keep the record that makes resuming possible."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

from stdist.graph.compilation import note_compiled, resources_for
from stdist.graph.execution import Execution, remove_run
from stdist.graph.executors import Executor, InProcess
from stdist.graph.plan import make_plan
from stdist.graph.preflight import (
    check_keys,
    check_output,
    check_space,
    lock_path,
    refuse_unfinished,
)
from stdist.graph.progress import Progress
from stdist.graph.record import RunRecord, plain, unfinished
from stdist.graph.stage import Map, Program
from stdist.store import InputError, Staging
from stdist.store.lock import StoreLock
from stdist.store.staging import partial_path, scratch_path

VERSIONED = ("stdist", "numpy", "scipy", "numba", "zarr", "numcodecs")
Build = Callable[[str, Mapping[str, Any]], Program]


def fingerprint(program: Program, device: str) -> str:
    """Hash of what decides the bits of the result: method, parameters, inputs, versions, device."""
    parts = {
        "program": program.name,
        # a store may move; what it holds is among the inputs
        "parameters": {k: v for k, v in program.parameters.items() if k != "data"},
        "inputs": [source.fingerprint() for source in program.sources()],
        "versions": {name: version(name) for name in VERSIONED},
        "device": device,
    }
    text = json.dumps(parts, sort_keys=True, default=plain)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def start(
    program: Program,
    executor: Executor,
    *,
    block_length: int | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> Path:
    """Plan and run a program on its target store; return the folder that records the run.

    Raises
    ------
    InputError
        If the output exists (and `overwrite` is False), touches an input, is being written by
        another run, or is left unfinished by an earlier one.
    PlanRefused
        If the plan does not fit the workers.
    RunStopped
        If tasks failed for good; the run can be resumed.
    """
    assert program.target is not None
    target = program.target
    check_output(program, overwrite)
    resources = resources_for(program, executor)
    device = resources.device
    plan = make_plan(program, resources, block_length)
    check_space(program, target)
    run = f"{program.name}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid4().hex[:4]}"
    staging = Staging(target, run, new=program.creates)
    with StoreLock(lock_path(target, creates=program.creates), run):
        refuse_unfinished(target)
        check_output(program, overwrite)  # another run may have finished meanwhile
        staging.prepare()
        record = RunRecord(staging.run_folder)
        record.write_json(
            "run.json",
            {
                "run": run,
                "program": program.name,
                "parameters": program.parameters,
                "target": target,
                "creates": program.creates,
                "overwrite": overwrite,
                "fingerprint": fingerprint(program, device),
                "device": device,
                "versions": {name: version(name) for name in VERSIONED},
                "block_length": plan.block_length,
                "created": time.time(),
                "plan": plan.to_dict(),
            },
        )
        folder = Execution(program, executor, staging, record, progress).run()
        note_compiled(program, executor)
        return folder


def resume(
    target: Path | str, build: Build, executor: Executor, *, progress: Progress | None = None
) -> Path:
    """Continue the unfinished run on `target`; only unfinished shards are computed.

    Raises
    ------
    InputError
        If there is nothing to resume, or inputs, device or versions changed since the run began.
    """
    target = Path(target)
    waiting = unfinished(target)
    if not waiting:
        raise InputError(
            "nothing-to-resume",
            "no unfinished run",
            place=str(target),
            remedy="`stdist status` lists the runs of a store",
        )
    record = RunRecord(waiting[0])
    facts = record.read_json("run.json")
    staging = Staging(target, facts["run"], new=facts["creates"])
    parameters = dict(facts["parameters"])
    if "data" in parameters:
        parameters["data"] = str(target.absolute())  # the store may have moved since
    program = build(facts["program"], parameters)
    with StoreLock(lock_path(target, creates=program.creates), facts["run"]):
        if not record.read_json("commit.json"):
            _check_unchanged(program, executor, facts, record.folder)
        return Execution(program, executor, staging, record, progress).run()


def _check_unchanged(
    program: Program, executor: Executor, facts: Mapping[str, Any], folder: Path
) -> None:
    device = executor.resources(device=program.on_device).device
    if fingerprint(program, device) == facts["fingerprint"]:
        return
    changed = "inputs, parameters or library versions are"
    if device != facts["device"]:
        changed = f"the device ({device}) is"
    raise InputError(
        "run-changed",
        f"{changed} not what the run began with",
        place=str(folder),
        remedy="restore it, or drop the run with `stdist resume --discard` and start again",
    )


def discard(target: Path | str) -> list[str]:
    """Remove the unfinished runs on `target` and what they staged; return their names."""
    names = []
    target = Path(target)
    for folder in unfinished(target):
        record = RunRecord(folder)
        facts = record.read_json("run.json")
        path = lock_path(target, creates=facts["creates"])
        with StoreLock(path, f"discard {facts['run']}"):
            if record.read_json("commit.json"):
                raise InputError(
                    "run-committing",
                    f"run {facts['run']} is complete and was being switched in",
                    place=str(folder),
                    remedy=f"finish it with `stdist resume {target}`",
                )
            remove_run(folder, partial_path(target) if facts["creates"] else folder)
            shutil.rmtree(scratch_path(target), ignore_errors=True)
        names.append(facts["run"])
    return names


def run_in_memory(
    program: Program,
    executor: Executor,
    *,
    block_length: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run a program without a store; return its outputs and results by key.

    Raises
    ------
    ValueError
        If a program that writes rows is to run on a cluster, whose workers cannot hand them over.
    """
    writes = any(isinstance(stage, Map) for stage in program.stages)
    if writes and not isinstance(executor, InProcess):
        message = f"program {program.name!r} writes rows: run it on a store, or in process"
        raise ValueError(message)
    check_keys(program)
    resources = resources_for(program, executor)
    execution = Execution(program, executor, None, None, progress)
    execution.block_length = make_plan(program, resources, block_length).block_length
    execution.device = resources.device
    found = execution.compute_in_memory()
    note_compiled(program, executor)
    return found
