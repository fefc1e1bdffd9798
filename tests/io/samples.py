"""The same counts in every input format."""

from __future__ import annotations

import gzip
import warnings
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
from scipy import io as scipy_io
from scipy import sparse

FORMATS = (
    "h5ad-dense",
    "h5ad-csr",
    "h5ad-csc",
    "h5ad-gzip",
    "zarr2",
    "zarr3",
    "zarr3-dense",
    "zarr3-csc",
    "10x-h5",
    "10x-h5-v2",
    "mtx",
    "mtx-gz",
    "mtx-shuffled",
)


def make_counts(n_obs=3000, n_vars=41, seed=0):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.gamma(0.5, 1.0, n_vars), (n_obs, n_vars))
    counts[:, 3] = 0
    counts[17] = 0
    return counts.astype(np.int64)


def make_adata(n_obs=3000, n_vars=41, seed=0, prefix="cell", rich=True):
    counts = make_counts(n_obs, n_vars, seed)
    rng = np.random.default_rng(seed + 1)
    names = [f"{prefix}{i}" for i in range(n_obs)]
    var = pd.DataFrame(
        {
            "length": np.arange(n_vars, dtype=float),
            "kind": pd.Categorical(["a", "b"] * n_vars)[:n_vars],
        },
        index=[f"gene{j}" for j in range(n_vars)],
    )
    adata = anndata.AnnData(sparse.csr_matrix(counts.astype(np.float32)), var=var)
    adata.obs_names = names
    if not rich:
        return adata
    labels = np.array(["x", "y", "z"])[rng.integers(0, 3, n_obs)]
    missing = np.where(rng.random(n_obs) < 0.1, None, rng.integers(0, 9, n_obs))
    adata.obs["area"] = rng.normal(size=n_obs)
    adata.obs["number"] = rng.integers(-5, 5, n_obs)
    adata.obs["flag"] = rng.random(n_obs) < 0.5
    adata.obs["type"] = pd.Categorical(labels, categories=["z", "y", "x"], ordered=True)
    adata.obs["gap"] = pd.Categorical(np.where(labels == "x", None, labels))
    adata.obs["code"] = pd.Categorical(rng.integers(0, 4, n_obs) * 10)
    adata.obs["rows"] = [f"text {i}é" for i in range(n_obs)]  # a name that kernels use
    adata.obs["maybe"] = pd.array(missing, dtype="Int64")
    adata.obs["perhaps"] = pd.array(np.where(labels == "x", None, labels == "y"), dtype="boolean")
    adata.obsm["spatial"] = rng.normal(size=(n_obs, 2))
    adata.obsm["X_pca"] = rng.normal(size=(n_obs, 5)).astype(np.float32)
    adata.obsm["sparse"] = sparse.random(n_obs, 4, 0.2, format="csr", random_state=0)
    adata.obsp["near"] = sparse.random(n_obs, n_obs, 0.001, format="csr", random_state=1)
    adata.layers["log"] = np.log1p(counts).astype(np.float64)
    adata.layers["small"] = sparse.csr_matrix(counts.astype(np.int32))
    adata.varm["loadings"] = rng.normal(size=(n_vars, 3))
    adata.uns["colors"] = np.array(["#000000", "#ffffff"])
    adata.uns["params"] = {"k": 3, "metric": "cosine", "scale": 0.5, "on": True}
    return adata


def write_sample(adata, kind, folder, name="sample"):
    """Write `adata` in one format and return the path."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if kind.startswith("mtx"):
        return write_mtx(adata, folder / name, kind)
    if kind.startswith("10x"):
        return write_tenx(adata, folder / f"{name}.h5", version=2 if kind.endswith("v2") else 3)
    adata = adata.copy()
    if kind.endswith("dense"):
        adata.X = adata.X.toarray()
    if kind.endswith("csc"):
        adata.X = sparse.csc_matrix(adata.X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind.startswith("h5ad"):
            path = folder / f"{name}.h5ad"
            adata.write_h5ad(path, compression="gzip" if kind.endswith("gzip") else None)
        else:
            path = folder / f"{name}.zarr"
            with anndata.settings.override(zarr_write_format=int(kind[4])):
                adata.write_zarr(path)
    return path


def write_tenx(adata, path, version=3):
    counts = sparse.csr_matrix(adata.X).astype(np.int32)
    names, cells = (np.asarray(index, dtype=bytes) for index in (adata.var_names, adata.obs_names))
    ids = np.asarray([b"ENS" + name for name in names])
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix" if version == 3 else "mm10")
        group["barcodes"] = cells
        group["data"] = counts.data
        group["indices"] = counts.indices.astype(np.int64)
        group["indptr"] = counts.indptr.astype(np.int64)
        group["shape"] = np.asarray(counts.shape[::-1], np.int32)
        if version == 3:
            features = group.create_group("features")
            features["id"], features["name"] = ids, names
            features["feature_type"] = np.full(len(names), b"Gene Expression")
            features["genome"] = np.full(len(names), b"mm10")
        else:
            group["genes"], group["gene_names"] = ids, names
    return path


def write_mtx(adata, folder, kind):
    folder.mkdir(parents=True)
    counts = sparse.coo_matrix(sparse.csr_matrix(adata.X).astype(np.int64).T)
    order = np.argsort(counts.col, kind="stable")
    if kind.endswith("shuffled"):
        order = np.random.default_rng(5).permutation(counts.nnz)
    shuffled = sparse.coo_matrix(
        (counts.data[order], (counts.row[order], counts.col[order])), counts.shape
    )
    scipy_io.mmwrite(folder / "matrix.mtx", shuffled, field="integer", symmetry="general")
    old = kind.endswith("shuffled")
    lines = [
        f"ENS{name}\t{name}" + ("" if old else "\tGene Expression") for name in adata.var_names
    ]
    (folder / ("genes.tsv" if old else "features.tsv")).write_text("\n".join(lines) + "\n")
    (folder / "barcodes.tsv").write_text("\n".join(adata.obs_names) + "\n")
    if kind.endswith("gz"):
        for path in list(folder.iterdir()):
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    return folder
