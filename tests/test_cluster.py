from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import dask
import psutil
import pytest

import stdist
from stdist import cluster, starters
from stdist.graph import Cluster, InProcess
from stdist.store import InputError


def children():
    """Processes that this one started and that run, but for the helper of multiprocessing."""
    found = set()
    for one in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # a zombie is one too
            if "resource_tracker" not in " ".join(one.cmdline()):
                found.add(one.pid)
    return found


def runs(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def until(holds, seconds=20):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def code_of(function, *arguments, **options):
    with pytest.raises(InputError) as caught:
        function(*arguments, **options)
    return caught.value


@pytest.fixture(scope="module")
def owned():
    """A client of two workers on this machine."""
    client = stdist.connect(n_workers=2, memory_limit="2GB")
    yield client
    client.close()


def _facts():
    import os

    import numcodecs.blosc
    import zarr

    return {
        "environment": {name: os.environ.get(name) for name in starters.LIBRARY_THREADS},
        "blosc": numcodecs.blosc.get_nthreads(),
        "zarr": zarr.config.get("threading.max_workers"),
        "memory": dask.config.get("distributed.worker.memory"),
    }


def test_workers_pin_threads_and_do_not_spill(owned):
    for facts in owned.run(_facts).values():
        assert facts["environment"] == starters.ONE_THREAD
        assert facts["blosc"] == facts["zarr"] == 1
        assert facts["memory"]["target"] is False
        assert (facts["memory"]["pause"], facts["memory"]["terminate"]) == (0.90, 0.97)


def test_workers_have_one_thread_and_the_given_memory(owned):
    workers = owned.scheduler_info(n_workers=-1)["workers"].values()
    assert [worker["nthreads"] for worker in workers] == [1, 1]
    assert {worker["memory_limit"] for worker in workers} == {2_000_000_000}
    assert "8787" not in owned.dashboard_link


def test_configuration_is_this_process_s_again(owned):
    assert dask.config.get("distributed.worker.memory.pause") == 0.80


def test_worker_started_later_has_one_thread_too(owned):
    owned.cluster.scale(3)
    owned.wait_for_workers(3, timeout=60)
    assert all(f["environment"] == starters.ONE_THREAD for f in owned.run(_facts).values())
    owned.cluster.scale(2)
    until(lambda: len(owned.scheduler_info(n_workers=-1)["workers"]) == 2)


def test_active_client_is_used(owned):
    assert cluster.active_client() is owned
    with cluster.executor_for(None, 10) as executor:
        assert isinstance(executor, Cluster)
        assert executor.client is owned


def test_given_client_wins(owned):
    given = SimpleNamespace()
    with cluster.executor_for(given, 10) as executor:
        assert executor.client is given


@pytest.mark.parametrize("form", ["url", "host and port", "file"])
def test_running_scheduler(owned, tmp_path, form):
    url = owned.scheduler.address
    address = {"url": url, "host and port": url.removeprefix("tcp://"), "file": tmp_path / "s.json"}
    address["file"].write_text(json.dumps({"address": url, "type": "Scheduler"}))
    with stdist.connect(address[form]) as client:
        assert client.submit(sum, [1, 2]).result() == 3
    assert owned.submit(sum, [3, 4]).result() == 7, "closing must leave a cluster we only joined"


def test_other_version_on_the_workers_is_refused(owned, monkeypatch):
    monkeypatch.setattr(stdist, "__version__", "0.0.1")
    error = code_of(stdist.connect, owned.scheduler.address)
    assert error.code == "workers-differ"
    assert "0.0.1" in error.thing


def test_size_of_a_running_cluster_cannot_be_chosen():
    error = code_of(stdist.connect, "tcp://127.0.0.1:1", n_workers=2, memory_limit="1GB")
    assert (error.code, error.place) == ("cluster-running", "tcp://127.0.0.1:1")


def test_close_stops_the_cluster_it_started():
    before = children()
    client = stdist.connect(n_workers=1)
    started = children() - before
    assert started
    client.close()
    assert not started & children()
    assert client.status == "closed"
    client.close()


def test_exception_in_a_with_block_closes_too():
    before = children()
    with pytest.raises(ZeroDivisionError), stdist.connect(n_workers=1):
        1 / 0
    assert children() <= before


def test_forgotten_client_leaves_no_process():
    script = """
import psutil, stdist
if __name__ == "__main__":
    client = stdist.connect(n_workers=1)
    print([p.pid for p in psutil.Process().children(recursive=True)])
"""
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "Traceback" not in done.stderr
    until(lambda: not any(map(runs, json.loads(done.stdout))))


def test_active_client_without_one(monkeypatch):
    monkeypatch.setattr("distributed.client._get_global_client", lambda: None)
    assert cluster.active_client() is None


def test_closed_client_is_not_active(monkeypatch):
    monkeypatch.setattr("distributed.get_client", lambda: SimpleNamespace(status="closed"))
    assert cluster.active_client() is None


def test_nothing_is_imported_to_find_no_active_client(monkeypatch):
    monkeypatch.delitem(sys.modules, "distributed")
    assert cluster.active_client() is None


@pytest.mark.parametrize(("n_rows", "kind"), [(16384, InProcess), (16385, Cluster)])
def test_executor_without_a_client_follows_the_size(monkeypatch, n_rows, kind):
    @contextmanager
    def no_cluster():
        yield SimpleNamespace()

    monkeypatch.setattr(cluster, "active_client", lambda: None)
    monkeypatch.setattr(cluster, "connect", no_cluster)
    with cluster.executor_for(None, n_rows) as executor:
        assert isinstance(executor, kind)


@pytest.mark.parametrize(
    ("address", "code"),
    [
        ("slrum", "cluster-unknown"),
        ("no/such/scheduler.json", "scheduler-file"),
        ("scheduler.json", "scheduler-file"),
        ("foo://host:1", "cluster-unreachable"),
        ("tls://127.0.0.1:1", "cluster-unreachable"),
    ],
)
def test_wrong_addresses(address, code):
    error = code_of(stdist.connect, address)
    assert error.code == code
    assert error.remedy
    assert address in error.place + error.thing


@pytest.mark.parametrize("text", ["", "{", "[]", '{"id": 1}'])
def test_malformed_scheduler_file(tmp_path, text):
    path = tmp_path / "scheduler.json"
    path.write_text(text)
    error = code_of(stdist.connect, path)
    assert (error.code, error.place) == ("scheduler-file", str(path))


def test_stale_scheduler_file(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "PATIENCE", "1s")
    path = tmp_path / "scheduler.json"
    path.write_text(json.dumps({"address": "tcp://127.0.0.1:1"}))
    error = code_of(stdist.connect, path)
    assert error.code == "cluster-unreachable"
    assert "tcp://127.0.0.1:1" in error.place
    assert str(path) in error.place


class _WebPage(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@contextmanager
def silent_peer():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@contextmanager
def web_server():
    with HTTPServer(("127.0.0.1", 0), _WebPage) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@contextmanager
def closed_port():
    yield 1


@pytest.mark.parametrize("peer", [closed_port, silent_peer, web_server])
def test_nobody_answers(peer):
    with peer() as port, dask.config.set({"stdist.wait-for-scheduler": "1s"}):
        started = time.monotonic()
        error = code_of(stdist.connect, f"tcp://127.0.0.1:{port}")
        assert time.monotonic() - started < 5
    assert (error.code, error.place) == ("cluster-unreachable", f"tcp://127.0.0.1:{port}")
    assert "port" in error.remedy


@pytest.mark.parametrize(
    ("options", "code"),
    [({"n_workers": 0}, "workers-none"), ({"memory_limit": "4 carrots"}, "memory-unreadable")],
)
def test_wrong_sizes(options, code):
    assert code_of(stdist.connect, **options).code == code


def test_user_configuration_wins():
    assert starters.worker_config() == starters.WORKER_CONFIG | {
        starters.PRE_SPAWN: starters.WORKER_CONFIG[starters.PRE_SPAWN]
        | dask.config.get(starters.PRE_SPAWN)
    }
    mine = {"distributed.worker.memory.pause": 0.5, f"{starters.PRE_SPAWN}.OMP_NUM_THREADS": "2"}
    with dask.config.set(mine):
        found = starters.worker_config()
        assert "distributed.worker.memory.pause" not in found
        assert found[starters.PRE_SPAWN]["OMP_NUM_THREADS"] == "2"
        assert found[starters.PRE_SPAWN]["BLOSC_NTHREADS"] == "1"


@pytest.mark.parametrize(
    ("n_cores", "memory", "options", "n_workers", "limit"),
    [
        (4, 32 * 2**30, {}, 4, 6 * 2**30),
        (64, 8 * 2**30, {}, 6, 2**30),
        (4, 2**29, {}, 1, 2**29 * 3 // 4),
        (64, 16 * 2**30, {"memory_limit": 4 * 2**30}, 3, 4 * 2**30),
        (4, 16 * 2**30, {"n_workers": 8}, 8, 3 * 2**29),
    ],
)
def test_local_size(monkeypatch, n_cores, memory, options, n_workers, limit):
    monkeypatch.setattr(starters, "machine", lambda: (n_cores, memory))
    monkeypatch.setattr("distributed.LocalCluster", dict)
    found = starters.STARTERS["local"](options)
    assert (found["n_workers"], found["memory_limit"]) == (n_workers, limit)
    assert (found["threads_per_worker"], found["dashboard_address"]) == (1, ":0")


@pytest.mark.parametrize(
    ("groups", "file"),
    [
        ("12:cpu:/\n4:memory:/slurm/job_7\n", "sys/fs/cgroup/memory/slurm/memory.limit_in_bytes"),
        ("0::/slurm/job_7/step_0\n", "sys/fs/cgroup/slurm/job_7/memory.max"),
        ("0::/\n", "sys/fs/cgroup/memory.max"),
    ],
)
def test_control_groups_limit_memory(tmp_path, groups, file):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(groups)
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text("123456789\n")
    assert list(starters._cgroup_limits(tmp_path)) == [123456789]


def test_no_control_groups(tmp_path):
    assert list(starters._cgroup_limits(tmp_path)) == []


def test_slurm_job_limits_this_machine(monkeypatch):
    memory = starters.machine()[1]
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "1")
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "100")
    assert starters.machine() == (1, 100 * 2**20)
    monkeypatch.delenv("SLURM_MEM_PER_NODE")
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "50")
    assert starters.machine() == (1, 50 * 2**20)
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "0")  # SLURM's way to say all
    assert starters.machine() == (1, memory)


