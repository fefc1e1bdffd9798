"""Start Dask workers: on this machine, through SLURM or Kubernetes, or one per NVIDIA GPU.

Each starter takes the options of `stdist.connect` and returns a cluster of `distributed`'s kind.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from stdist.store.errors import InputError

LIBRARY_THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLOSC_NTHREADS",
    "ZARR_THREADING__MAX_WORKERS",
)
ONE_THREAD = dict.fromkeys(LIBRARY_THREADS, "1")
"""Environment of a worker: tasks are the parallelism, so libraries use one thread each.

NUMBA_NUM_THREADS is not among them: Dask sets these in the client too while it spawns workers, and
numba refuses to compile once it has seen two values. No kernel here uses numba's threads.
"""

PRE_SPAWN = "distributed.nanny.pre-spawn-environ"
WORKER_CONFIG = {
    PRE_SPAWN: ONE_THREAD | {"MALLOC_TRIM_THRESHOLD_": "65536"},
    # tasks write shards and return small records: there is nothing worth spilling to disk
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": 0.90,
    "distributed.worker.memory.terminate": 0.97,
    "distributed.scheduler.allowed-failures": 3,
    # a run whose workers are all gone stops and can be resumed, instead of waiting for ever
    "distributed.scheduler.no-workers-timeout": "10m",
    "distributed.comm.timeouts.connect": "60s",
}
"""Dask configuration of the workers that stdist starts, where the user's own says nothing."""

SHARE = 0.75
"""Share of this machine's memory that local workers get; the rest is for client and scheduler."""
WORKER_MEMORY = 2**30
"""Least memory of a local worker: a machine with many cores and little memory gets fewer."""


def worker_config() -> dict[str, Any]:
    """`WORKER_CONFIG` without what the user's own Dask configuration decides."""
    import dask
    import distributed  # noqa: F401 - brings its defaults

    defaults = dask.config.merge(*dask.config.defaults)
    settings = {
        name: value
        for name, value in WORKER_CONFIG.items()
        if dask.config.get(name) == dask.config.get(name, config=defaults)
    }
    return settings | {PRE_SPAWN: WORKER_CONFIG[PRE_SPAWN] | dask.config.get(PRE_SPAWN)}


def worker_environment() -> dict[str, str]:
    """The same for workers on other machines, which do not see this process's configuration."""
    import dask

    settings = {
        "DASK_" + name.replace(".", "__").replace("-", "_").upper(): str(dask.config.get(name))
        for name in WORKER_CONFIG
        if name != PRE_SPAWN
    }
    device = dask.config.get("stdist.device", None)
    if device is not None:  # else the worker's own configuration decides
        settings["DASK_STDIST__DEVICE"] = device
    return dask.config.get(PRE_SPAWN) | settings


