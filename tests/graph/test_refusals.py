"""P7, P8, P12: what is refused before anything runs, and what leaves no trace."""

from __future__ import annotations

import os
import shutil
import threading
import time
from types import SimpleNamespace

import pytest

from stdist.graph import (
    Cluster,
    InProcess,
    discard,
    executors,
    resume,
    run_folders,
    start,
    unfinished,
)
from stdist.store import InputError, RunStopped
from tests import toy


class Never(InProcess):
    """Refuses to run: what is checked must be checked before."""

    def run(self, graph, watched, on_done):
        raise AssertionError("a task ran")


class Interrupted(InProcess):
    """Stops at the n-th graph, as by Ctrl-C."""

    def __init__(self, number):
        self.left = number

    def run(self, graph, watched, on_done):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
        return super().run(graph, watched, on_done)


def snapshot(folder):
    return sorted(
        p.relative_to(folder).as_posix()
        for p in folder.rglob("*")
        if p.name not in (".stdist", "runs")
    )


def refused(code, program, **options):
    folder = program.target.parent
    before = snapshot(folder)
    with pytest.raises(InputError) as caught:
        start(program, Never(), block_length=1024, **options)
    assert caught.value.code == code
    assert caught.value.args[0].count("\n  ") == 2  # the thing, the place and the remedy
    assert snapshot(folder) == before
    return caught.value


def test_an_output_that_exists_is_not_touched(store):
    refused("output-exists", toy.generate_program(store))
    start(toy.scale_program(store, rounds=1), InProcess(), block_length=1024)
    error = refused("output-exists", toy.scale_program(store))
    assert "layers/scaled" in str(error)
    start(toy.scale_program(store, rounds=2), InProcess(), block_length=1024, overwrite=True)


def test_an_output_may_not_be_its_input(store, tmp_path):
    refused("output-is-input", toy.copy_program(store, tmp_path, {}, key="X"), overwrite=True)
    link = tmp_path / "link.zarr"
    link.symlink_to(store)
    program = toy.copy_program(link, tmp_path, {}, key="X")
    program.stages[0].reads["counts"] = toy.open_element(store, "X")
    refused("output-is-input", program, overwrite=True)


@pytest.mark.parametrize("where", ["same", "inside", "around", "symlink", "relative"])
def test_a_new_store_may_not_touch_an_input(store, tmp_path, where, monkeypatch):
    (tmp_path / "link").symlink_to(store)
    monkeypatch.chdir(tmp_path)
    target = {
        "same": store,
        "inside": store / "layers" / "new.zarr",
        "around": tmp_path,
        "symlink": tmp_path / "link" / "new.zarr",
        "relative": os.path.relpath(store / ".." / store.name / "new.zarr"),
    }[where]
    program = toy.generate_program(target)
    program.parameters["inputs"] = [str(store)]
    refused("output-in-input", program)


def test_the_same_key_in_another_store_is_no_input(store, base, tmp_path):
    program = toy.copy_program(store, tmp_path, {}, key="layers/sparse")
    program.stages[0].reads["counts"] = toy.open_element(base, "X")
    with pytest.raises(InputError, match="already has"):  # and not that it is read
        start(program, Never())


def test_of_two_runs_on_one_target_one_is_refused(store, client):
    program = toy.scale_program(store, rounds=2, pause=0.2)
    begun = threading.Thread(target=start, args=(program, Cluster(client)))
    begun.start()
    while not unfinished(store):
        pass
    other = toy.copy_program(store, store.parent, {})
    with pytest.raises(InputError) as caught:
        start(other, Never(), block_length=1024)
    assert caught.value.code == "store-locked"
    with pytest.raises(InputError) as caught:
        discard(store)
    assert caught.value.code == "store-locked"
    begun.join()
    assert not unfinished(store)
    assert (store / "layers/scaled").exists()


