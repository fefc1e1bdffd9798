"""P3: SIGKILL of the client, of a worker, of the scheduler; then the same bytes."""

from __future__ import annotations

import random
import shutil

import pytest

from stdist.graph import InProcess, start
from stdist.store.verify import verify
from tests import toy
from tests.graph import kill

pytestmark = pytest.mark.fault


@pytest.fixture(scope="module")
def reference(base, tmp_path_factory):
    store = shutil.copytree(base, tmp_path_factory.mktemp("reference") / "s.zarr")
    start(toy.scale_program(store, rounds=3), InProcess(), block_length=1024)
    return toy.contents(store)


@pytest.mark.parametrize("repeat", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
@pytest.mark.parametrize("victim", [kill.kill_worker, kill.kill_client, kill.kill_scheduler])
def test_a_run_survives_the_kill_of(victim, repeat, store, client, reference):
    delay = random.uniform(repeat * 0.3, repeat * 0.3 + 0.3)
    assert victim(store, client, delay) or delay > 0.3, delay
    assert kill.resume_and_compare(store, client, reference) == [], delay
    assert verify(store)[0] == []
    assert not list(store.rglob("*.partial"))
