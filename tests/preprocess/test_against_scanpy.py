"""Preprocessing on stores and in memory equals scanpy on real data."""

from __future__ import annotations

import anndata
import numpy as np
import pytest
import scanpy
from scipy import sparse

import stdist
from stdist.store import Store

TOLERANCE = 1e-5
pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning",
    "ignore::DeprecationWarning",
    "ignore:.*infer_string.*",
    "ignore:zero-centering a sparse:UserWarning",
)


@pytest.fixture(scope="module", params=["starmap_visp_2rep", "mousebrain_st_hippo1to4"])
def real(request, shared):
    adata = anndata.read_h5ad(shared / "data" / f"{request.param}.h5ad")
    return adata[:, :900].copy()


@pytest.fixture
def real_store(real, tmp_path):
    path = tmp_path / "real.zarr"
    stdist.io.write(real, path)
    return path


def rows(path, key):
    element = Store(path).element(key)
    found = element.read(0, element.shape[0])
    return found.toarray() if sparse.issparse(found) else found


def close(found, expected):
    expected = expected.toarray() if sparse.issparse(expected) else np.asarray(expected)
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_chain_on_a_store(real, real_store):
    reference = real.copy()
    scanpy.pp.calculate_qc_metrics(reference, percent_top=None, inplace=True)
    stdist.pp.calculate_qc_metrics(real_store, block_length=1024)
    for name in ("total_counts", "n_genes_by_counts", "log1p_total_counts"):
        close(rows(real_store, f"obs/{name}"), reference.obs[name])
    for name in ("n_cells_by_counts", "mean_counts", "pct_dropout_by_counts", "total_counts"):
        close(rows(real_store, f"var/{name}"), reference.var[name])

    scanpy.pp.normalize_total(reference)
    stdist.pp.normalize_total(real_store, block_length=1024)
    close(rows(real_store, "layers/normalized"), reference.X)

    scanpy.pp.log1p(reference)
    stdist.pp.log1p(real_store, layer="normalized", block_length=2048)
    close(rows(real_store, "layers/log1p"), reference.X)
    stdist.pp.normalize_total(real_store, log1p=True, key_added="both")
    close(rows(real_store, "layers/both"), reference.X)

    scaled = anndata.AnnData(reference.X.astype(np.float64))
    scanpy.pp.scale(scaled, max_value=10)
    stdist.pp.scale(real_store, layer="log1p", max_value=10, block_length=1024)
    close(rows(real_store, "layers/scaled"), scaled.X)

    dense = reference.X.toarray().astype(np.float64)
    scanpy_result = anndata.AnnData(dense)
    scanpy.pp.pca(scanpy_result, n_comps=10, svd_solver="full")
    stdist.pp.pca(real_store, layer="log1p", n_comps=10, block_length=1024)
    found = rows(real_store, "obsm/X_pca").astype(np.float64)
    expected = scanpy_result.obsm["X_pca"]
    sign = np.sign((found * expected).sum(axis=0))
    np.testing.assert_allclose(
        found * sign, expected, rtol=TOLERANCE, atol=TOLERANCE * np.abs(expected).max()
    )
    ratio = Store(real_store).uns("pca")["variance_ratio"]
    close(ratio, scanpy_result.uns["pca"]["variance_ratio"])
    components = rows(real_store, "varm/PCs")
    assert (components[np.abs(components).argmax(axis=0), np.arange(10)] > 0).all()


def test_in_memory_equals_store(real, real_store):
    adata = real.copy()
    for data, options in ((adata, {}), (real_store, {"block_length": 1024})):
        stdist.pp.normalize_total(data, log1p=True, **options)
        stdist.pp.pca(data, layer="normalized", n_comps=5, **options)
        stdist.tl.kmeans(data, n_clusters=6, **options)
    np.testing.assert_array_equal(adata.obsm["X_pca"], rows(real_store, "obsm/X_pca"))
    codes = Store(real_store).element("obs/kmeans").read(0, adata.n_obs)
    np.testing.assert_array_equal(adata.obs["kmeans"].cat.codes, codes)
    assert len(np.unique(codes)) == 6
