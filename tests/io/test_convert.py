from __future__ import annotations

import json
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import zarr
from scipy import sparse

import stdist.io
from stdist.graph import InProcess, resume
from stdist.graph.executors import Cluster
from stdist.store import InputError, Store
from stdist.store.verify import verify
from tests.io.samples import FORMATS, make_adata, make_counts, write_sample

DATA = Path(__file__).parents[3] / "shared" / "data"


def dense(matrix):
    return matrix.toarray() if sparse.issparse(matrix) else np.asarray(matrix)


def plain(series):
    """Values that do not depend on which string dtype a pandas release prefers."""
    if isinstance(series.dtype, pd.CategoricalDtype):
        return (series.cat.codes.tolist(), [*series.cat.categories], series.cat.ordered)
    return [None if pd.isna(value) else value for value in series]


def assert_same_frame(left, right):
    assert [*left.columns] == [*right.columns]
    assert [*left.index] == [*right.index]
    for name in left:
        assert plain(left[name]) == plain(right[name]), name
        if left[name].dtype.kind in "biuf":
            assert left[name].dtype == right[name].dtype, name


def assert_same_value(left, right):
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same_value(left[key], right[key])
    else:
        np.testing.assert_array_equal(np.asarray(left), np.asarray(right))


def assert_round_trip(adata, path):
    store = anndata.read_zarr(path)
    np.testing.assert_array_equal(dense(store.X), dense(adata.X))
    assert store.X.dtype.kind == "u"
    assert_same_frame(store.obs, adata.obs)
    assert_same_frame(store.var, adata.var)
    for name in adata.obsm:
        np.testing.assert_array_equal(dense(store.obsm[name]), dense(adata.obsm[name]))
        assert store.obsm[name].dtype == adata.obsm[name].dtype
    for name in adata.obsp:
        assert (store.obsp[name] != adata.obsp[name].astype(np.float32)).nnz == 0
    for name in filter(None, adata.layers):
        expected = dense(adata.layers[name])
        expected = expected.astype(np.float32) if expected.dtype.kind == "f" else expected
        np.testing.assert_array_equal(dense(store.layers[name]), expected)
        assert sparse.issparse(store.layers[name]) == sparse.issparse(adata.layers[name])
    for name in adata.varm:
        np.testing.assert_array_equal(store.varm[name], adata.varm[name])
    uns = dict(store.uns)
    uns.pop("stdist")
    assert_same_value(uns, dict(adata.uns))
    assert verify(path)[:2] == ([], [])


@pytest.mark.parametrize("name", ["starmap_visp_2rep", "mousebrain_st_hippo1to4"])
def test_real_data_survive(name, tmp_path):
    source = DATA / f"{name}.h5ad"
    if not source.exists():
        pytest.skip(f"real data are not at {source}")
    path = stdist.io.convert(source, tmp_path / "store.zarr")
    assert_round_trip(anndata.read_h5ad(source), path)
    assert stdist.io.notes(path) == []


@pytest.mark.parametrize("kind", ["h5ad-csr", "h5ad-dense", "zarr2", "zarr3"])
def test_everything_an_anndata_holds_survives(kind, tmp_path):
    adata = make_adata()
    path = stdist.io.convert(write_sample(adata, kind, tmp_path), tmp_path / "store.zarr")
    assert_round_trip(adata, path)
    assert stdist.io.notes(path) == ["1 cells have no counts", "1 genes have no counts"]


