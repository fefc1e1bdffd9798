"""Connect to a Dask cluster: this machine, an address, SLURM, Kubernetes or NVIDIA GPUs."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stdist.starters import STARTERS, worker_config
from stdist.store.errors import InputError

if TYPE_CHECKING:
    from distributed import Client

    from stdist.graph.executors import Executor

PATIENCE = "10s"
"""Time a running scheduler has to answer; Dask's ``stdist.wait-for-scheduler`` changes it."""


def connect(address: str | Path | None = None, **options: Any) -> Client:
    """Connect to a Dask cluster; the client is also the active one until it is closed.

    Parameters
    ----------
    address
        - None: workers on this machine, one per core, memory divided among them;
        - ``"tcp://host:8786"``: a running scheduler;
        - a path to a scheduler file (JSON);
        - ``"slurm"``: `dask_jobqueue.SLURMCluster`, configured by ``jobqueue.slurm`` in Dask's
          configuration and by `options`; ``n_jobs`` or ``n_workers`` scales it (default 1);
        - ``"kubernetes"``: `dask_kubernetes.operator.KubeCluster` (``n_workers``, ``image`` ...);
        - ``"cuda"``: `dask_cuda.LocalCUDACluster`, one worker per GPU; kernels that can run
          there do.
    **options
        Passed to the cluster class; ``n_workers``, ``memory_limit`` (bytes or text per worker) and
        ``dashboard_address`` are the usual ones. With the address of a running scheduler they go
        to `distributed.Client`, e.g. ``security``.

    Returns
    -------
    distributed.Client
        Close it, or use it in a ``with`` block; that also closes the cluster if this call
        started it.

    Raises
    ------
    InputError
        If the address is no address or nobody answers there, or an option, an extra or a driver
        is missing or wrong; names the remedy.

    Notes
    -----
    Workers started in another way use their GPU if their configuration of Dask says
    ``stdist.device: cuda`` (environment: ``DASK_STDIST__DEVICE=cuda``). All workers must agree:
    results of GPU and CPU differ in their last bits.

    Examples
    --------
    >>> client = connect(n_workers=2)  # doctest: +SKIP
    >>> client.dashboard_link  # doctest: +SKIP
    'http://127.0.0.1:40123/status'
    >>> client.close()  # doctest: +SKIP
    """
    import dask

    options = _checked(options)
    with dask.config.set(worker_config()):
        kind = str(address or "local")
        client = _adopt(STARTERS[kind](options)) if kind in STARTERS else _join(kind, options)
        try:
            _prepare_workers(client)
        except BaseException:
            client.close()
            raise
    return client


def _checked(options: dict[str, Any]) -> dict[str, Any]:
    from dask.utils import parse_bytes

    options = {name: value for name, value in options.items() if value is not None}
    if options.get("n_workers", 1) < 1:
        raise InputError(
            "workers-none",
            f"{options['n_workers']} workers cannot work",
            place="n_workers",
            remedy="ask for at least one",
        )
    if "memory_limit" in options:
        try:
            options["memory_limit"] = parse_bytes(options["memory_limit"])
        except ValueError as error:
            raise InputError(
                "memory-unreadable",
                f"{options['memory_limit']!r} is no amount of memory",
                place="memory_limit",
                remedy='use bytes or text such as "4GB"',
            ) from error
    return options


@cache
def _owning_client() -> type[Client]:
    from distributed import Client

    class OwningClient(Client):
        """A client that, when it closes, closes the cluster that was started for it."""

        _closed_cluster = False

        def close(self, *args: Any, **options: Any) -> None:
            try:
                super().close(*args, **options)
            finally:
                # once: the garbage collector closes again, maybe within a lock of the cluster's
                if self.cluster is not None and not self._closed_cluster:
                    self._closed_cluster = True
                    self.cluster.close()

    return OwningClient


def _adopt(cluster: Any) -> Client:
    try:
        return _owning_client()(cluster)
    except BaseException:
        cluster.close()
        raise


