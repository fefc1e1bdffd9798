"""Kill the client, a worker or the scheduler of a run with SIGKILL, and resume.

Also a program, for the processes that are killed: ``client ADDRESS STORE`` and ``cluster``.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import dask
from distributed import Client, LocalCluster

from stdist.graph import Cluster, resume, start, unfinished
from stdist.store import RunStopped
from tests import toy

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = {"rounds": 3, "pause": 0.1}


def child(*arguments):
    """Start this file as a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.graph.kill", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        text=True,
    )


def end(process):
    """Kill a child, with all that it started, and reap it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


def wait_for_run(store, running=lambda: True):
    """Wait until a run on `store` has begun."""
    deadline = time.monotonic() + 60
    while not unfinished(store) and running():
        assert time.monotonic() < deadline, "no run began"
        time.sleep(0.002)


def kill_client(store, client, delay):
    """Kill the process that started the run; return whether the run was still going on."""
    process = child("client", client.scheduler.address, store)
    try:
        wait_for_run(store, lambda: process.poll() is None)
        time.sleep(delay)
        return process.poll() is None
    finally:
        end(process)


def kill_worker(store, client, delay):
    """Kill one worker of `client` during a run, which goes on."""
    victim = random.choice(list(client.run(os.getpid).values()))

    def strike():
        wait_for_run(store)
        time.sleep(delay)
        os.kill(victim, signal.SIGKILL)

    striker = threading.Thread(target=strike)
    striker.start()
    start(toy.scale_program(store, **OPTIONS), Cluster(client), block_length=1024)
    striker.join()
    client.wait_for_workers(2)
    return not unfinished(store)


def kill_scheduler(store, client, delay):
    """Kill the scheduler of another cluster during a run; return whether the run noticed."""
    process = child("cluster")
    address = process.stdout.readline().strip()

    def strike():
        wait_for_run(store)
        time.sleep(delay)
        process.kill()

    try:
        with (
            dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
            Client(address, set_as_default=False) as other,
        ):
            logging.getLogger("distributed").setLevel(logging.CRITICAL)
            striker = threading.Thread(target=strike)
            striker.start()
            try:
                start(toy.scale_program(store, **OPTIONS), Cluster(other), block_length=1024)
            except RunStopped:
                return True
            finally:
                striker.join()
        return False
    finally:
        end(process)


def resume_and_compare(store, client, reference):
    """Finish the run if it did not; return the files that differ from the reference."""
    if unfinished(store):
        resume(store, toy.build, Cluster(client))
    elif not (store / "layers/scaled").exists():
        start(toy.scale_program(store, **OPTIONS), Cluster(client), block_length=1024)
    found = toy.contents(store)
    names = found.keys() | reference.keys()
    return sorted(name for name in names if found.get(name) != reference.get(name))


def main(command, *arguments):
    """Be the process that is killed."""
    if command == "client":
        address, store = arguments
        with Client(address, set_as_default=False) as client:
            start(toy.scale_program(store, **OPTIONS), Cluster(client), block_length=1024)
        return
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
        print(cluster.scheduler_address, flush=True)
        time.sleep(600)


if __name__ == "__main__":
    main(*sys.argv[1:])