@pytest.mark.parametrize("creates", [False, True])
def test_an_unfinished_run_is_continued_or_dropped(store, tmp_path, creates):
    target = tmp_path / "new.zarr" if creates else store
    make = toy.generate_program if creates else toy.scale_program
    before = snapshot(tmp_path)
    for _ in range(2):
        with pytest.raises(RunStopped, match="interrupted"):
            start(make(target), Interrupted(2), block_length=1024)
        (folder,) = unfinished(target)
        with pytest.raises(InputError, match="resume") as caught:
            start(make(target), Never(), block_length=1024)
        assert caught.value.code == "run-unfinished"
        assert discard(target) == [folder.name]
        assert snapshot(tmp_path) == before
    with pytest.raises(InputError) as caught:
        resume(target, toy.build, Never())
    assert caught.value.code == "nothing-to-resume"
    assert discard(target) == []
    start(make(target), InProcess(), block_length=1024)
    assert len(run_folders(target)) == (1 if creates else 2)


def test_a_run_whose_input_changed_is_not_resumed(store):
    with pytest.raises(RunStopped):
        start(toy.scale_program(store), Interrupted(3), block_length=1024)
    shard = store / "X/c/0/0"
    shard.write_bytes(shard.read_bytes() + b"x")
    from stdist.store.verify import record

    record(store)
    with pytest.raises(InputError) as caught:
        resume(store, toy.build, Never())
    assert caught.value.code == "run-changed"


@pytest.mark.parametrize("where", ["in process", "cluster"])
def test_wrong_data_found_by_a_kernel_leave_no_trace(store, tmp_path, where, request):
    executor = InProcess() if where == "in process" else Cluster(request.getfixturevalue("client"))
    before = toy.contents(store)
    (tmp_path / "calls").mkdir()
    program = toy.copy_program(store, tmp_path / "calls", {"3": ("input", 99)})
    with pytest.raises(InputError, match="a count is negative"):
        start(program, executor, block_length=1024)
    assert toy.contents(store) == before
    assert not unfinished(store)
    assert len(run_folders(store)) == 1
    assert {p.name for p in (store / ".stdist" / "runs").iterdir()} == {run_folders(store)[0].name}
    assert {p.name for p in tmp_path.iterdir()} == {"store.zarr", "calls"}


def test_no_task_writes_after_its_run_was_given_up(store, tmp_path, client, monkeypatch):
    monkeypatch.setattr(executors, "RETRIES", 0)
    script = {"0": ("input", 99)} | {str(tile): ("slow", 99) for tile in range(1, 5)}
    (tmp_path / "calls").mkdir()
    program = toy.copy_program(store, tmp_path / "calls", script, source="layers/sparse")
    before = toy.contents(store)
    with pytest.raises(InputError, match="a count is negative"):
        start(program, Cluster(client), block_length=1024)
    time.sleep(2)
    assert toy.contents(store) == before
    assert len(list((store / ".stdist" / "runs").iterdir())) == 1


def test_an_output_made_meanwhile_is_not_overwritten(store):
    class Overtaken(Never):
        def resources(self, *, device=True):
            start(toy.scale_program(store, rounds=1), InProcess(), block_length=1024)
            return super().resources(device=device)

    with pytest.raises(InputError) as caught:
        start(toy.scale_program(store), Overtaken(), block_length=1024)
    assert caught.value.code == "output-exists"


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    program = toy.generate_program(tmp_path / "file" / "new.zarr")
    with pytest.raises(InputError) as caught:
        start(program, Never())
    assert caught.value.code == "output-unwritable"


def test_a_full_disk_is_refused(store, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**10))
    refused("no-space", toy.scale_program(store))


def test_what_is_not_stdists_is_not_removed(tmp_path):
    mine = tmp_path / "new.zarr.partial"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    refused("output-exists", toy.generate_program(tmp_path / "new.zarr"))
    assert (mine / "notes.txt").read_text() == "mine"