def test_in_memory_object_is_written_the_same(tmp_path):
    adata = make_adata()
    adata.obs["holes"] = [None if i % 7 == 0 else f"s{i}" for i in range(adata.n_obs)]
    path = stdist.io.write(adata, tmp_path / "store.zarr")
    assert_round_trip(adata, path)
    again = stdist.io.write(stdist.io.open(path), tmp_path / "again.zarr", block_length=1024)
    first, second = anndata.read_zarr(path), anndata.read_zarr(again)
    np.testing.assert_array_equal(first.X, second.X)
    assert_same_frame(first.obs, second.obs)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_store(kind, tmp_path):
    adata = make_adata(n_obs=20000, n_vars=23, rich=False)
    path = stdist.io.convert(write_sample(adata, kind, tmp_path), tmp_path / "store.zarr")
    store = anndata.read_zarr(path)
    np.testing.assert_array_equal(store.X, dense(adata.X))
    assert store.X.dtype == np.uint16
    assert [*store.obs_names] == [*adata.obs_names]
    assert [*store.var_names] == [*adata.var_names]
    element = Store(path).element("X")
    assert element.attributes["max"] == dense(adata.X).max()
    assert element.attributes["nnz"] == adata.X.nnz
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(("store", "."))] == [path.name]


def test_gene_ids_of_tenx(tmp_path):
    adata = make_adata(50, 7, rich=False)
    for kind in ("10x-h5", "mtx-gz"):
        source = write_sample(adata, kind, tmp_path)
        path = stdist.io.convert(source, tmp_path / f"{kind}.zarr", gene_names="ids")
        var = anndata.read_zarr(path).var
        assert [*var.index] == [f"ENS{name}" for name in adata.var_names]
        assert [*var["gene_symbols"]] == [*adata.var_names]


@pytest.mark.parametrize("kind", ["dense", "csr"])
def test_block_length_does_not_matter(kind, tmp_path):
    adata = make_adata(5000, 19)
    source = write_sample(adata, "h5ad-csr", tmp_path)
    stores = [
        anndata.read_zarr(
            stdist.io.convert(source, tmp_path / f"{n}.zarr", kind=kind, block_length=n)
        )
        for n in (1024, 2048, 65536)
    ]
    for store in stores:
        assert sparse.issparse(store.X) == (kind == "csr")
        np.testing.assert_array_equal(dense(store.X), dense(adata.X))
        assert_same_frame(store.obs, stores[0].obs)
        assert (store.layers["small"] != stores[0].layers["small"]).nnz == 0


def test_layout_of_counts(tmp_path):
    adata = make_adata(3000, 41, rich=False)
    source = write_sample(adata, "h5ad-csr", tmp_path)
    path = stdist.io.convert(source, tmp_path / "dense.zarr", block_length=1024)
    array = zarr.open_array(path / "X", mode="r")
    assert array.shards == (1024, 64)
    assert len(list((path / "X" / "c").rglob("*"))) - 3 == 3  # every shard is there
    assert [codec.to_dict()["name"] for codec in array.compressors] == ["blosc", "crc32c"]
    path = stdist.io.convert(source, tmp_path / "csr.zarr", kind="csr")
    group = zarr.open_group(path / "X", mode="r")
    assert group["indptr"].dtype == np.int64
    assert group["data"].dtype == np.uint16
    wide = make_adata(100, 5000, rich=False)
    wide.X = sparse.random(100, 5000, 0.01, format="csr", random_state=0)
    wide.X.data = np.ceil(wide.X.data * 9).astype(np.float32)
    path = stdist.io.convert(write_sample(wide, "h5ad-csr", tmp_path, "w"), tmp_path / "wide.zarr")
    assert sparse.issparse(anndata.read_zarr(path).X)


def test_large_counts_keep_their_values(tmp_path):
    adata = make_adata(50, 7, rich=False)
    adata.X = adata.X.toarray()
    adata.X[3, 2] = 10_000_000
    path = stdist.io.convert(write_sample(adata, "h5ad-csr", tmp_path), tmp_path / "s.zarr")
    assert anndata.read_zarr(path).X[3, 2] == 10_000_000


def test_other_readers_open_the_store(tmp_path):
    scanpy = pytest.importorskip("scanpy")
    adata = make_adata()
    path = stdist.io.convert(write_sample(adata, "h5ad-csr", tmp_path), tmp_path / "store.zarr")
    lazy = anndata.experimental.read_lazy(path)
    np.testing.assert_array_equal(lazy.X.compute(), dense(adata.X))
    assert [*lazy.obs["area"].to_numpy()] == [*adata.obs["area"]]
    store = anndata.read_zarr(path)
    store = store[store.X.sum(axis=1) > 0].copy()
    store.X = store.X.astype(np.float32)
    scanpy.pp.normalize_total(store)
    scanpy.pp.log1p(store)
    assert np.isfinite(store.X).all()


