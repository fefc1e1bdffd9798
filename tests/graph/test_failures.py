"""P10, P11: what fails is repeated, then named; the rest finishes; a full disk can be resumed."""

from __future__ import annotations

import errno
import os
import subprocess

import numpy as np
import pytest

from stdist.graph import Cluster, InProcess, resume, start, unfinished
from stdist.graph.record import RunRecord
from stdist.graph.sinks import StoreSink
from stdist.store import RunStopped, open_element
from stdist.store.verify import verify
from tests import toy


@pytest.fixture(params=["in process", "cluster"])
def executor(request):
    if request.param == "in process":
        return InProcess()
    return Cluster(request.getfixturevalue("client"))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "calls").mkdir()
    return tmp_path / "calls"


def assert_copied(store):
    copy = open_element(store, "layers/copy").read(0, 5000)
    np.testing.assert_array_equal(copy, open_element(store, "X").read(0, 5000))
    assert verify(store)[0] == []


def test_flaky_tasks_are_repeated(store, folder, executor):
    script = {"1": ("flaky", 2), "4": ("flaky", 1)}
    start(toy.copy_program(store, folder, script), executor, block_length=1024)
    assert toy.calls(folder) == {0: 1, 1: 3, 2: 1, 3: 1, 4: 2}
    assert_copied(store)


def test_what_fails_for_good_is_named_and_the_rest_finishes(store, folder, executor):
    script = {"1": ("flaky", 3)}
    with pytest.raises(RunStopped) as caught:
        start(toy.copy_program(store, folder, script), executor, block_length=1024)
    assert toy.calls(folder) == {0: 1, 1: 3, 2: 1, 3: 1, 4: 1}
    assert caught.value.code == "task-failed"
    for part in ("'copy'", "block 1 (rows 1024:2048)", "scripted failure 3", "stdist resume"):
        assert part in str(caught.value)
    assert not (store / "layers/copy").exists()
    assert verify(store)[0] == []
    (run,) = unfinished(store)
    assert RunRecord(run).read_json("state.json")["state"] == "stopped"
    resume(store, toy.build, executor)
    assert toy.calls(folder) == {0: 1, 1: 4, 2: 1, 3: 1, 4: 1}
    assert_copied(store)


def test_a_full_disk_met_by_a_task_stops_the_run(store, folder, executor):
    script = {"2": ("full", 3 if isinstance(executor, Cluster) else 1)}
    with pytest.raises(RunStopped) as caught:
        start(toy.copy_program(store, folder, script), executor, block_length=1024)
    assert caught.value.code == "disk-full"
    assert "block 2" in str(caught.value)
    assert caught.value.exit_code == 5
    resume(store, toy.build, executor)
    assert_copied(store)


@pytest.mark.parametrize("name", ["writer", "value", "event", "state", "commit"])
def test_a_full_disk_met_anywhere_stops_the_run(store, monkeypatch, name):
    from stdist.graph import record
    from stdist.store import staging

    owner, attribute = {
        "writer": (StoreSink, "write"),
        "value": (record.RunRecord, "save_value"),
        "event": (record.RunRecord, "add_event"),
        "state": (record.RunRecord, "set_state"),
        "commit": (staging.Staging, "_save"),
    }[name]
    original, left = getattr(owner, attribute), [{"state": 1, "commit": 0}.get(name, 2)]

    def full(*arguments, **options):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*arguments, **options)

    monkeypatch.setattr(owner, attribute, full)
    with pytest.raises(RunStopped) as caught:
        start(toy.scale_program(store, rounds=2), InProcess(), block_length=1024)
    assert caught.value.code == "disk-full"
    left[0] = 0
    with pytest.raises(RunStopped) as caught:
        resume(store, toy.build, InProcess())
    assert caught.value.code == "disk-full"
    monkeypatch.undo()
    resume(store, toy.build, InProcess())
    assert verify(store)[0] == []
    total = open_element(store, "obs/total").read(0, 5000)
    np.testing.assert_array_equal(total, open_element(store, "X").read(0, 5000).sum(1))


@pytest.mark.fault
@pytest.mark.parametrize("mebibytes", [1, 2])
def test_a_truly_full_disk(tmp_path, mebibytes, monkeypatch):
    import shutil
    from types import SimpleNamespace

    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**40))
        target = disk / "new.zarr"
        with pytest.raises(RunStopped) as caught:
            start(toy.generate_program(target, 200_000), InProcess(), block_length=8192)
        assert caught.value.code == "disk-full"
        assert not target.exists()
        subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
        resume(target, toy.build, InProcess())
        assert verify(target)[0] == []
        open_element(target, "X").read(0, 200_000)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_line_cut_short_spoils_no_other(tmp_path):
    record = RunRecord(tmp_path)
    record.attempts()
    event = toy_event()
    record.add_event(event)
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"stage": "cop')
    record.attempts()
    record.add_event(event)
    assert record.events() == [event, event]


def toy_event():
    from stdist.graph.task import TaskRecord

    return TaskRecord("copy", 0, "here:1", *[0.0] * 5, 1, 1, 1)


def test_a_lost_shard_is_computed_again(store, folder):
    script = {"4": ("flaky", 3)}
    with pytest.raises(RunStopped):
        start(toy.copy_program(store, folder, script), InProcess(), block_length=1024)
    (run,) = unfinished(store)
    (run / "staging/layers/copy/c/1/0").write_bytes(b"")  # as a power cut may leave it
    (run / "staging/layers/copy/c/2/0").unlink()
    resume(store, toy.build, InProcess())
    assert toy.calls(folder) == {0: 1, 1: 2, 2: 2, 3: 1, 4: 4}
    assert_copied(store)


def test_a_kernel_with_the_wrong_number_of_rows_is_refused(store, folder):
    from dataclasses import replace

    program = toy.copy_program(store, folder, {})
    stage = replace(program.stages[0], kernel=twice, options={})
    with pytest.raises(RunStopped, match=r"2048 rows of 'copy'.*\n.*block 0"):
        start(replace(program, stages=(stage,)), InProcess(), block_length=1024)


def twice(rows, *, counts):
    return {"copy": np.concatenate([counts, counts])}
