"""BLAS has one thread in a task, also beside tasks that end, and as many as before at the end."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="BLAS has one thread here")
BEGIN = """
import multiprocessing, threading
import numpy
from threadpoolctl import ThreadpoolController, threadpool_limits
from stdist.graph.threads import one_thread

def threads():
    return {one["num_threads"] for one in ThreadpoolController().select(user_api="blas").info()}
"""
BESIDE = """
started, over, gone, end = (threading.Event() for _ in range(4))

def task():
    with one_thread():
        started.set()
        over.wait(30)
    gone.set()
    end.wait(30)

print(threads())
other = threading.Thread(target=task)
other.start()
started.wait(30)
with one_thread():
    over.set()
    gone.wait(30)
    print(threads())
print(threads())
end.set()
"""
ERROR = """
print(threads())
try:
    with one_thread():
        print(threads())
        1 / 0
except ZeroDivisionError:
    print(threads())
"""
OWN_LIMIT = """
with threadpool_limits(2):
    print(threads())
    with one_thread():
        print(threads())
    print(threads())
"""
FORKED = """
def task():
    with one_thread():
        print(threads(), flush=True)

print(threads(), flush=True)
task()
child = multiprocessing.get_context("fork").Process(target=task)
child.start()
child.join(20)
print({2} if child.exitcode == 0 else "the child hangs")
child.kill()
"""


@pytest.mark.parametrize(
    ("script", "expected"),
    [(BESIDE, "212"), (ERROR, "212"), (OWN_LIMIT, "212"), (FORKED, "2112")],
    ids=["beside another", "error", "a limit of the user", "forked"],
)
def test_a_task_has_one_thread_and_the_process_its_own_again(script, expected):
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "2"}
    command = [sys.executable, "-W", "ignore", "-c", BEGIN + script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [f"{{{number}}}" for number in expected]
