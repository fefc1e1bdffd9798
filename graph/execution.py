"""One attempt at a run: stage after stage, each from its checkpoint or computed."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from stdist.graph.assemble import create_csr, part_sizes, run_assemble_shard, write_offsets
from stdist.graph.blocks import Blocks
from stdist.graph.compile import Binding, compile_rearrange, compile_stage
from stdist.graph.device import CPU
from stdist.graph.executors import Executor, Graph, is_fatal
from stdist.graph.lifetimes import spent_states
from stdist.graph.progress import Progress
from stdist.graph.rearrange import FileMoves, MemoryMoves
from stdist.graph.record import RunRecord
from stdist.graph.sinks import MemorySink, StoreSink, part_path
from stdist.graph.stage import Arrays, Each, Loop, Map, Program, Rearrange, Reduce
from stdist.graph.state import FileState, MemoryState, Recollection, StateStore
from stdist.graph.task import TaskRecord, load_values
from stdist.store import InputError, Output, RunStopped, Staging, StdistError
from stdist.store.layout import CSR_SHARD
from stdist.store.staging import scratch_path


class Execution:
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
        self.state: StateStore = MemoryState()
        if record is not None:
            self.state = FileState(str(record.folder / "state"))
        self.versions = dict.fromkeys(program.state, 0)
        self.prefix = "memory"
        self.fingerprint = ""
        self.block_length = 2**16
        self.device = CPU

    def run(self) -> Path:
        """Compute what is not done, switch the results in, and return the run's folder."""
        record, staging = self.record, self.staging
        assert record is not None
        assert staging is not None
        facts = record.read_json("run.json")
        self.block_length, self.fingerprint = facts["block_length"], facts["fingerprint"]
        self.device = facts["device"]
        started, computing = time.time(), True
        try:
            self.prefix = f"{facts['run']}.{record.attempts()}"
            record.set_state("running")
            if not record.read_json("commit.json"):
                self._compute()
                keys = [output.key for output in self.program.outputs()]
                keys += self._write_results(staging)
                computing = False
                record.set_state("committing")
                staging.commit(record.files(), keys)
            else:
                staging.finish_commit()
            if staging.new:
                shutil.rmtree(scratch_path(staging.target), ignore_errors=True)
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
                remove_run(record.folder, staging.root if facts["creates"] else record.folder)
            raise
        finally:
            self.progress.close()
        return finished.folder

    def _write_results(self, staging: Staging) -> list[str]:
        results = self.program.results(_Loaded(self.values))
        undeclared = set(results) - set(self.program.result_keys)
        if undeclared and not self.program.creates:
            message = f"program {self.program.name!r} did not declare {sorted(undeclared)}"
            raise ValueError(message)
        for key, value in results.items():
            staging.write_element(key, value)
        return list(results)

    def compute_in_memory(self) -> dict[str, Any]:
        """Compute everything and return outputs and results by key."""
        self._compute()
        return self.memory | dict(self.program.results(_Loaded(self.values)))

    def _compute(self) -> None:
        for stage, spent in zip(self.program.stages, spent_states(self.program), strict=True):
            if isinstance(stage, Map):
                self._map(stage)
            elif isinstance(stage, Loop):
                self._loop(stage)
            elif isinstance(stage, Rearrange):
                self._rearrange(stage)
            else:
                self.values[stage.name] = self._value(stage, stage.name)
            for name in spent:
                self.state.drop_before(name, self.versions[name] + 1)

    def _save(self, name: str, arrays: Mapping[str, Any]) -> Any:
        return dict(arrays) if self.record is None else self.record.save_value(name, arrays)

    def _value(self, stage: Reduce | Each, name: str) -> Any:
        """Value of a stage: from its checkpoint, or computed and checkpointed."""
        kept = None if self.record is None else self.record.value(name)
        if kept is not None:
            self._advance(stage.updates if isinstance(stage, Reduce) else ())
            return kept
        value = self._reduce(stage) if isinstance(stage, Reduce) else self._each(stage, name)
        return self._save(name, value)

    def _recollection(self, stage: Map | Reduce | Rearrange) -> Recollection | None:
        updates = () if isinstance(stage, Map) else stage.updates
        if not stage.recalls and not updates:
            return None
        return Recollection(
            self.state,
            self.program.state,
            {name: self.versions[name] for name in stage.recalls},
            {name: self.versions[name] + 1 for name in updates},
        )

    def _advance(self, updates: Iterable[str], rounds: int = 1) -> None:
        for name in updates:
            self.versions[name] += rounds

    def _reduce(self, stage: Reduce) -> dict[str, Any]:
        blocks = Blocks(stage.n_rows, self.block_length)
        binding = Binding(self.prefix, self.values, self._recollection(stage), device=self.device)
        graph, watched = compile_stage(stage, blocks, binding)
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

        self._run(stage.name, graph, watched, on_done, stage.n_blocks(blocks), 0)
        self._advance(stage.updates)
        if stage.finalize is None:
            return total
        return stage.finalize(total, **load_values(self.values, stage.uses))

    def _each(self, stage: Each, name: str) -> dict[str, Any]:
        results: dict[int, Any] = {}
        if self.record is not None:
            for item in range(stage.n_items):
                kept = self.record.value(f"{name}.item{item:06d}")
                if kept is not None:
                    results[item] = kept.load()
        blocks = Blocks(1, self.block_length)
        binding = Binding(self.prefix, self.values, device=self.device)
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

    def _rearrange(self, stage: Rearrange) -> None:
        """Move rows; what is checkpointed is that it is done."""
        name = f"{stage.name}.moved"
        if self.record is not None and self.record.value(name) is not None:
            self._advance(stage.updates)
            return
        blocks = Blocks(stage.n_rows, self.block_length)
        places = Blocks(stage.places, self.block_length)
        folder = None if self.record is None else self.record.folder / "moves" / stage.name
        moves = MemoryMoves() if folder is None else FileMoves(str(folder))
        binding = Binding(self.prefix, self.values, self._recollection(stage))
        steps = compile_rearrange(stage, blocks, places, binding, moves)
        for step, (graph, watched) in zip(("out", "in"), steps, strict=True):
            self._run(f"{stage.name} {step}", graph, watched, self._on_record, len(graph), 0)
        self._advance(stage.updates)
        if folder is not None:
            self._save(name, {"places": np.int64(stage.places)})
            shutil.rmtree(folder, ignore_errors=True)

    def _loop(self, loop: Loop) -> None:
        """Repeat the body; the state of each finished round is a checkpoint."""
        first, state = 0, self.values[loop.initial]
        if self.record is not None:
            final = self.record.value(loop.name)
            if final is not None:
                self.values[loop.name] = final
                self._advance(loop.updates(), int(final.load()["n_iterations"]))
                return
            rounds = self.record.values_named(f"{loop.name}.round")
            if rounds:
                first, state = int(rounds[-1][-6:]) + 1, self.record.value(rounds[-1])
                self._advance(loop.updates(), first)
        attempt = self.prefix
        for number in range(first, loop.max_iterations):
            self.prefix = f"{attempt}.round{number}"  # a key never stands for two computations
            self.values[loop.name] = state
            previous = load_values(self.values, (loop.name,))[loop.name]
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
            if self.record is not None:
                self.record.drop_values(f"{loop.name}.round{number - 1:06d}")
                for stage in loop.body:
                    self.record.drop_values(f"{stage.name}.round{number:06d}.item*")
            for name in loop.updates():
                self.state.drop_before(name, self.versions[name])
        self.prefix = attempt
        self.values[loop.name] = state

    def _map(self, stage: Map) -> None:
        blocks = Blocks(stage.n_rows, self.block_length)
        if self.record is None:
            sink = MemorySink(stage.n_rows)
            binding = Binding(
                "memory", self.values, self._recollection(stage), sink, device=self.device
            )
            graph, watched = compile_stage(stage, blocks, binding)
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
            self._recollection(stage),
            StoreSink(root, parts),
            str(self.record.done_folder(stage.name)),
            self.fingerprint,
            self.device,
        )
        done = self.record.finished(stage.name, Path(root))
        for output in stage.writes.values():
            if output.kind == "csr":
                done = {n for n in done if part_path(Path(parts), output.key, n).exists()}
        graph, watched = compile_stage(stage, blocks, binding, done)
        self._run(stage.name, graph, watched, self._on_record, len(blocks), len(done))
        for output in stage.writes.values():
            if output.kind == "csr":
                self._assemble(output, blocks, parts, root)
            self.staging.describe(
                output, stage.n_rows, self.record.contents(stage.name, output.key)
            )

    def _assemble(self, output: Output, blocks: Blocks, parts: str, root: str) -> None:
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


class _Loaded(Mapping[str, Arrays]):
    """Values, each read when it is asked for: together they may be large."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.references = values

    def __getitem__(self, name: str) -> Arrays:
        return load_values(self.references, (name,))[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.references)

    def __len__(self) -> int:
        return len(self.references)


def remove_run(run_folder: Path, staged: Path) -> None:
    """Remove a run and what it staged."""
    (run_folder / "run.json").unlink()  # from here on it is no run, whatever is still there
    shutil.rmtree(staged)


def _stopped(error: BaseException, place: str, target: Path) -> RunStopped:
    full = isinstance(error, OSError) and is_fatal(error)
    return RunStopped(
        "disk-full" if full else "task-failed",
        f"{type(error).__name__}: {error}",
        place="; ".join([*getattr(error, "__notes__", []), place]),
        remedy=("free some space, then " if full else "remove the cause, then ")
        + f"`stdist resume {target}` (finished shards are kept), or drop the run with --discard",
    )
