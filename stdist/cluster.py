"""Connect to a Dask cluster: this machine, an address, SLURM, Kubernetes or NVIDIA GPUs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stdist.store.errors import InputError

if TYPE_CHECKING:
    from distributed import Client

    from stdist.graph.executors import Executor

LIBRARY_THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "BLOSC_NTHREADS",
    "ZARR_THREADING__MAX_WORKERS",
)
ONE_THREAD = dict.fromkeys(LIBRARY_THREADS, "1")
"""Environment of a worker: tasks are the parallelism, so libraries use one thread each."""

WORKER_CONFIG = {
    "distributed.nanny.pre-spawn-environ": ONE_THREAD | {"MALLOC_TRIM_THRESHOLD_": "65536"},
    # tasks write shards and return small records: there is nothing worth spilling to disk
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": 0.90,
    "distributed.worker.memory.terminate": 0.97,
    "distributed.scheduler.allowed-failures": 3,
    "distributed.comm.timeouts.connect": "60s",
}
SHARE = 0.75
"""Share of this machine's memory that local workers get; the rest is for client and scheduler."""


@contextmanager
def connect(address: str | None = None, **options: Any) -> Iterator[Client]:
    """Connect to a Dask cluster for the time of a ``with`` block.

    Parameters
    ----------
    address
        - None: workers on this machine, one per core, memory divided among them;
        - ``"tcp://host:8786"``: a running scheduler;
        - a path to a scheduler file (JSON);
        - ``"slurm"``: `dask_jobqueue.SLURMCluster`, configured by ``jobqueue.slurm`` in Dask's
          configuration and by `options`; ``n_jobs`` scales it (default 1);
        - ``"kubernetes"``: `dask_kubernetes.operator.KubeCluster` (``n_workers``, ``image`` ...);
        - ``"cuda"``: `dask_cuda.LocalCUDACluster`, one worker per GPU.
    **options
        Passed to the cluster class; ``n_workers``, ``memory_limit`` (bytes or text per worker) and
        ``dashboard_address`` are the usual ones.

    Yields
    ------
    distributed.Client
        It is also the active client inside the block. Leaving the block closes the client, and
        the cluster if this call started it.

    Raises
    ------
    InputError
        If the address is no address, or an extra or a driver is missing; names the remedy.

    Examples
    --------
    >>> with connect(n_workers=1) as client:  # doctest: +SKIP
    ...     client.dashboard_link
    'http://127.0.0.1:40123/status'
    """
    import dask
    from distributed import Client

    with dask.config.set(WORKER_CONFIG):
        if address in _STARTERS:
            cluster = _STARTERS[address](options)
            try:
                with Client(cluster) as client:
                    yield _prepared(client)
            finally:
                cluster.close()
        else:
            with Client(**_existing(str(address), options)) as client:
                yield _prepared(client)


def _existing(address: str, options: dict[str, Any]) -> dict[str, Any]:
    if Path(address).is_file():
        return {"scheduler_file": address, **options}
    if "://" in address:
        return {"address": address, **options}
    raise InputError(
        "cluster-unknown",
        f"{address!r} is no cluster",
        place="connect(address)",
        remedy='use nothing, "tcp://host:port", a scheduler file, "slurm", "kubernetes" or "cuda"',
    )


def _prepared(client: Client) -> Client:
    """Give workers that stdist did not start the same single-threaded libraries."""
    client.run(_use_one_thread)
    return client


def _use_one_thread() -> None:
    import numcodecs.blosc
    import zarr

    numcodecs.blosc.set_nthreads(1)
    zarr.config.set({"threading.max_workers": 1})


def _local(options: dict[str, Any]) -> Any:
    import psutil
    from distributed import LocalCluster

    n_workers = options.pop("n_workers", None) or len(os.sched_getaffinity(0))
    share = int(SHARE * _machine_memory(psutil.virtual_memory().total) / n_workers)
    settings = {
        "n_workers": n_workers,
        "threads_per_worker": 1,
        "memory_limit": share,
        "dashboard_address": ":0",
        "processes": True,
    }
    return LocalCluster(**settings | options)


def _machine_memory(total: int) -> int:
    """Memory of this machine, or of the container or SLURM job that confines us."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(path).read_text()))
        except (OSError, ValueError):
            continue
    return total


def _slurm(options: dict[str, Any]) -> Any:
    module = _extra("dask_jobqueue", "deploy", "slurm")
    n_jobs = options.pop("n_jobs", 1)
    prologue = [f"export {name}={value}" for name, value in ONE_THREAD.items()]
    options["job_script_prologue"] = prologue + options.get("job_script_prologue", [])
    options.setdefault("scheduler_options", {"dashboard_address": ":0"})
    try:
        cluster = module.SLURMCluster(**options)
    except ValueError as error:
        raise InputError(
            "slurm-settings",
            f"the SLURM settings are incomplete ({str(error).splitlines()[0]})",
            place="jobqueue.slurm in Dask's configuration",
            remedy="give cores and memory, see deploy/slurm/jobqueue.yaml",
        ) from error
    cluster.scale(jobs=n_jobs)
    return cluster


def _kubernetes(options: dict[str, Any]) -> Any:
    module = _extra("dask_kubernetes.operator", "deploy", "kubernetes")
    options["env"] = ONE_THREAD | dict(options.get("env", {}))
    return module.KubeCluster(**{"name": "stdist"} | options)


def _cuda(options: dict[str, Any]) -> Any:
    module = _extra("dask_cuda", "gpu", "cuda")
    try:
        return module.LocalCUDACluster(**{"dashboard_address": ":0"} | options)
    except Exception as error:
        # the driver's absence shows as an error of NVML or CUDA, depending on what is installed
        if not type(error).__module__.startswith(("pynvml", "cuda", "cupy", "numba")):
            raise
        raise InputError(
            "cuda-driver",
            f"no usable NVIDIA driver on this machine ({type(error).__name__})",
            place='connect("cuda")',
            remedy="run where `nvidia-smi` works, or use connect() for the CPU",
        ) from error


def _extra(module: str, extra: str, address: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            "extra-missing",
            f"{module} cannot be imported ({error})",
            place=f'connect("{address}")',
            remedy=f"pip install 'stdist[{extra}]'",
        ) from error


_STARTERS: dict[str | None, Any] = {
    None: _local,
    "local": _local,
    "slurm": _slurm,
    "kubernetes": _kubernetes,
    "cuda": _cuda,
}


@contextmanager
def executor_for(client: Client | None, n_rows: int) -> Iterator[Executor]:
    """Choose where a public function runs.

    The given client, else the active one, else this process for data of few rows, else workers on
    this machine for the time of the call.
    """
    from stdist.graph import Cluster, InProcess
    from stdist.graph.plan import MINIMUM_BLOCK

    client = client or active_client()
    if client is not None:
        yield Cluster(client)
    elif n_rows <= MINIMUM_BLOCK:
        yield InProcess()
    else:
        with connect() as local:
            yield Cluster(local)


def active_client() -> Client | None:
    """Return the active `distributed.Client`, if there is one."""
    try:
        from distributed import get_client

        return get_client()
    except ValueError:
        return None


__all__ = ["active_client", "connect", "executor_for"]
