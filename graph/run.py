"""Execute a plan: start, resume, and keep the record that makes resuming possible."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from stdist.graph.assemble import create_csr, part_sizes, run_assemble_shard, write_offsets
from stdist.graph.blocks import Blocks
from stdist.graph.compile import Binding, compile_stage
from stdist.graph.executors import Executor, Graph, is_fatal
from stdist.graph.plan import make_plan
from stdist.graph.progress import Progress
from stdist.graph.record import RunRecord, plain
from stdist.graph.sinks import MemorySink, StoreSink
from stdist.graph.stage import Each, Loop, Map, Program, Reduce
from stdist.graph.task import TaskRecord, ValueReference
from stdist.store import ArrayElement, InputError, RunStopped, Staging, StdistError
from stdist.store.layout import CSR_SHARD
from stdist.store.lock import StoreLock
from stdist.store.staging import partial_path, scratch_path

VERSIONED = ("stdist", "numpy", "scipy", "numba", "zarr", "numcodecs")
Build = Callable[[str, Mapping[str, Any]], Program]


def fingerprint(program: Program) -> str:
    """Hash of what decides the bits of the result: method, parameters, inputs, versions."""
    parts = {
        "program": program.name,
        "parameters": program.parameters,
        "inputs": [source.fingerprint() for source in program.sources()],
        "versions": {name: version(name) for name in VERSIONED},
    }
    text = json.dumps(parts, sort_keys=True, default=plain)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


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
    plan = make_plan(program, executor.resources(), block_length)
    _check_space(program, target)
    run = f"{program.name}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid4().hex[:4]}"
    staging = Staging(target, run, new=program.creates)
    with StoreLock(_lock_path(program), run):
        waiting = unfinished(target)
        if waiting:
            raise InputError(
                "run-unfinished",
                f"run {waiting[0].name} on this store is unfinished",
                place=str(waiting[0]),
                remedy=f"continue it with `stdist resume {target}`, or drop it with "
                f"`stdist resume {target} --discard`",
            )
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
                "fingerprint": fingerprint(program),
                "versions": {name: version(name) for name in VERSIONED},
                "block_length": plan.block_length,
                "created": time.time(),
                "plan": plan.to_dict(),
            },
        )
        return _Execution(program, executor, staging, record, progress).run()


def resume(
    target: Path, build: Build, executor: Executor, *, progress: Progress | None = None
) -> Path:
    """Continue the unfinished run on `target`; only unfinished shards are computed.

    Raises
    ------
    InputError
        If there is nothing to resume, or inputs or versions changed since the run began.
    """
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
    program = build(facts["program"], facts["parameters"])
    with StoreLock(_lock_path(program), facts["run"]):
        if not record.read_json("commit.json") and fingerprint(program) != facts["fingerprint"]:
            raise InputError(
                "run-changed",
                "inputs, parameters or library versions are not those the run began with",
                place=str(record.folder),
                remedy="restore them, or drop the run with `stdist resume --discard` and "
                "start again",
            )
        return _Execution(program, executor, staging, record, progress).run()


def discard(target: Path) -> list[str]:
    """Remove the unfinished runs on `target` and what they staged; return their names."""
    names = []
    for folder in unfinished(target):
        record = RunRecord(folder)
        facts = record.read_json("run.json")
        path = _lock_path_of(target, facts["creates"])
        with StoreLock(path, f"discard {facts['run']}"):
            if record.read_json("commit.json"):
                raise InputError(
                    "run-committing",
                    f"run {facts['run']} is complete and was being switched in",
                    place=str(folder),
                    remedy=f"finish it with `stdist resume {target}`",
                )
            _remove(folder, partial_path(target) if facts["creates"] else folder)
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
    """Run a program without a store; return its outputs and results by key."""
    block_length = make_plan(program, executor.resources(), block_length).block_length
    execution = _Execution(program, executor, None, None, progress)
    execution.block_length = block_length
    return execution.compute_in_memory()


class _Execution:
    """One attempt at a run."""

    def __init__(
        self,
        program: Program,
        executor: Executor,
        staging: Staging | None,
        record: RunRecord | None,
        progress: Progress | None,
    ) -> None:
        self.program, self.executor = program, executor
        self.staging, self.record = staging, record
        self.progress = progress or Progress()
        self.values: dict[str, Any] = {}
        self.memory: dict[str, Any] = {}
        self.prefix = "memory"
        self.fingerprint = ""
        self.block_length = 2**16

    def run(self) -> Path:
        record, staging = self.record, self.staging
        assert record is not None
        assert staging is not None
        facts = record.read_json("run.json")
        self.block_length, self.fingerprint = facts["block_length"], facts["fingerprint"]
        started, computing = time.time(), True
        try:
            self.prefix = f"{facts['run']}.{record.attempts()}"
            record.set_state("running")
            if not record.read_json("commit.json"):
                self._compute()
                keys = [output.key for output in self.program.outputs()]
                for key, value in self.program.results(self._loaded()).items():
                    staging.write_element(key, value)
                    keys.append(key)
                computing = False
                record.set_state("committing")
                staging.commit(record.files(), keys)
            else:
                staging.finish_commit()
            finished = RunRecord(staging.run_folder)
            finished.tidy()
            finished.set_state("done", seconds=time.time() - started)
            (finished.folder / "commit.json").unlink()
        except BaseException as error:
            if record.folder.exists():
                with suppress(OSError):  # on a full disk
                    record.set_state("stopped", error=f"{type(error).__name__}: {error}")
            if isinstance(error, OSError) and is_fatal(error):  # on the client's side
                raise _stopped(error, "the client's own files", staging.target) from error
            if isinstance(error, KeyboardInterrupt):
                raise RunStopped(
                    "interrupted",
                    "the run was interrupted",
                    place=str(record.folder),
                    remedy=f"continue with `stdist resume {staging.target}`",
                ) from error
            if isinstance(error, InputError) and computing:  # found in the data: leave no trace
                _remove(record.folder, staging.root if facts["creates"] else record.folder)
            raise
        finally:
            self.progress.close()
        return finished.folder

    def compute_in_memory(self) -> dict[str, Any]:
        self._compute()
        return self.memory | dict(self.program.results(self._loaded()))

    def _loaded(self) -> dict[str, Any]:
        return {
            name: value.load() if isinstance(value, ValueReference) else value
            for name, value in self.values.items()
        }

    def _compute(self) -> None:
        for stage in self.program.stages:
            if isinstance(stage, Map):
                self._map(stage)
            elif isinstance(stage, Loop):
                self._loop(stage)
            else:
                self.values[stage.name] = self._value(stage, stage.name)

    def _save(self, name: str, arrays: Mapping[str, Any]) -> Any:
        return dict(arrays) if self.record is None else self.record.save_value(name, arrays)

    def _value(self, stage: Reduce | Each, name: str) -> Any:
        """Value of a stage: from its checkpoint, or computed and checkpointed."""
        kept = None if self.record is None else self.record.value(name)
        if kept is not None:
            return kept
        value = self._reduce(stage) if isinstance(stage, Reduce) else self._each(stage, name)
        return self._save(name, value)

    def _reduce(self, stage: Reduce) -> dict[str, Any]:
        blocks = Blocks(stage.n_rows, self.block_length)
        graph, watched = compile_stage(stage, blocks, Binding(self.prefix, self.values))
        total: dict[str, Any] = {}

        share = sum(s.stored_bytes() for s in stage.reads.values()) // len(blocks)

        def on_done(key: Hashable, fetch: Callable[[], Any]) -> None:
            if key == watched[-1]:
                partial, records = fetch()
                total.update(partial)
                for record in records:
                    self._event(record)
            if key[2] == "block":  # type: ignore[index]
                # the leaves stay on the workers, so their bytes are a share of the input
                self.progress.advance(1, share)

        self._run(stage.name, graph, watched, on_done, len(blocks), 0)
        if stage.finalize is None:
            return total
        loaded = {name: self._loaded()[name] for name in stage.uses}
        return stage.finalize(total, **loaded)

    def _each(self, stage: Each, name: str) -> dict[str, Any]:
        results: dict[int, Any] = {}
        if self.record is not None:
            for item in range(stage.n_items):
                kept = self.record.value(f"{name}.item{item:06d}")
                if kept is not None:
                    results[item] = kept.load()
        blocks = Blocks(1, self.block_length)
        binding = Binding(self.prefix, self.values)
        graph, watched = compile_stage(stage, blocks, binding, results)

        def on_done(key: Hashable, fetch: Callable[[], Any]) -> None:
            item = key[-1]  # type: ignore[index]
            results[item], records = fetch()
            if self.record is not None and stage.n_items > 1:
                self.record.save_value(f"{name}.item{item:06d}", results[item])
            for record in records:
                self._event(record)
            self.progress.advance(1, 0)

        self._run(stage.name, graph, watched, on_done, stage.n_items, len(results))
        ordered = [results[item] for item in range(stage.n_items)]
        collected = stage.collect(ordered) if stage.collect else ordered[0]
        return collected

    def _loop(self, loop: Loop) -> None:
        """Repeat the body; the state of each finished round is a checkpoint."""
        first, state = 0, self.values[loop.initial]
        if self.record is not None:
            final = self.record.value(loop.name)
            if final is not None:
                self.values[loop.name] = final
                return
            rounds = self.record.values_named(f"{loop.name}.round")
            if rounds:
                first, state = int(rounds[-1][-6:]) + 1, self.record.value(rounds[-1])
        attempt = self.prefix
        for number in range(first, loop.max_iterations):
            self.prefix = f"{attempt}.round{number}"  # a key never stands for two computations
            self.values[loop.name] = state
            previous = self._loaded()[loop.name]
            for stage in loop.body:
                current = (
                    self._reduce(stage)
                    if isinstance(stage, Reduce)
                    else self._each(stage, f"{stage.name}.round{number:06d}")
                )
                self.values[stage.name] = self._save(stage.name, current)
            if number + 1 == loop.max_iterations or loop.converged(previous, current):
                # no checkpoint of the last round: a resume could not tell that it was the last
                state = self._save(loop.name, {**current, "n_iterations": np.int64(number + 1)})
                break
            state = self._save(f"{loop.name}.round{number:06d}", current)
            if self.record is not None and number:
                self.record.drop_value(f"{loop.name}.round{number - 1:06d}")
        self.prefix = attempt
        self.values[loop.name] = state

    def _map(self, stage: Map) -> None:
        blocks = Blocks(stage.n_rows, self.block_length)
        if self.record is None:
            sink = MemorySink(stage.n_rows)
            graph, watched = compile_stage(stage, blocks, Binding("memory", self.values, sink))
            self._run(stage.name, graph, watched, lambda *_: None, len(blocks), 0)
            finished = sink.finished(stage.writes)
            self.memory |= {stage.writes[name].key: finished[name] for name in finished}
            return
        assert self.staging is not None
        for output in stage.writes.values():
            if output.kind != "csr":
                self.staging.create(output, stage.n_rows, self.block_length)
        parts = str(self.record.folder / "parts")
        root = str(self.staging.root)
        binding = Binding(
            self.prefix,
            self.values,
            StoreSink(root, parts),
            str(self.record.done_folder(stage.name)),
            self.fingerprint,
        )
        done = self.record.finished(stage.name, Path(root))
        graph, watched = compile_stage(stage, blocks, binding, done)
        self._run(stage.name, graph, watched, self._on_record, len(blocks), len(done))
        for output in stage.writes.values():
            if output.kind == "csr":
                self._assemble(output, blocks, parts, root)
            self.staging.describe(
                output, stage.n_rows, self.record.contents(stage.name, output.key)
            )

    def _assemble(self, output: Any, blocks: Blocks, parts: str, root: str) -> None:
        assert self.record is not None
        sizes = part_sizes(parts, output.key, len(blocks))
        create_csr(Path(root), output, blocks.n_rows, int(sizes.sum()))
        name = f"{output.key}:assemble"
        folder = self.record.done_folder(name)
        done = self.record.finished(name, Path(root))
        graph: dict[Hashable, tuple] = {}
        n_shards = -(-int(sizes.sum()) // CSR_SHARD)
        for shard in range(n_shards):
            if shard not in done:
                path = str(folder / f"{shard:06d}.json")
                graph[(self.prefix, name, shard)] = (
                    run_assemble_shard, output, shard, parts, sizes, root, path, self.fingerprint,
                )  # fmt: skip
        self._run(name, graph, list(graph), self._on_record, n_shards, len(done))
        offsets = folder.with_name(f"{folder.name}-indptr") / "000000.json"
        if not offsets.exists():
            write_offsets(output, blocks, parts, sizes, root, str(offsets), self.fingerprint)

    def _on_record(self, key: Hashable, fetch: Callable[[], TaskRecord]) -> None:
        record = fetch()
        self._event(record)
        self.progress.advance(1, record.bytes_read + record.bytes_written)

    def _event(self, record: TaskRecord) -> None:
        if self.record is not None:
            self.record.add_event(record)

    def _run(
        self,
        stage: str,
        graph: Graph,
        watched: list[Hashable],
        on_done: Callable[[Hashable, Any], None],
        total: int,
        done: int,
    ) -> None:
        self.progress.begin(stage, total, done)
        failures, _ = self.executor.run(graph, watched, on_done)
        self.progress.end()
        if failures:
            worst = next((f for f in failures if is_fatal(f.error)), failures[0])
            if self.record is None or isinstance(worst.error, StdistError):
                raise worst.error
            assert self.staging is not None
            place = f"stage {stage!r}, task {worst.key} ({len(failures)} failed)"
            raise _stopped(worst.error, place, self.staging.target) from worst.error


def _remove(run_folder: Path, staged: Path) -> None:
    (run_folder / "run.json").unlink()  # from here on it is no run, whatever is still there
    shutil.rmtree(staged)


def _stopped(error: BaseException, place: str, target: Path) -> RunStopped:
    full = isinstance(error, OSError) and is_fatal(error)
    return RunStopped(
        "disk-full" if full else "task-failed",
        f"{type(error).__name__}: {error}",
        place="; ".join([*getattr(error, "__notes__", []), place]),
        remedy=("free some space, then " if full else "remove the cause, then ")
        + f"`stdist resume {target}`; finished shards are kept",
    )


def _lock_path(program: Program) -> Path:
    assert program.target is not None
    return _lock_path_of(program.target, program.creates)


def _lock_path_of(target: Path, creates: bool) -> Path:
    # a store that is being created is renamed at the end, so its lock stays outside
    return target.with_name(f".{target.name}.lock") if creates else target / ".stdist" / "lock"


def check_output(program: Program, overwrite: bool = False) -> None:
    """Refuse an output that exists, or that is, contains or lies inside an input."""
    target = program.target
    assert target is not None
    place = target.resolve()
    inputs = {Path(s.store).resolve() for s in program.sources() if hasattr(s, "store")}
    inputs |= {Path(p).resolve() for p in program.parameters.get("inputs", [])}
    if program.creates:
        for path in inputs:
            if place == path or place in path.parents or path in place.parents:
                raise InputError(
                    "output-in-input",
                    "the output is, contains or lies inside an input",
                    place=f"output {place}, input {path}",
                    remedy="choose another output path",
                )
        if target.exists() and not unfinished(target):  # `start` says more of an unfinished run
            raise InputError(
                "output-exists",
                "the output exists",
                place=str(target),
                remedy="choose another path, or remove it first",
            )
        return
    keys = {output.key for output in program.outputs()}
    reads = {
        source.key
        for source in program.sources()
        if isinstance(source, ArrayElement) and Path(source.store).resolve() == place
    }
    if keys & reads:
        raise InputError(
            "output-is-input",
            f"{sorted(keys & reads)} would be overwritten while being read",
            place=str(target),
            remedy="choose another key_added",
        )
    taken = sorted(key for key in keys if (target / key).exists())
    if taken and not overwrite and not unfinished(target):
        raise InputError(
            "output-exists",
            f"the store already has {', '.join(taken)}",
            place=str(target),
            remedy="choose another key_added, or allow overwriting",
        )


def _check_space(program: Program, target: Path) -> None:
    """Refuse early where the output clearly cannot fit or the folder cannot be written."""
    folder = target if not program.creates else target.parent
    probe = folder / ".stdist-write-test.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"stdist")
    except OSError as error:
        raise InputError(
            "output-unwritable",
            f"cannot write there ({error.strerror})",
            place=str(folder),
            remedy="choose a folder with write permission and free space",
        ) from error
    finally:
        with suppress(OSError):
            probe.unlink()
    needed = _stored_estimate(program)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            "no-space",
            f"about {needed / 2**20:.0f} MiB are needed and {free / 2**20:.0f} MiB are free",
            place=str(folder),
            remedy="free some space or choose another disk",
        )


def _stored_estimate(program: Program) -> int:
    """Compressed bytes of the outputs, at the compression that the inputs have (else 1:10)."""
    stored = sum(source.stored_bytes() for source in program.sources())
    decoded = sum(
        int(np.prod(source.shape, dtype=np.int64)) * getattr(source.dtype, "itemsize", 64)
        for source in program.sources()
        if hasattr(source, "dtype")
    )
    ratio = min(1.0, stored / decoded) if stored and decoded else 0.1
    maps = [stage for stage in program.stages if isinstance(stage, Map)]
    return int(
        ratio * sum(o.row_bytes * stage.n_rows for stage in maps for o in stage.writes.values())
    )
