"""The CUDA text of SIID's passes, through a C compiler and on a device, against Numba."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from types import SimpleNamespace

import anndata
import dask
import numpy as np
import pytest
from scipy import sparse

from stdist import tl
from stdist.kernels import poisson_factors_cuda
from stdist.kernels.pair_simulation import pair_model
from stdist.kernels.poisson_factors import Settings, tile_pass
from stdist.kernels.poisson_factors_spots import Rows
from tests.fake_cupy import ndarray
from tests.kernels.test_poisson_factors import Pair

COMPILER = shutil.which("gcc") or shutil.which("clang")
HEADER = poisson_factors_cuda.HEADER


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The header compiled with a C compiler."""
    if COMPILER is None:
        pytest.skip("no C compiler (gcc or clang) on this machine")
    folder = tmp_path_factory.mktemp("twin")
    (folder / "twin.c").write_text(poisson_factors_cuda.source_text())
    command = [COMPILER, "-O2", "-ffp-contract=off", "-shared", "-fPIC", "-Wall", "-Werror",
               f"-I{HEADER.parent}", "-o", folder / "twin.so", folder / "twin.c",
               "-lm"]  # fmt: skip
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(folder / "twin.so"))


@pytest.fixture(scope="module")
def compiled(library):
    """A `launch` that calls the compiled text, with arrays of NumPy or of the fake device."""

    def launch(name, blocks, threads, arguments):
        assert blocks > 0
        assert threads > 0
        hosts = [getattr(value, "_host", value) for value in arguments]
        for value in hosts:
            if isinstance(value, np.ndarray):
                assert value.flags.c_contiguous
        function = getattr(library, name)
        function.restype = None
        function(*(
            ctypes.c_void_p(value.ctypes.data)
            if isinstance(value, np.ndarray) else ctypes.c_longlong(int(value))
            for value in hosts
        ))  # fmt: skip

    return launch


@pytest.fixture
def device(cuda, compiled, monkeypatch):
    """On the fake, let the C compiler's kernels stand in for those of CUDA."""
    if cuda.ndarray is ndarray:
        monkeypatch.setattr(poisson_factors_cuda, "launch", compiled)
    return cuda


def moved(pair, xp):
    """The pair's arrays on a device."""
    matrices = []
    for matrix in (pair.cells, pair.spots):
        rows = sparse.csr_array(matrix, dtype=np.float32)
        parts = {name: xp.asarray(getattr(rows, name)) for name in ("indptr", "indices", "data")}
        matrices.append(SimpleNamespace(shape=rows.shape, **parts))
    rows = Rows(*map(xp.asarray, pair.rows))
    return *matrices, xp.asarray(pair.spot), rows, xp.asarray(pair.Q), xp.asarray(pair.phi)


@pytest.mark.parametrize("chosen", [
    Settings(rounds=1, exponent=1), Settings(), Settings(rounds=5, exponent=8),
    Settings(entropy=0.7), Settings(l2=0.05), Settings(entropy=3.0, l2=1e-3, exponent=2),
])  # fmt: skip
@pytest.mark.parametrize("n_factors", [1, 5, 8, 17])
def test_a_pass_is_that_of_the_processor(device, chosen, n_factors):
    for seed in range(8):
        pair = Pair(seed, n_cells=1 + 13 * seed, n_panel=9, n_genes=14, n_factors=n_factors)
        gauge = np.random.default_rng(seed).lognormal(0, 0.3, n_factors) if seed % 2 else None
        rows, total = tile_pass(
            pair.cells, pair.spots, pair.spot, pair.rows, pair.Q, pair.phi, chosen, gauge
        )
        there = None if gauge is None else device.asarray(gauge)
        new, sums = tile_pass(*moved(pair, device), chosen, there)
        for name, mine, theirs in zip("pnm", rows, new, strict=True):
            np.testing.assert_allclose(theirs.get(), mine, rtol=1e-7, atol=1e-10, err_msg=name)
        assert set(sums) == set(total)
        for name, mine in total.items():
            theirs = sums[name].get() if hasattr(sums[name], "get") else sums[name]
            np.testing.assert_allclose(theirs, mine, rtol=1e-7, atol=1e-9, err_msg=name)


def test_no_cells_and_no_spots_are_a_pass_too(device):
    pair = Pair(3, n_cells=6)
    for spot in (np.full(6, -1), np.zeros(6, int)):
        pair.spot = spot.astype(np.int32)
        chosen = Settings()
        rows, total = tile_pass(
            pair.cells, pair.spots, pair.spot, pair.rows, pair.Q, pair.phi, chosen
        )
        new, sums = tile_pass(*moved(pair, device), chosen)
        np.testing.assert_allclose(new.p.get(), rows.p, rtol=1e-9)
        assert int(sums["empty_spots"]) == total["empty_spots"]
    pair.cells, pair.spot = pair.cells[:0], pair.spot[:0]
    pair.rows = Rows(*(value[:0] for value in pair.rows))
    _, sums = tile_pass(*moved(pair, device), Settings())
    assert float(sums["factor_counts"].sum().get()) == 0.0


@pytest.mark.parametrize("form", [sparse.csr_matrix, np.asarray])
def test_the_program_gives_the_factors_of_the_processor(device, form):
    model = pair_model(n_cells=2500, n_genes=40, n_panel=25, n_types=3, seed=2)
    cells, spots = model.cells(0, model.n_cells), model.spots(0, model.n_spots)
    found = []
    for name in ("cpu", "cuda"):
        mine, above = (
            anndata.AnnData(form(side.counts.toarray()), obsm={"spatial": side.spatial})
            for side in (cells, spots)
        )
        with dask.config.set({"stdist.device": name}):
            tl.siid(mine, spots=above, n_factors=3, n_restarts=2, n_solutions=2, passes=4,
                    convergence_passes=40, entropy_passes=5, sample_cells=1024,
                    controls=False)  # fmt: skip
        found.append(mine)
    one, two = found
    for key in ("siid", "siid_types"):
        scale = np.abs(one.obsm[key]).max()
        # rows are kept as float32 between passes
        np.testing.assert_allclose(two.obsm[key], one.obsm[key], atol=1e-5 * scale, rtol=1e-5)
    losses = [adata.uns["siid"]["factors"]["loss"].values for adata in found]
    np.testing.assert_allclose(*losses, rtol=1e-5)