def test_layer_or_raw_as_counts(tmp_path):
    adata = make_adata(300, 11, rich=False)
    counts = adata.X.toarray()
    adata.raw = adata.copy()
    adata = adata[:, :6].copy()
    adata.layers["counts"] = adata.X.copy()
    adata.X = np.log1p(adata.X.toarray())
    source = write_sample(adata, "h5ad-csr", tmp_path)
    store = anndata.read_zarr(
        stdist.io.convert(source, tmp_path / "layer.zarr", counts="layers/counts")
    )
    np.testing.assert_array_equal(store.X, counts[:, :6])
    np.testing.assert_array_equal(store.layers["X"], adata.X)
    path = stdist.io.convert(source, tmp_path / "raw.zarr", counts="raw")
    store = anndata.read_zarr(path)
    np.testing.assert_array_equal(store.X, counts)
    assert store.n_vars == 11
    assert any("layers/counts is left out" in note for note in stdist.io.notes(path))


def test_parts_without_encoding_are_noted(tmp_path):
    adata = make_adata(60, 5, rich=False)
    adata.obsm["frame"] = pd.DataFrame({"a": np.arange(60.0)}, index=adata.obs_names)
    adata.uns["good"] = {"inner": np.arange(3)}
    adata.uns["bad"] = {"inner": object(), "fine": 1}
    path = stdist.io.write(adata, tmp_path / "store.zarr")
    notes = "\n".join(stdist.io.notes(path))
    assert "obsm/frame is left out" in notes
    assert "uns/bad/inner is left out" in notes
    assert anndata.read_zarr(path).uns["bad"]["fine"] == 1


def test_concatenation(tmp_path):
    left, right = make_adata(1500, 12, 1, "a"), make_adata(700, 12, 2, "b")
    right = right[:, ::-1].copy()[:, 2:].copy()
    right.obs["type"] = pd.Categorical(["w"] * 350 + ["x"] * 350)
    right.obs["number"] = right.obs["number"].astype(np.float32)
    del right.obs["flag"]
    right.uns["params"] = {"k": 4, "metric": "cosine"}
    inputs = [
        write_sample(left, "h5ad-csr", tmp_path, "left"),
        write_sample(right, "zarr3-dense", tmp_path, "right"),
    ]
    path = stdist.io.convert(inputs, tmp_path / "store.zarr", block_length=1024)
    store = anndata.read_zarr(path)
    genes = [*left.var_names[:10]]
    assert [*store.var_names] == genes
    expected = np.concatenate([dense(part[:, genes].X) for part in (left, right)])
    np.testing.assert_array_equal(dense(store.X), expected)
    expected = np.concatenate([dense(part[:, genes].layers["small"]) for part in (left, right)])
    np.testing.assert_array_equal(dense(store.layers["small"]), expected)
    assert [*store.obs_names] == [*left.obs_names, *right.obs_names]
    assert [*store.obs["batch"]] == ["left"] * 1500 + ["right"] * 700
    assert [*store.obs["type"]] == [*left.obs["type"], *right.obs["type"]]
    assert [*store.obs["code"]] == [*left.obs["code"], *right.obs["code"]]
    assert plain(store.obs["maybe"]) == plain(left.obs["maybe"]) + plain(right.obs["maybe"])
    assert [*store.obs["number"]] == [*left.obs["number"], *right.obs["number"]]
    assert not store.obs["type"].cat.ordered
    assert store.uns["params"] == {"metric": "cosine", "scale": 0.5, "on": True}
    notes = "\n".join(stdist.io.notes(path))
    for part in ("2 of 12 genes", "obs column flag", "obsp/near"):
        assert part in notes
    assert verify(path)[:2] == ([], [])


