"""Harmony on a device (the strict fake where there is none): the embedding of the processor."""

from __future__ import annotations

import anndata
import dask
import numpy as np
import pytest

from stdist import pp


@pytest.fixture(scope="module")
def cohort():
    rng = np.random.default_rng(0)
    n = 2500
    label, slide, donor = (rng.integers(0, k, n) for k in (5, 3, 2))
    values = 4 * rng.normal(size=(5, 8))[label] + rng.normal(size=(n, 8))
    values += rng.normal(size=(3, 8))[slide] + 0.5 * rng.normal(size=(2, 8))[donor]
    values[7] = 0.0
    adata = anndata.AnnData(np.zeros((n, 1), np.float32))
    adata.obsm["X_pca"] = values.astype(np.float32)
    adata.obs["slide"], adata.obs["donor"] = slide.astype(str), donor.astype(str)
    return adata


@pytest.mark.parametrize("flavour", ["harmony2", "harmony1"])
@pytest.mark.parametrize("keys", ["slide", ["slide", "donor"]])
def test_embedding_is_that_of_the_processor(cuda, cohort, flavour, keys):
    found = []
    for device in ("cpu", "cuda"):
        adata = cohort.copy()
        options = {"flavour": flavour, "n_clusters": 12, "max_iterations": 3}
        with dask.config.set({"stdist.device": device}):
            pp.harmony(adata, batch_key=keys, keep_clusters="soft", **options)
        found.append(adata)
    one, two = found
    scale = np.abs(one.obsm["X_pca_harmony"]).max()
    difference = np.abs(one.obsm["X_pca_harmony"] - two.obsm["X_pca_harmony"]).max()
    assert difference < 1e-5 * scale
    assert np.abs(one.obsm["soft"] - two.obsm["soft"]).max() < 1e-5
    objective = [adata.uns["X_pca_harmony"]["objective"] for adata in found]
    np.testing.assert_allclose(*objective, rtol=1e-5)
