"""Memory for compilation: the first run of a program on a machine takes more than those after it.

Numba compiles a kernel when it is first called with arguments of some types, and keeps the machine
code in its cache; what compilation takes stays with the process. So a finished run leaves a note
beside the cached code of its kernels, and a plan counts compilation for every worker without one.
"""

from __future__ import annotations

import gc
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from inspect import ismodule
from pathlib import Path
from typing import Any

from stdist.graph.executors import Executor, Resources
from stdist.graph.stage import Program

COMPILATION = 256 * 2**20
"""Bytes that a worker may keep of the compilation of all kernels of a program."""

Kernels = tuple[Callable[..., Any], ...]


def resources_for(program: Program, executor: Executor) -> Resources:
    """Resources for a program: with memory for compilation, if a worker will compile."""
    # first: it makes workers import what the program needs, and this is then in their memory
    compiled = executor.everywhere(is_compiled, _kernels(program), _types(program))
    found = executor.resources(device=program.on_device)
    return found if all(compiled) else replace(found, compilation=COMPILATION)


def note_compiled(program: Program, executor: Executor) -> None:
    """Let workers note that they have run a program."""
    with suppress(OSError):  # the cluster is gone; the run is complete
        executor.everywhere(_leave_note, _kernels(program), _types(program))


def _kernels(program: Program) -> Kernels:
    return tuple(_innermost(stage.kernel) for stage in program.block_stages())


def _innermost(kernel: Any) -> Any:
    """Return the function of a partial or scoped one."""
    while hasattr(kernel, "func"):
        kernel = kernel.func
    return kernel


def _types(program: Program) -> str:
    """What decides which kernels a program calls with what types: its parameters but numbers."""
    parameters = {k: _type(v) for k, v in program.parameters.items() if k != "data"}
    sources = [f"{type(s).__name__} {getattr(s, 'dtype', '')}" for s in program.sources()]
    return json.dumps([program.name, parameters, sources], sort_keys=True)


def _type(value: Any) -> Any:
    return value if isinstance(value, str | bool) else type(value).__name__


def free_compilation() -> None:
    """Free what compilation has left: it keeps frames in cycles, and so the arrays of a block."""
    if "numba" in sys.modules:
        _listen()
        if _COMPILED:
            _COMPILED.clear()
            gc.collect()


_COMPILED: set[str] = set()
"""Not empty if this process has compiled since garbage was collected."""


@cache
def _listen() -> None:
    from numba.core import event

    class Listener(event.Listener):  # numba's own would keep every event, and so frames of errors
        def on_start(self, event: Any) -> None: ...

        def on_end(self, event: Any) -> None:
            _COMPILED.add("since then")

    event.register("numba:compile", Listener())
    _COMPILED.add("before")


def is_compiled(kernels: Kernels, types: str) -> bool:
    """Tell whether this process needs to compile nothing, as far as it was noted."""
    notes = list(_notes(kernels, types))
    return not notes or notes[0].exists()


def _leave_note(kernels: Kernels, types: str) -> None:
    with suppress(OSError):  # a cache that only compilation in this process fills
        for note in _notes(kernels, types):
            note.touch()


def _notes(kernels: Kernels, types: str) -> Iterator[Path]:
    """Path of the note, beside the code of the first compiled function; none without such."""
    modules = _modules(kernels)
    for module in modules:
        for value in vars(module).values():
            statistics = getattr(value, "stats", None)  # of a Numba dispatcher
            folder = getattr(statistics, "cache_path", None)
            if folder is not None:
                yield Path(folder) / f"{_digest(modules, types)}.compiled"
                return


def _modules(kernels: Kernels) -> list[Any]:
    """Modules of a package that the modules of its kernels import, in a fixed order."""
    found: dict[str, Any] = {}
    waiting = sorted({kernel.__module__ for kernel in kernels})
    packages = tuple({name.partition(".")[0] for name in waiting})
    while waiting:
        name = waiting.pop()
        if name in found or name.partition(".")[0] not in packages:
            continue
        found[name] = sys.modules[name]
        values = vars(found[name]).values()
        names = {v.__name__ if ismodule(v) else getattr(v, "__module__", None) for v in values}
        waiting += sorted(name for name in names if isinstance(name, str) and name in sys.modules)
    return [found[name] for name in sorted(found)]


def _digest(modules: list[Any], types: str) -> str:
    """Hash of what makes cached code stale: the sources, Numba's version and the processor."""
    from llvmlite import binding

    files = [module.__file__ for module in modules if getattr(module, "__file__", None)]
    stamps = [Path(file).stat().st_mtime_ns for file in files]
    parts = [types, stamps, version("numba"), binding.get_host_cpu_name()]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()