def test_concatenation_of_formats_with_unique_names(tmp_path):
    adata = make_adata(1100, 9, rich=False)
    kinds = ("h5ad-csc", "10x-h5", "mtx-gz", "zarr2")
    inputs = [write_sample(adata, kind, tmp_path, kind) for kind in kinds]
    store = anndata.read_zarr(
        stdist.io.convert(
            inputs,
            tmp_path / "store.zarr",
            batch_names=list("abcd"),
            batch_key="sample",
            index_unique="-",
            block_length=1024,
        )
    )
    np.testing.assert_array_equal(store.X, np.tile(dense(adata.X), (4, 1)))
    assert store.obs_names[1100] == "cell0-b"
    assert store.obs["sample"].value_counts().to_dict() == dict.fromkeys("abcd", 1100)


def test_batch_name_for_one_input(tmp_path):
    source = write_sample(make_adata(50, 7, rich=False), "mtx", tmp_path)
    path = stdist.io.convert(source, tmp_path / "store.zarr", batch_names=["only"])
    assert set(anndata.read_zarr(path).obs["batch"]) == {"only"}


class Failing(InProcess):
    """Fails after some tasks, like a machine that is switched off."""

    def __init__(self, tasks):
        self.left = tasks

    def run(self, graph, watched, on_done):
        if self.left < len(graph):
            raise KeyboardInterrupt
        self.left -= len(graph)
        return super().run(graph, watched, on_done)


@pytest.mark.parametrize("kind", ["h5ad-csr", "mtx"])
def test_resume_rebuilds_the_program(kind, tmp_path):
    adata = make_adata(3000, 9, rich=False)
    source = write_sample(adata, kind, tmp_path)
    target = tmp_path / "store.zarr"
    with pytest.raises(Exception, match="interrupted"):
        stdist.io.convert(source, target, client=Failing(9), block_length=1024)
    with pytest.raises(Exception, match="run-unfinished"):
        stdist.io.convert(source, target)
    resume(target, lambda name, parameters: stdist.io.convert_program(**parameters), InProcess())
    np.testing.assert_array_equal(anndata.read_zarr(target).X, dense(adata.X))
    assert not list(tmp_path.glob(".*"))
    runs = list((target / ".stdist" / "runs").glob("*/run.json"))
    assert json.loads(runs[0].read_text())["program"] == "convert"


@pytest.mark.slow
def test_on_a_cluster(tmp_path):
    from distributed import Client

    adata = make_adata(5000, 19)
    source = write_sample(adata, "h5ad-csr", tmp_path)
    with Client(n_workers=1, threads_per_worker=2, dashboard_address=":0") as client:
        path = stdist.io.convert(source, tmp_path / "a.zarr", client=client, block_length=1024)
        assert_round_trip(adata, path)
        adata.X.data[5] = -1
        bad = write_sample(adata, "h5ad-csr", tmp_path, "bad")
        with pytest.raises(InputError, match="counts-negative"):
            stdist.io.convert(bad, tmp_path / "b.zarr", client=Cluster(client))


def test_a_stdist_store_is_an_input(tmp_path):
    adata = make_adata()
    first = stdist.io.convert(write_sample(adata, "h5ad-csr", tmp_path), tmp_path / "1.zarr")
    assert_round_trip(adata, stdist.io.convert(first, tmp_path / "2.zarr", kind="csr"))


def test_counts_can_be_any_number_type(tmp_path):
    counts = make_counts(40, 6)
    for dtype in ("uint8", "int16", "float64", "bool"):
        adata = anndata.AnnData(counts.astype(dtype))
        path = stdist.io.write(adata, tmp_path / f"{dtype}.zarr")
        np.testing.assert_array_equal(anndata.read_zarr(path).X, counts.astype(dtype))


def test_unused_imports_of_formats_stay_lazy():
    import subprocess
    import sys

    code = "import stdist.io, sys; print('anndata' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.strip() == "False"
