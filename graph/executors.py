"""Executors: the same graph in this process, or on a `dask.distributed` client.

A graph is a dict ``{key: (function, *arguments)}`` in the order of its dependencies; an argument
that is a key of the graph stands for that task's result.
"""

from __future__ import annotations

import errno
import functools
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import psutil

from stdist.graph.device import CPU, SETTING, chosen_device
from stdist.store import PlanRefused, StdistError

Graph = Mapping[Hashable, tuple]
OnDone = Callable[[Hashable, Callable[[], Any]], None]
RETRIES = 2
FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass(frozen=True)
class Resources:
    """What one worker offers.

    Memory in bytes (None: unlimited), threads, memory already in use, its device, and memory that
    compilation will take (see `compilation.resources_for`).
    """

    n_workers: int
    memory: int | None
    threads: int
    reserved: int
    device: str = CPU
    compilation: int = 0


@dataclass(frozen=True)
class Failure:
    """A task that failed after its retries."""

    key: Hashable
    error: BaseException


class Executor(Protocol):
    """Runs graphs."""

    def resources(self, *, device: bool = True) -> Resources: ...
    def everywhere(self, function: Callable[..., Any], *arguments: Any) -> list[Any]: ...
    def run(
        self, graph: Graph, watched: list[Hashable], on_done: OnDone
    ) -> tuple[list[Failure], int]: ...


def is_fatal(error: BaseException) -> bool:
    """Tell errors that every other task would meet too: a full disk, or wrong input."""
    return isinstance(error, StdistError) or (isinstance(error, OSError) and error.errno in FATAL)


