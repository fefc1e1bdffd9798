"""P1, P2: the measured peak stays under the plan, near it, and does not grow with the data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.memory, pytest.mark.slow]


def child(*arguments):
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.graph.memory", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout or "null")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    found = {}
    for n_rows, block_length in ((400_000, 65536), (400_000, 16384), (1_600_000, 16384)):
        target = folder / f"{n_rows}-{block_length}.zarr"
        child("generate", target, n_rows, 0)
        found[n_rows, block_length] = child("scale", target, 0, block_length)
    return found


@pytest.mark.parametrize("size", [(400_000, 65536), (400_000, 16384), (1_600_000, 16384)])
@pytest.mark.parametrize("stage", ["gram", "scale"])
def test_the_peak_is_what_was_planned(measured, size, stage):
    peak, planned = measured[size]["peak"][stage], measured[size]["planned"][stage]
    assert peak <= planned
    assert peak >= planned / 3.3


@pytest.mark.parametrize("stage", ["gram", "scale"])
def test_the_peak_does_not_grow_with_the_rows(measured, stage):
    small, large = (measured[n, 16384]["peak"][stage] for n in (400_000, 1_600_000))
    assert large < 1.1 * small
    assert large < measured[400_000, 65536]["peak"][stage]
