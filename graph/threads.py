"""One thread of BLAS and OpenMP per task, however many tasks a process runs at once."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import lru_cache

from threadpoolctl import ThreadpoolController


class _ProcessLimit:
    """A limit of BLAS, whose threads are the process's: the last task that ends takes it away.

    If every task took away its own, one that ends would free the threads of those beside it, and
    sums would depend on what else ran. All is done by one thread, because threadpoolctl ignores a
    thread while another has a limit.
    """

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Start without tasks; a forked process must, for it has no keeper."""
        self.lock = threading.Lock()
        self.keeper = ThreadPoolExecutor(1, "stdist-blas")
        self.tasks = 0
        self.limited: set[int] = set()
        self.limits = ExitStack()

    def enter(self, modules: int) -> None:
        """Limit what is loaded, for one task more."""
        with self.lock:
            if modules not in self.limited:  # a library may have come with them
                self.keeper.submit(self._limit, modules).result()
                self.limited.add(modules)
            self.tasks += 1

    def leave(self) -> None:
        """Count a task as over."""
        with self.lock:
            self.tasks -= 1
            if not self.tasks:
                self.limited.clear()
                self.keeper.submit(self.limits.close).result()

    def _limit(self, modules: int) -> None:
        self.limits.enter_context(_libraries(modules).limit(limits=1, user_api="blas"))


_BLAS = _ProcessLimit()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_BLAS.begin)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: the process, and the thread itself where libraries tell them apart."""
    modules = len(sys.modules)
    _BLAS.enter(modules)
    try:
        with _libraries(modules).limit(limits=1):
            yield
    finally:
        _BLAS.leave()


@lru_cache(maxsize=1)
def _libraries(modules: int) -> ThreadpoolController:
    """Libraries with threads among the modules that are loaded; to find them takes 3 ms."""
    return ThreadpoolController()
