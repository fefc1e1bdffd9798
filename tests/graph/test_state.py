"""Rows kept between passes: what a resume finds, and what is refused."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from stdist.graph import InProcess, Loop, Reduce, State, resume, start, unfinished
from stdist.graph.state import FileState
from stdist.store import RunStopped
from tests import toy

STATE = State((2,), "float32")


def test_a_flipped_bit_or_a_lost_file_stops_the_run(tmp_path):
    state = FileState(str(tmp_path))
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    state.write("carried", 1, 0, rows, STATE)
    assert (state.read("carried", 1, 0, STATE) == rows).all()
    path = tmp_path / "carried" / "000001" / "000000"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    for version in (1, 2):
        with pytest.raises(RunStopped, match="carried") as caught:
            state.read("carried", version, 0, STATE)
        assert caught.value.code == "state-altered"


def test_a_resumed_loop_finds_its_rows(store, tmp_path, monkeypatch):
    calls = []
    kernel = toy.shifted

    def dies_in_the_fourth_round(rows, **arguments):
        calls.append(rows)
        if len(calls) > 17:  # 5 tiles a round
            raise KeyboardInterrupt
        return kernel(rows, **arguments)

    other = tmp_path / "other.zarr"
    shutil.copytree(store, other)
    start(toy.scale_program(other), InProcess(), block_length=1024)
    with monkeypatch.context() as patched:
        patched.setattr(toy, "shifted", dies_in_the_fourth_round)
        with pytest.raises(RunStopped):
            start(toy.scale_program(store), InProcess(), block_length=1024)
    (run,) = unfinished(store)
    versions = sorted(path.name for path in (run / "state" / "carried").iterdir())
    assert versions == ["000004", "000005"]  # the state of three rounds, and half of the next
    resume(store, toy.build, InProcess())
    wanted, found = toy.contents(other), toy.contents(store)
    assert found["layers/scaled/c/0/0"] == wanted["layers/scaled/c/0/0"]
    assert not (run / "state").exists()


def test_a_round_updates_a_state_once():
    stages = tuple(Reduce(name, toy.shifted, updates=("carried",)) for name in ("one", "two"))
    with pytest.raises(ValueError, match="twice"):
        Loop("loop", stages, "start", toy.settled, 3)