@pytest.fixture
def fake(monkeypatch):
    """Return a function that puts a fake module in place."""

    def put(name, **content):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(__spec__=None, **content))

    return put


@pytest.fixture
def slurm(fake, monkeypatch):
    """What a `SLURMCluster` is asked for."""
    asked = {}

    class SLURMCluster:
        def __init__(self, **options):
            asked.update(options)

        def scale(self, n=None, *, jobs=None):
            asked["scale"] = (n, jobs)

    fake("dask_jobqueue", SLURMCluster=SLURMCluster)
    site = {
        "jobqueue.slurm.job-script-prologue": ["module load python"],
        "jobqueue.slurm.scheduler-options": {"interface": "ib0"},
        "jobqueue.slurm.processes": 4,
    }
    with dask.config.set(site):
        yield asked


def test_slurm_keeps_the_site_configuration(slurm):
    starters.STARTERS["slurm"]({"queue": "long"})
    assert slurm["queue"] == "long"
    assert slurm["job_script_prologue"][-1] == "module load python"
    assert "export DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE=0.8" in slurm["job_script_prologue"]
    assert slurm["scheduler_options"] == {"dashboard_address": ":0", "interface": "ib0"}
    assert slurm["scale"] == (1, None)


@pytest.mark.parametrize(
    ("options", "scale"),
    [({"n_jobs": 3}, (None, 3)), ({"n_workers": 5}, (5, None))],
)
def test_slurm_size(slurm, options, scale):
    with dask.config.set(starters.worker_config()):
        starters.STARTERS["slurm"](options | {"memory_limit": 2 * 10**9})
    assert slurm["scale"] == scale
    assert (slurm["processes"], slurm["memory"]) == (4, "8000000000B")
    exports = set(slurm["job_script_prologue"])
    assert {f"export {name}=1" for name in starters.LIBRARY_THREADS} <= exports
    assert "export DASK_DISTRIBUTED__WORKER__MEMORY__SPILL=False" in exports


