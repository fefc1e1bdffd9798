from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hypothesis import settings

from stdist.graph import InProcess, start
from tests import fake_cupy, toy


def pytest_configure(config):
    settings.register_profile("untimed", deadline=None)
    settings.load_profile("untimed")
    # distributed: a second cluster of the session finds the port of the first one taken
    config.addinivalue_line("filterwarnings", "ignore:Port 8787 is already in use:UserWarning")
    # anndata 0.13 and scanpy ask pandas 3 for options that pandas 4 will not have
    for option in ("future.infer_string", "mode.chained_assignment"):
        config.addinivalue_line("filterwarnings", f"ignore:The '{option}' option is deprecated")
    # zarr 3.1: the text of the v3 specification has no consolidated metadata and no string dtype
    config.addinivalue_line("filterwarnings", "ignore:Consolidated metadata is currently not part")
    config.addinivalue_line("filterwarnings", "ignore:The (codec|data type) .* Zarr (format|V) ?3")


@pytest.fixture(scope="session")
def shared():
    """The folder of specifications, golden numbers and data beside the repository."""
    folder = Path(__file__).resolve().parents[1].parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs the folder {folder}, which is not part of the repository")
    return folder


@pytest.fixture(scope="session")
def client():
    """A client of a local cluster of two workers with one thread each."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            dashboard_address=":0",
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A store of 5000 x 37 counts; read only: tests that write take `store`."""
    path = tmp_path_factory.mktemp("base") / "base.zarr"
    start(toy.generate_program(path), InProcess(), block_length=1024)
    return path


@pytest.fixture
def store(base, tmp_path):
    """A copy of `base` to write into."""
    import shutil

    return Path(shutil.copytree(base, tmp_path / "store.zarr"))


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.gpu)])
def cuda(request, monkeypatch):
    """CuPy where a device is, and everywhere a strict fake of it: the module."""
    if request.param == "fake":
        return fake_cupy.install(monkeypatch)
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    if not cupy.cuda.is_available():
        pytest.skip("no NVIDIA device here")
    return cupy
