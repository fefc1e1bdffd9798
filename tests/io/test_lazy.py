from __future__ import annotations

import pickle

import dask.array as da
import numpy as np
import pytest
from scipy import sparse

import stdist.io
from stdist.store import CorruptionError, InputError
from tests.io.samples import make_adata


@pytest.fixture
def adata():
    return make_adata(5000, 40)


def test_lazy_equals_eager(adata, tmp_path):
    path = stdist.io.write(adata, tmp_path / "store.zarr", block_length=1024)
    lazy = stdist.io.open(path)
    assert isinstance(lazy.X, da.Array)
    assert lazy.X.chunks == ((1024, 1024, 1024, 1024, 904), (40,))
    counts = adata.X.toarray()
    np.testing.assert_array_equal(lazy.X.compute(), counts)
    np.testing.assert_array_equal(lazy.X.sum(axis=0).compute(), counts.sum(axis=0))
    np.testing.assert_array_equal(lazy[100:1500, ::3].X.compute(), counts[100:1500, ::3])
    small = lazy.layers["small"]
    assert sparse.issparse(small._meta)
    assert (small.compute() != adata.layers["small"]).nnz == 0
    np.testing.assert_array_equal(lazy.obsm["spatial"].compute(), adata.obsm["spatial"])
    assert [*lazy.obs_names] == [*adata.obs_names]
    assert [*lazy.obs["type"]] == [*adata.obs["type"]]
    assert lazy.uns["params"]["metric"] == "cosine"


def test_csr_counts(adata, tmp_path):
    path = stdist.io.write(adata, tmp_path / "store.zarr", kind="csr")
    lazy = stdist.io.open(path)
    np.testing.assert_array_equal(lazy.X.compute().toarray(), adata.X.toarray())
    assert stdist.io.store_of(lazy) == path


def test_names_are_deterministic(adata, tmp_path):
    path = stdist.io.write(adata, tmp_path / "store.zarr")
    first, second = stdist.io.open(path), stdist.io.open(path)
    assert first.X.name == second.X.name
    other = stdist.io.write(adata[:100].copy(), tmp_path / "other.zarr")
    assert stdist.io.open(other).X.name != first.X.name


def test_store_of(adata, tmp_path):
    path = stdist.io.write(adata, tmp_path / "store.zarr")
    lazy = stdist.io.open(path)
    assert stdist.io.store_of(lazy) == path
    assert stdist.io.store_of(lazy.copy()) == path
    assert stdist.io.store_of(pickle.loads(pickle.dumps(lazy))) == path
    assert stdist.io.store_of(adata) is None
    assert stdist.io.store_of(lazy[:10]) is None
    assert stdist.io.store_of(lazy[::-1]) is None
    lazy.X = lazy.X + 1
    assert stdist.io.store_of(lazy) is None


def test_chosen_columns(adata, tmp_path):
    path = stdist.io.write(adata, tmp_path / "store.zarr")
    lazy = stdist.io.open(path, columns=["type", "maybe", "area"])
    assert [*lazy.obs] == ["type", "maybe", "area"]
    assert [*lazy.obs["type"]] == [*adata.obs["type"]]
    assert lazy.obs["maybe"].isna().sum() == adata.obs["maybe"].isna().sum()


def test_damage_is_noticed(adata, tmp_path):
    path = stdist.io.write(adata, tmp_path / "store.zarr", block_length=1024)
    shard = path / "X" / "c" / "2" / "0"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(bytes(data))
    lazy = stdist.io.open(path)
    with pytest.raises(CorruptionError, match="X/c/2/0"):
        lazy.X.compute(scheduler="synchronous")
    (path / "obs" / "area" / "c" / "0").unlink()
    with pytest.raises(CorruptionError, match="obs/area"):
        stdist.io.open(path)


def test_no_store(tmp_path):
    with pytest.raises(InputError, match="store-unknown"):
        stdist.io.open(tmp_path)
