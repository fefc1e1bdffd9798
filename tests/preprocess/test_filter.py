"""Filtering into a new store equals filtering in memory."""

from __future__ import annotations

import anndata
import numpy as np
import pytest

import stdist
from stdist.store import InputError, Store
from stdist.store.verify import verify


@pytest.mark.parametrize("kind", ["dense", "csr"])
def test_filter_keeps_what_passes_and_everything_beside_it(shared, tmp_path, kind):
    adata = anndata.read_h5ad(shared / "data" / "starmap_visp_2rep.h5ad")
    adata.obsm["X_pca"] = np.arange(3.0 * adata.n_obs).reshape(-1, 3)
    adata.layers["double"] = adata.X * 2
    adata.varm["PCs"] = np.arange(2.0 * adata.n_vars).reshape(-1, 2)
    source, out = tmp_path / "source.zarr", tmp_path / "filtered.zarr"
    stdist.io.write(adata, source, kind=kind)
    stdist.pp.filter(
        source, out, min_counts=400, min_genes=150, max_counts=900, min_cells=300, block_length=1024
    )
    counts = adata.X.toarray()
    total = counts.sum(axis=1)
    cells = (total >= 400) & ((counts > 0).sum(axis=1) >= 150) & (total <= 900)
    genes = (counts[cells] > 0).sum(axis=0) >= 300
    assert 0 < cells.sum() < len(cells)
    assert 0 < genes.sum() < len(genes)
    expected = adata[cells, genes]
    found = stdist.io.open(out)
    assert list(found.obs_names) == list(expected.obs_names)
    assert list(found.var_names) == list(expected.var_names)
    for layer in (None, "double"):
        values = (found.X if layer is None else found.layers[layer]).compute()
        values = values.toarray() if hasattr(values, "toarray") else values
        wanted = expected.X if layer is None else expected.layers[layer]
        np.testing.assert_array_equal(values, wanted.toarray())
    np.testing.assert_array_equal(found.obsm["X_pca"].compute(), expected.obsm["X_pca"])
    np.testing.assert_array_equal(found.varm["PCs"], expected.varm["PCs"])
    assert list(found.obs["cell_type"]) == list(expected.obs["cell_type"])
    assert verify(out)[0] == []
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_nothing_passes(base, tmp_path):
    with pytest.raises(InputError) as caught:
        stdist.pp.filter(base, tmp_path / "out.zarr", min_counts=1e9)
    assert caught.value.code == "nothing-passes"
    assert list(tmp_path.iterdir()) == []


def test_another_filter_does_not_touch_an_interrupted_one(base, tmp_path, monkeypatch):
    from stdist import graph
    from stdist.methods.registry import build
    from stdist.store import RunStopped, writer

    out, whole = tmp_path / "out.zarr", tmp_path / "whole.zarr"
    first = {"min_counts": 25, "min_genes": 1, "block_length": 1024}
    stdist.pp.filter(base, whole, **first)
    real, calls = writer.record_file, []

    def failing(*args, **kwargs):
        calls.append(args)
        if len(calls) > 8:
            raise OSError(28, "No space left on device")
        return real(*args, **kwargs)

    monkeypatch.setattr(writer, "record_file", failing)
    with pytest.raises(RunStopped):
        stdist.pp.filter(base, out, **first)
    monkeypatch.undo()
    with pytest.raises(InputError) as caught:
        stdist.pp.filter(base, out, min_counts=0, max_counts=25, min_genes=1, block_length=1024)
    assert caught.value.code == "run-unfinished"
    graph.resume(out, build, graph.InProcess())
    one, other = (Store(path).element("X").read(0, 500) for path in (out, whole))
    np.testing.assert_array_equal(one, other)
    assert not list(tmp_path.glob(".*scratch"))


def test_interrupted_filter_resumes(base, tmp_path, monkeypatch):
    from stdist import graph
    from stdist.methods.registry import build
    from stdist.store import RunStopped, writer

    out, whole = tmp_path / "out.zarr", tmp_path / "whole.zarr"
    options = {"min_counts": 20, "min_genes": 1, "block_length": 1024}
    stdist.pp.filter(base, whole, **options)
    real, calls = writer.record_file, []

    def failing(*args, **kwargs):
        calls.append(args)
        if len(calls) > 12:
            raise OSError(28, "No space left on device")
        return real(*args, **kwargs)

    monkeypatch.setattr(writer, "record_file", failing)
    with pytest.raises(RunStopped) as caught:
        stdist.pp.filter(base, out, **options)
    assert caught.value.code == "disk-full"
    monkeypatch.undo()
    graph.resume(out, build, graph.InProcess())
    for key in ("X", "layers/sparse", "obsm/spatial"):
        one, other = (Store(path).element(key).read(0, 1000) for path in (out, whole))
        assert (one != other).sum() == 0
