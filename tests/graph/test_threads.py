"""BLAS has one thread in a task, also beside tasks that end, and as many as before at the end."""

from __future__ import annotations

import os
import subprocess
import sys

SCRIPT = """
import threading
import numpy
from threadpoolctl import ThreadpoolController
from stdist.graph.threads import one_thread

def numbers():
    return {one["num_threads"] for one in ThreadpoolController().select(user_api="blas").info()}

started, over = threading.Event(), threading.Event()

def task():
    with one_thread():
        started.set()
        over.wait(30)

print(numbers())
other = threading.Thread(target=task)
other.start()
started.wait(30)
with one_thread():
    over.set()
    other.join()
    print(numbers())
print(numbers())
try:
    with one_thread():
        1 / 0
except ZeroDivisionError:
    print(numbers())
"""


def test_a_task_that_ends_does_not_free_the_one_beside_it():
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "2"}
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["{2}", "{1}", "{2}", "{2}"]