class InProcess:
    """Runs tasks one after the other in this process: for small data, and for tests."""

    def resources(self, *, device: bool = True) -> Resources:
        """Return this process's share of the machine: three quarters of the free memory."""
        used, name, device_memory = _offer(device)
        limits = [int(0.75 * psutil.virtual_memory().available) + used, device_memory]
        return Resources(1, _smallest(limits), 1, used, name)

    def everywhere(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Call a function; see `Cluster.everywhere`."""
        return [function(*arguments)]

    def run(
        self, graph: Graph, watched: list[Hashable], on_done: OnDone
    ) -> tuple[list[Failure], int]:
        """Run the graph; see `Cluster.run`."""
        wanted, failures = set(watched), []
        results: dict[Hashable, Any] = {}
        uses = _count_uses(graph)
        for key, (function, *arguments) in graph.items():
            names = [a for a in arguments if isinstance(a, tuple) and a in graph]
            if any(name not in results for name in names):
                continue  # its input failed
            inputs = [results[a] if isinstance(a, tuple) and a in graph else a for a in arguments]
            result, error = _attempt(function, inputs)
            for name in names:
                uses[name] -= 1
                if not uses[name]:
                    del results[name]
            if error is not None:
                failures.append(Failure(key, error))
                if is_fatal(error):
                    break
                continue
            if uses[key]:
                results[key] = result
            if key in wanted:
                on_done(key, functools.partial(_same, result))
        return failures, len(graph)


def _same(result: Any) -> Any:
    return result


def _count_uses(graph: Graph) -> dict[Hashable, int]:
    uses = dict.fromkeys(graph, 0)
    for _, *arguments in graph.values():
        for argument in arguments:
            if isinstance(argument, tuple) and argument in graph:
                uses[argument] += 1
    return uses


def _attempt(function: Callable, inputs: list[Any]) -> tuple[Any, BaseException | None]:
    error: BaseException | None = None
    for _ in range(RETRIES + 1):
        try:
            return function(*inputs), None
        except Exception as caught:  # noqa: BLE001 - reported with stage and block
            error = caught
            if is_fatal(caught):
                break
    return None, error


class Cluster:
    """Runs tasks on a `dask.distributed.Client`.

    The scheduler queues tasks and hands each worker little more than it has threads, so in-flight
    work is bounded; results of watched tasks are fetched as they come and released at once.
    """

    def __init__(self, client: Any) -> None:
        self.client = client

    def resources(self, *, device: bool = True) -> Resources:
        """Return the smallest worker; without `device`, of its host memory alone.

        Raises
        ------
        PlanRefused
            If the cluster has no worker within its ``stdist.wait-for-workers`` seconds, or its
            workers differ in their device.
        InputError
            If a worker lacks the device that it is configured for.
        """
        import dask
        from dask.utils import parse_timedelta

        patience = parse_timedelta(dask.config.get("stdist.wait-for-workers", "120s"))
        try:
            self.client.wait_for_workers(1, timeout=patience)
        except TimeoutError:
            raise PlanRefused(
                "no-workers",
                f"the cluster has no worker after {patience:.0f} s",
                place=str(self.client.scheduler_info()["address"]),
                remedy="start workers, or raise stdist.wait-for-workers in Dask's configuration",
            ) from None
        workers = self.client.scheduler_info(n_workers=-1)["workers"].values()
        offers = self.everywhere(_offer, device)
        devices = sorted({device for _, device, _ in offers}) or [CPU]
        if len(devices) > 1:
            raise PlanRefused(
                "devices-differ",
                f"workers are configured for different devices: {', '.join(devices)}",
                place=str(self.client.scheduler_info()["address"]),
                remedy=f"give all workers the same {SETTING}",
            )
        return Resources(
            len(workers),
            _smallest(
                [worker["memory_limit"] or None for worker in workers]
                + [device_memory for _, _, device_memory in offers]
            ),
            max(worker["nthreads"] for worker in workers),
            max((used for used, _, _ in offers), default=0),
            devices[0],
        )

    def everywhere(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Call a function on every worker; return or raise what the calls did."""
        found = []
        for result in self.client.run(function, *arguments, on_error="return").values():
            if isinstance(result, OSError):
                continue  # this worker is leaving
            if isinstance(result, Exception):
                raise result
            found.append(result)
        return found

    def run(
        self, graph: Graph, watched: list[Hashable], on_done: OnDone
    ) -> tuple[list[Failure], int]:
        """Run a graph, calling ``on_done(key, fetch)`` for each watched task that ends.

        ``fetch()`` returns the task's result; large results that nobody fetches stay where they
        are.

        A task is retried `RETRIES` times, on any worker; when it fails for good the others still
        finish, unless the cause would meet them too (`is_fatal`).

        Returns
        -------
        failures
            Watched tasks that failed, with the errors.
        n_tasks
            Number of tasks in the graph.
        """
        from distributed.client import ClosedClientError, FutureCancelledError
        from distributed.comm import CommClosedError

        if not graph:
            return [], 0
        try:
            return self._run(graph, watched, on_done), len(graph)
        except (ClosedClientError, CommClosedError, FutureCancelledError) as error:
            return [Failure(watched[-1], error)], len(graph)  # the scheduler is gone

    def _run(self, graph: Graph, watched: list[Hashable], on_done: OnDone) -> list[Failure]:
        from distributed import as_completed
        from distributed.client import FutureCancelledError

        failures: list[Failure] = []
        keys = {_text(key): key for key in watched}
        futures = self.client.get(
            _to_dask(graph), [_text(key) for key in watched], sync=False, retries=RETRIES
        )
        pending = as_completed(futures, loop=self.client.loop)
        del futures
        try:
            for future in pending:
                key = keys[future.key]
                if future.status == "finished":
                    on_done(key, future.result)
                    future.release()
                    continue
                try:
                    error = future.exception()
                except FutureCancelledError as cancelled:
                    error = cancelled
                failures.append(Failure(key, error))
                if is_fatal(error):
                    break
        finally:
            if not pending.is_empty():
                self._abandon(list(pending.futures), {_text(key) for key in graph})
        return failures

    def _abandon(self, futures: list[Any], keys: set[str]) -> None:
        """Cancel what has not begun, and wait for what has: it still writes into the store."""
        self.client.cancel(futures, force=True)
        while self.client.status == "running":
            running = self.client.run(_running_keys, on_error="ignore")
            if not any(keys & names for names in running.values()):
                return
            time.sleep(0.05)


def _running_keys(dask_worker: Any) -> set[str]:
    return set(dask_worker.active_threads.values())


def _offer(device: bool) -> tuple[int, str, int | None]:
    """Bytes that this process uses, its device (if one is asked for) and the device's memory."""
    used = psutil.Process().memory_info().rss
    return (used, *chosen_device()) if device else (used, CPU, None)


def _smallest(limits: list[int | None]) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)


def _text(key: Hashable) -> str:
    return "-".join(map(str, key)) if isinstance(key, tuple) else str(key)


def _to_dask(graph: Graph) -> dict[str, Any]:
    from dask._task_spec import Task, TaskRef

    return {
        _text(key): Task(
            _text(key),
            function,
            *[TaskRef(_text(a)) if isinstance(a, tuple) and a in graph else a for a in arguments],
        )
        for key, (function, *arguments) in graph.items()
    }
