"""Crescendo with the negative binomial margin."""

from __future__ import annotations

import anndata
import numpy as np
import pytest

from stdist import tl
from stdist.methods.crescendo.margin import overdispersion

N_CELLS, DISPERSION = 8000, 0.7


@pytest.fixture(scope="module")
def cohort():
    """Two batches, the second three times as high; genes 0 to 3 negative binomial, 4 Poisson."""
    rng = np.random.default_rng(0)
    batch, label = rng.integers(0, 2, N_CELLS), rng.integers(0, 2, N_CELLS)
    rate = np.array([[0.02, 0.1, 0.5, 2.0, 0.1], [0.2, 0.02, 0.1, 0.5, 0.5]])
    depth = rng.lognormal(3, 0.3, N_CELLS)
    mean = depth[:, None] * rate[label] * np.where(batch, 3.0, 1.0)[:, None]
    scatter = rng.gamma(1 / DISPERSION, DISPERSION, mean.shape)
    scatter[:, 4] = 1.0
    adata = anndata.AnnData(rng.poisson(mean * scatter).astype(np.int32))
    adata.obs["slide"], adata.obs["type"] = batch.astype(str), label.astype(str)
    adata.obs["depth"] = depth
    adata.obsm["soft"] = np.eye(2)[label].astype(np.float32)
    return adata


def corrected(cohort, clusters, margin):
    adata = cohort.copy()
    options = {"batch_key": "slide", "depth_key": "depth", "prior_sd": 10.0, "rng": 1}
    tl.crescendo(adata, clusters=clusters, margin=margin, merge_threshold=2.0, **options)
    return adata


@pytest.mark.parametrize("clusters", ["type", "soft"])
def test_overdispersed_counts_get_the_spread_of_the_target(cohort, clusters):
    """After correction both batches have one mean, and one variance, in every cell type."""
    found = corrected(cohort, clusters, "negative_binomial")
    poisson = corrected(cohort, clusters, "poisson")
    dispersion = found.uns["crescendo"]["coefficients"]["dispersion"].values
    assert dispersion[:4] == pytest.approx(np.full(4, DISPERSION), rel=0.15)
    assert dispersion[4] == 0.0
    np.testing.assert_array_equal(
        found.layers["crescendo"][:, 4], poisson.layers["crescendo"][:, 4]
    )
    depth = cohort.obs["depth"].to_numpy()[:, None]
    worse = 0
    for label in "01":
        groups = [(cohort.obs["type"] == label) & (cohort.obs["slide"] == b) for b in "01"]
        n = min(int(g.sum()) for g in groups)
        for margin, adata in (("nb", found), ("poisson", poisson)):
            rates = [adata.layers["crescendo"][g.to_numpy()] / depth[g.to_numpy()] for g in groups]
            mean = np.array([r[:, :4].mean(axis=0) for r in rates])
            spread = np.array([r[:, :4].std(axis=0) for r in rates])
            error = np.sqrt((spread**2).sum(axis=0) / n)
            apart = np.abs(mean[0] - mean[1]) / error
            scale = np.abs(np.log(spread[0] / spread[1]))
            if margin == "nb":
                assert (apart < 4.5).all()
                assert (scale < 0.25).all()
            else:
                worse += int((scale > 0.25).sum())
    assert worse >= 4  # the Poisson margin leaves the spread of the batches different


def test_labels_and_cells_give_one_dispersion(cohort):
    of_sums, of_cells = (
        corrected(cohort, clusters, "negative_binomial").uns["crescendo"]["coefficients"]
        for clusters in ("type", "soft")
    )
    np.testing.assert_allclose(of_sums["dispersion"], of_cells["dispersion"], rtol=1e-6)


def test_poisson_counts_are_not_called_overdispersed():
    rng = np.random.default_rng(3)
    mean = rng.gamma(2, 1, (3000, 400))
    y = rng.poisson(mean)
    found = overdispersion(
        ((y - mean) ** 2).sum(axis=0), y.sum(axis=0), mean.sum(axis=0), (mean**2).sum(axis=0)
    )
    assert (found > 0).mean() < 0.01