def _local(options: dict[str, Any]) -> Any:
    from distributed import LocalCluster

    n_cores, memory = machine()
    least = options.get("memory_limit") or WORKER_MEMORY
    n_workers = options.get("n_workers") or max(1, min(n_cores, int(SHARE * memory) // least))
    settings = {
        "n_workers": n_workers,
        "threads_per_worker": 1,
        "memory_limit": int(SHARE * memory) // n_workers,
        "dashboard_address": ":0",
        "env": ONE_THREAD,  # also of workers that the user adds later
    }
    return LocalCluster(**settings | options)


def machine() -> tuple[int, int]:
    """Cores and bytes of memory of this machine, or of the container or job that confines us.

    Returns
    -------
    n_cores, n_bytes
        The smallest of what the hardware has and what CPU affinity, cgroups and SLURM allow.
    """
    from dask.system import CPU_COUNT
    from distributed.system import MEMORY_LIMIT

    slurm = {name: int(value) for name, value in os.environ.items() if _is_slurm(name, value)}
    n_cores = min(CPU_COUNT, slurm.get("SLURM_CPUS_ON_NODE", CPU_COUNT))
    limits = [MEMORY_LIMIT, *_cgroup_limits()]
    if "SLURM_MEM_PER_NODE" in slurm:
        limits.append(slurm["SLURM_MEM_PER_NODE"] * 2**20)
    elif "SLURM_MEM_PER_CPU" in slurm:
        limits.append(slurm["SLURM_MEM_PER_CPU"] * n_cores * 2**20)
    return n_cores, min(limits)


def _is_slurm(name: str, value: str) -> bool:
    known = ("SLURM_CPUS_ON_NODE", "SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU")
    return name in known and value.isdigit() and int(value) > 0


def _cgroup_limits(root: Path = Path("/")) -> Iterator[int]:
    """Memory limits of this process's control group (v1 or v2) and of the groups around it."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            base, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            base, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        inner = base / group.lstrip("/")
        for folder in (inner, *inner.parents):
            try:
                yield int((folder / name).read_text())
            except (OSError, ValueError):
                continue  # "max", or no such file


def _slurm(options: dict[str, Any]) -> Any:
    from dask import config

    module = _extra("dask_jobqueue", "deploy", "slurm")
    n_jobs, n_workers = options.pop("n_jobs", None), options.pop("n_workers", None)
    memory = options.pop("memory_limit", None)
    if memory:
        n_processes = options.get("processes") or config.get("jobqueue.slurm.processes") or 1
        options |= {"processes": n_processes, "memory": f"{memory * n_processes}B"}
    prologue = [f"export {name}={value}" for name, value in worker_environment().items()]
    own = options.pop("job_script_prologue", None) or config.get(
        "jobqueue.slurm.job-script-prologue"
    )
    dashboard = {"dashboard_address": ":0"}
    scheduler = options.pop("scheduler_options", None) or config.get(
        "jobqueue.slurm.scheduler-options"
    )
    try:
        cluster = module.SLURMCluster(
            job_script_prologue=[*prologue, *own],
            scheduler_options=dashboard | scheduler,
            **options,
        )
    except ValueError as error:
        raise InputError(
            "slurm-settings",
            f"the SLURM settings are incomplete ({str(error).splitlines()[0]})",
            place="jobqueue.slurm in Dask's configuration",
            remedy="give cores and memory, see deploy/slurm/jobqueue.yaml",
        ) from error
    if n_jobs:
        cluster.scale(jobs=n_jobs)
    else:
        cluster.scale(n_workers or 1)
    return cluster


def _kubernetes(options: dict[str, Any]) -> Any:
    from dask import config

    module = _extra("dask_kubernetes.operator", "deploy", "kubernetes")
    memory = options.pop("memory_limit", None)
    if memory:
        amount = {"memory": str(memory)}
        options.setdefault("resources", {"requests": amount, "limits": amount})
    own = options.pop("env", None) or config.get("kubernetes.env", None) or {}
    try:
        # asked first: a KubeCluster that fails half-way complains again when Python ends
        importlib.import_module("kr8s").api().version()
        return module.KubeCluster(
            **{"name": "stdist", "quiet": True} | options, env=worker_environment() | dict(own)
        )
    except Exception as error:
        raise InputError(
            "kubernetes-unavailable",
            f"no Kubernetes cluster with the Dask operator ({type(error).__name__}: {error})",
            place='connect("kubernetes")',
            remedy="`kubectl get daskclusters` must work here; see deploy/README.md",
        ) from error


def _cuda(options: dict[str, Any]) -> Any:
    module = _extra("dask_cuda", "gpu", "cuda")
    # of every worker, also of those that the user adds later
    config = {"stdist": {"device": "cuda"}} | options.pop("config", {})
    try:
        return module.LocalCUDACluster(**{"dashboard_address": ":0"} | options, config=config)
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
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            "extra-missing",
            f"{module} cannot be imported ({error})",
            place=f'connect("{address}")',
            remedy=f"pip install 'stdist[{extra}]'",
        ) from error


STARTERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "local": _local,
    "slurm": _slurm,
    "kubernetes": _kubernetes,
    "cuda": _cuda,
}

__all__ = [
    "ONE_THREAD",
    "STARTERS",
    "WORKER_CONFIG",
    "machine",
    "worker_config",
    "worker_environment",
]