def test_slurm_settings_incomplete():
    pytest.importorskip("dask_jobqueue")
    error = code_of(stdist.connect, "slurm")
    assert error.code == "slurm-settings"
    assert "cores and memory" in error.thing


def test_kubernetes_gives_pods_the_environment(fake):
    asked = {}
    api = SimpleNamespace(version=dict)
    fake("kr8s", api=lambda: api)
    fake("dask_kubernetes.operator", KubeCluster=lambda **options: asked.update(options))
    with dask.config.set(starters.worker_config()):
        starters.STARTERS["kubernetes"](
            {"n_workers": 3, "memory_limit": 10**9, "env": {"TOKEN": "x", "OMP_NUM_THREADS": "2"}}
        )
    assert (asked["name"], asked["n_workers"]) == ("stdist", 3)
    assert asked["resources"]["limits"] == asked["resources"]["requests"] == {"memory": str(10**9)}
    assert asked["env"]["TOKEN"] == "x"
    assert asked["env"]["OMP_NUM_THREADS"] == "2"
    assert asked["env"]["DASK_DISTRIBUTED__WORKER__MEMORY__TARGET"] == "False"


@pytest.mark.parametrize("server", [None, "https://127.0.0.1:1"])
def test_kubernetes_without_a_cluster(tmp_path, monkeypatch, server):
    pytest.importorskip("dask_kubernetes")
    config = tmp_path / "config"
    if server:
        config.write_text(
            json.dumps(
                {
                    "clusters": [{"name": "c", "cluster": {"server": server}}],
                    "users": [{"name": "u", "user": {"token": "none"}}],
                    "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                    "current-context": "x",
                }
            )
        )
    monkeypatch.setenv("KUBECONFIG", str(config))
    error = code_of(stdist.connect, "kubernetes")
    assert error.code == "kubernetes-unavailable"
    assert "kubectl" in error.remedy


