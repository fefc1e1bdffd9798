from __future__ import annotations

import json
import tracemalloc

import anndata
import numpy as np
import pytest
from scipy import sparse

import stdist.io
from stdist.io.program import matrix_stage
from stdist.store import Output, Store
from stdist.store.elements import MemorySource
from tests.io.large import convert_watched, write_large


@pytest.mark.slow
@pytest.mark.memory
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["csr", "dense"])
def test_a_million_cells_convert_within_a_gigabyte(kind, tmp_path):
    source = write_large(tmp_path / "large.h5ad", 1_000_000, 500, kind=kind)
    seconds, peak = convert_watched(source, tmp_path / "store.zarr")
    print(f"{kind}: {seconds:.1f} s, peak {peak / 2**20:.0f} MiB, {source.stat().st_size} bytes")
    assert peak < 10**9
    run = next((tmp_path / "store.zarr" / ".stdist" / "runs").glob("*/run.json"))
    plan = json.loads(run.read_text())["plan"]
    assert peak < max(stage["memory"] for stage in plan["stages"])
    store = Store(tmp_path / "store.zarr")
    assert store.n_obs == 1_000_000
    assert store.element("X").dtype == np.uint16
    assert stdist.io.store_of(stdist.io.open(store.path)) == store.path


@pytest.mark.parametrize("density", [0.09, 1.0])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64", "int64"])
@pytest.mark.parametrize("csr", [False, True], ids=["from dense", "from csr"])
@pytest.mark.parametrize("kind", ["dense", "csr"])
def test_a_cast_takes_no_more_than_is_projected(density, dtype, csr, kind):
    rng = np.random.default_rng(0)
    dense = (rng.random((4096, 300)) < density) * rng.integers(1, 9, (4096, 300))
    block = dense.astype(dtype)
    block = sparse.csr_matrix(block) if csr else block
    most = int((dense != 0).sum(axis=1).max()) if kind == "csr" else None
    output = Output("X", (300,), "uint16", kind, row_entries=most)
    stage = matrix_stage("X", MemorySource(block), output)
    tracemalloc.start()
    stage.kernel((0, 4096), block=block, **stage.options)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= stage.workspace(4096) + 2 * 4096 * output.row_bytes


def test_a_dataset_in_uns_is_kept(tmp_path):
    import xarray as xr

    adata = anndata.AnnData(np.ones((3, 2), np.float32))
    table = xr.Dataset({"loss": ("pass", [3.0, 2.0])}, {"pass": [0, 1]})
    adata.uns["fit"] = {"factors": table}
    stdist.io.write(adata, tmp_path / "a.zarr")
    found = xr.open_zarr(tmp_path / "a.zarr" / "uns" / "fit" / "factors", consolidated=False)
    np.testing.assert_array_equal(found["loss"], table["loss"])
