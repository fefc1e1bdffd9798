from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def read(path):
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_clean_and_short(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert len(notebook.cells) < 25
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
            compile(
                "".join(line for line in cell.source.splitlines(True) if line[0] != "!"), "", "exec"
            )


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    starmap = ROOT.parent / "shared/data/starmap_visp_2rep.h5ad"
    if starmap.exists():  # else a simulated cohort takes its place
        monkeypatch.setenv("STDIST_STARMAP", str(starmap))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    command = tmp_path / "bin" / "stdist"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m stdist "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = nbclient.NotebookClient(
            read(path), timeout=120, resources={"metadata": {"path": str(tmp_path)}}
        ).execute()
    outputs = [output for cell in done.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) >= 2
    text = "".join(output.get("text", "") for output in outputs)
    assert "0 damaged" in text