def _join(address: str, options: dict[str, Any]) -> Client:
    """Connect to a running scheduler."""
    import dask
    from dask.utils import parse_timedelta
    from distributed import Client

    fixed = sorted({"n_workers", "memory_limit"} & set(options))
    if fixed:
        raise InputError(
            "cluster-running",
            f"{' and '.join(fixed)} cannot be chosen for a cluster that runs already",
            place=address,
            remedy="leave them out, or start another cluster",
        )
    place = address
    if re.fullmatch(r"[\w.-]+:\d+", address):
        address = f"tcp://{address}"
    elif "://" not in address:
        address = _read_scheduler_file(Path(address))
        place = f"{address}, read from {place}"
    patience = parse_timedelta(dask.config.get("stdist.wait-for-scheduler", PATIENCE))
    try:
        _knock(address, options.get("security"), patience)
        return Client(address, **{"timeout": patience} | options)
    except Exception as error:
        # a peer that is no scheduler, e.g. a web server, makes the protocol fail in any way
        raise InputError(
            "cluster-unreachable",
            f"no Dask scheduler answers ({type(error).__name__}: {error})",
            place=place,
            remedy="check that the scheduler runs and that its port (not the dashboard's) is "
            "open to this machine",
        ) from error


def _read_scheduler_file(path: Path) -> str:
    if not path.is_file() and not (path.suffix == ".json" or len(path.parts) > 1):
        raise InputError(
            "cluster-unknown",
            f"{str(path)!r} is no cluster",
            place="connect(address)",
            remedy='use nothing, "tcp://host:port", a scheduler file, "slurm", "kubernetes" or '
            '"cuda"',
        )
    try:
        return json.loads(path.read_text())["address"]
    except FileNotFoundError:
        reason = "the scheduler file does not exist"
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"this is no scheduler file ({type(error).__name__}: {error})"
    raise InputError(
        "scheduler-file",
        reason,
        place=str(path),
        remedy=f"start one with `dask scheduler --scheduler-file {path}`, and wait until it has "
        "written the file",
    )


def _knock(address: str, security: Any, patience: float) -> None:
    """Shake hands in time: `Client` waits for ever for a peer that says nothing."""
    from distributed.comm import connect as open_comm
    from distributed.security import Security
    from distributed.utils import LoopRunner

    arguments = (security or Security()).get_connection_args("client")

    async def attempt() -> None:
        comm = await asyncio.wait_for(
            open_comm(address, timeout=0.8 * patience, **arguments), patience
        )
        await comm.close()

    LoopRunner().run_sync(attempt)


def _prepare_workers(client: Client) -> None:
    """Give workers that stdist did not start the same single-threaded libraries.

    Raises
    ------
    InputError
        If a worker has no stdist or another version: it would run other code.
    """
    from stdist import __version__

    for worker, found in client.run(_prepare, on_error="return").items():
        if isinstance(found, OSError):
            continue  # this worker is leaving
        if found != __version__:
            raise InputError(
                "workers-differ",
                f"stdist here is {__version__}, on the worker {found}",
                place=worker,
                remedy="use the same environment or container image everywhere",
            )


def _prepare() -> str:
    import numcodecs.blosc
    import zarr

    from stdist import __version__

    numcodecs.blosc.set_nthreads(1)
    zarr.config.set({"threading.max_workers": 1})
    logging.getLogger("distributed.worker").addFilter(_is_news)
    return __version__


def _is_news(record: logging.LogRecord) -> bool:
    """Drop the traceback of a heartbeat that finds the scheduler closed: every close risks it."""
    return "during heartbeat" not in record.getMessage()


@contextmanager
def executor_for(client: Client | None, n_rows: int) -> Iterator[Executor]:
    """Choose where a public function runs.

    The given client, else the active one, else this process for data of few rows, else workers on
    this machine for the time of the call.
    """
    from stdist.graph import Cluster, InProcess
    from stdist.graph.device import CUDA, configured_device
    from stdist.graph.plan import MINIMUM_BLOCK

    client = client or active_client()
    if client is not None:
        yield Cluster(client)
    elif n_rows <= MINIMUM_BLOCK:
        yield InProcess()
    else:
        gpus = [CUDA] if configured_device() == CUDA else []
        with connect(*gpus) as local:
            yield Cluster(local)


def active_client() -> Client | None:
    """Return the active `distributed.Client`, if there is one."""
    if "distributed" not in sys.modules:
        return None
    from distributed import get_client

    try:
        client = get_client()
    except ValueError:
        return None
    return client if client.status == "running" else None


__all__ = ["active_client", "connect", "executor_for"]
