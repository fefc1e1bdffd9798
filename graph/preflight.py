"""Checks before anything is written: where outputs go, and whether there is room."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np

from stdist.graph.lifetimes import most_row_bytes
from stdist.graph.record import unfinished
from stdist.graph.stage import Map, Program
from stdist.store import ArrayElement, InputError


def lock_path(target: Path, *, creates: bool) -> Path:
    """Path of the lock of a store."""
    # a store that is being created is renamed at the end, so its lock stays outside
    return target.with_name(f".{target.name}.lock") if creates else target / ".stdist" / "lock"


def refuse_unfinished(target: Path) -> None:
    """Refuse a store on which a run waits to be resumed."""
    waiting = unfinished(target)
    if waiting:
        raise InputError(
            "run-unfinished",
            f"run {waiting[0].name} on this store is unfinished",
            place=str(waiting[0]),
            remedy=f"continue it with `stdist resume {target}`, or drop it with "
            f"`stdist resume {target} --discard`",
        )


def added_keys(program: Program) -> set[str]:
    """Keys of everything that a program adds to a store."""
    return {output.key for output in program.outputs()} | set(program.result_keys)


def check_keys(program: Program) -> None:
    """Refuse names that are no names, or that belong to the store."""
    for key in sorted(added_keys(program) - {"X"}):
        group, _, name = key.partition("/")
        if not name or name in (".", "..", "_index") or "/" in name or key == "uns/stdist":
            raise InputError(
                "key-invalid",
                f"{name!r} cannot name a result",
                place=f"{group} of the store",
                remedy="choose a plain name: not empty, without '/', not '_index'",
            )


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
    check_keys(program)
    keys = added_keys(program)
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
            remedy="overwrite it (--overwrite, overwrite=True), or choose another key_added where "
            "the program has one",
        )


def check_space(program: Program, target: Path) -> None:
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
    needed = _stored_estimate(program) + _state_bytes(program)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            "no-space",
            f"about {needed / 2**20:.0f} MiB are needed and {free / 2**20:.0f} MiB are free",
            place=str(folder),
            remedy="free some space or choose another disk",
        )


def _state_bytes(program: Program) -> int:
    """Bytes of the rows kept between passes: the version that is read and the one written."""
    n_rows = max((stage.n_rows for stage in program.block_stages()), default=0)
    return 2 * n_rows * most_row_bytes(program)


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
