"""P3, P4: sudden death at any change of the file system, then resume."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def enumerate_deaths(folder, kind, first, step):
    result = subprocess.run(
        [sys.executable, "-m", "tests.graph.crash", folder, kind, str(first), str(step)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["total"] > 200
    assert found["failed"] == [], result.stderr[-5000:]


@pytest.mark.fault
@pytest.mark.parametrize("kind", ["create", "add", "overwrite"])
def test_a_run_survives_sudden_death(tmp_path, kind):
    enumerate_deaths(str(tmp_path), kind, 5, 67)


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["create", "add", "overwrite"])
def test_a_run_survives_sudden_death_at_many_changes(tmp_path, kind):
    # every change (some minutes each): python -m tests.graph.crash FOLDER create 1 1
    enumerate_deaths(str(tmp_path), kind, 3, 11)
