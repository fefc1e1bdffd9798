from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time

import pytest

from stdist.store import InputError
from stdist.store.lock import STALE_SECONDS, StoreLock


def hold(path, host=None, pid=None, started=0.0, age=0.0):
    path.write_text(
        json.dumps(
            {
                "owner": "other",
                "host": host or socket.gethostname(),
                "pid": pid or os.getpid(),
                "started": started,
            }
        )
    )
    os.utime(path, (time.time() - age,) * 2)


def dead_pid():
    child = subprocess.Popen(["true"])
    child.wait()
    return child.pid


def test_a_live_holder_is_named_and_keeps_its_lock(tmp_path):
    with StoreLock(tmp_path / "lock", "first"):
        with pytest.raises(InputError, match="first") as caught, StoreLock(tmp_path / "lock", "b"):
            pass
        assert caught.value.code == "store-locked"
        assert (tmp_path / "lock").exists()
    assert not list(tmp_path.iterdir())


def test_another_host_holds_it_while_its_heart_beats(tmp_path):
    path = tmp_path / "lock"
    hold(path, host="elsewhere", age=STALE_SECONDS / 2)
    with pytest.raises(InputError, match="elsewhere"), StoreLock(path, "b"):
        pass
    hold(path, host="elsewhere", age=STALE_SECONDS * 2)
    with StoreLock(path, "b"):
        assert json.loads(path.read_text())["owner"] == "b"
    assert not list(tmp_path.iterdir())


def test_a_dead_holder_is_taken_over(tmp_path):
    path = tmp_path / "lock"
    for body in ({"pid": dead_pid()}, {"started": 1.0}):  # dead, or its number is another's now
        hold(path, **body)
        with StoreLock(path, "b"):
            assert json.loads(path.read_text())["owner"] == "b"
    path.write_text("{")
    with StoreLock(path, "b"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_zombie_holds_nothing(tmp_path):
    import psutil

    child = subprocess.Popen(["sleep", "60"])
    hold(tmp_path / "lock", pid=child.pid, started=psutil.Process(child.pid).create_time())
    with pytest.raises(InputError), StoreLock(tmp_path / "lock", "b"):
        pass
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and not reaped
    with StoreLock(tmp_path / "lock", "b"):
        pass
    child.wait()


def test_of_many_that_take_over_one_wins(tmp_path):
    path = tmp_path / "lock"
    dead = dead_pid()
    for _ in range(20):
        hold(path, pid=dead)
        held, most, refused = [], [], []
        gate = threading.Barrier(8)

        def contend(name):
            gate.wait()  # noqa: B023
            try:
                with StoreLock(path, name):
                    held.append(name)  # noqa: B023
                    most.append(len(held))  # noqa: B023
                    time.sleep(0.01)
                    held.remove(name)  # noqa: B023
            except InputError:
                refused.append(name)  # noqa: B023

        threads = [threading.Thread(target=contend, args=(str(i),)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert max(most) == 1
        assert len(most) + len(refused) == 8


def test_a_lock_that_was_taken_away_is_not_removed(tmp_path):
    path = tmp_path / "lock"
    with StoreLock(path, "slow"):
        hold(path, host="elsewhere")
    assert json.loads(path.read_text())["owner"] == "other"
