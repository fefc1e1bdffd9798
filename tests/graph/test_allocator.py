"""What tasks free goes back to the machine, in whatever process they run."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SETTING = """
from stdist.graph.task import measured
with measured("stage", 0, "here"):
    pass
"""
CODE = """
import threading, numpy as np, psutil
def used():
    return psutil.Process().memory_info().rss / 2**20
def work():
    for _ in range(4):
        arrays = [np.ones(size * 2**17) for size in (2, 3, 5, 8)]  # MiB
    kept.append(np.ones(2**10))  # lies above them in the thread's arena
before, kept = used(), []
for _ in range(4):
    worker = threading.Thread(target=work)
    worker.start()
    worker.join()
print(used() - before)
"""


def left(code):
    environment = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=True,
    )
    return float(run.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_freed_arrays_go_back():
    assert left(CODE) > 16
    assert left(SETTING + CODE) < 4