@pytest.mark.parametrize(
    ("address", "module", "extra"),
    [
        ("slurm", "dask_jobqueue", "deploy"),
        ("kubernetes", "dask_kubernetes.operator", "deploy"),
        ("cuda", "dask_cuda", "gpu"),
    ],
)
def test_missing_extra_is_named(monkeypatch, address, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    error = code_of(stdist.connect, address)
    assert error.code == "extra-missing"
    assert f"stdist[{extra}]" in error.remedy


def test_missing_driver_is_named(fake):
    missing = type("NVMLError_LibraryNotFound", (Exception,), {"__module__": "pynvml"})

    def no_driver(**options):
        raise missing

    fake("dask_cuda", LocalCUDACluster=no_driver)
    error = code_of(stdist.connect, "cuda")
    assert error.code == "cuda-driver"
    assert "nvidia-smi" in error.remedy


def test_other_errors_of_cuda_stay(fake):
    def too_many(**options):
        raise ValueError("more workers than GPUs")

    fake("dask_cuda", LocalCUDACluster=too_many)
    with pytest.raises(ValueError, match="GPUs"):
        stdist.connect("cuda", n_workers=9)


def test_notebook_and_command_line_find_the_same_function():
    assert stdist.connect is cluster.connect
    assert Path(cluster.__file__).name == "cluster.py"
