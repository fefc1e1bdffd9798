"""Crescendo fitted to all cells in passes."""

from __future__ import annotations

import anndata
import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from stdist import tl
from stdist.methods.crescendo import passes, program
from stdist.store import open_element

N_CELLS, N_GENES, N_BATCHES, N_CLUSTERS = 6000, 9, 4, 5
COEFFICIENTS = ("intercept", "cluster_effect", "batch_effect", "interaction", "target_coefficients")


@pytest.fixture(autouse=True)
def small_sample(monkeypatch):
    for module in (passes, program):
        monkeypatch.setattr(module, "SAMPLE_CELLS", 1000)
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def cohort():
    rng = np.random.default_rng(0)
    batch = np.sort(rng.integers(0, N_BATCHES, N_CELLS))
    weights = rng.dirichlet(np.full(N_CLUSTERS, 0.2), N_CELLS)
    effect = rng.normal(0, 1, (N_CLUSTERS, N_GENES))
    shift = rng.normal(0, 0.5, (N_BATCHES, N_CLUSTERS, N_GENES))
    eta = rng.normal(-4, 1, N_GENES) + np.einsum("nk,nkg->ng", weights, effect + shift[batch])
    counts = rng.poisson(rng.gamma(4, 40, N_CELLS)[:, None] * np.exp(eta)).astype(np.uint16)
    counts[17] = 0
    counts[:, 4] = 0
    adata = anndata.AnnData(counts)
    adata.var_names = [f"gene{g}" for g in range(N_GENES)]
    adata.obs["slide"] = np.array(list("dbca"))[batch]
    adata.obs["age"] = np.where(rng.random(N_CELLS) < 0.5, "young", "old")
    adata.obsm["soft"] = weights.astype(np.float32)
    return adata


def corrected(cohort, **options):
    adata = cohort.copy()
    # the dispersion of a gene is that in the sample
    options = {"quasi_poisson": False} | options
    with pytest.warns(match="genes-empty"):
        tl.crescendo(adata, batch_key="slide", clusters="soft", min_cells=20, **options)
    return adata.layers["crescendo"], adata.uns["crescendo"]["coefficients"]


@pytest.mark.filterwarnings("ignore:.*cells-empty")
@pytest.mark.parametrize("keep", [None, ["age"]])
def test_passes_reach_the_fit_that_gathers_all_cells(cohort, keep):
    # the interquartile mean asks the sample for totals
    options = {"keep": keep, "marginal": "arithmetic"}
    in_passes, found = corrected(cohort, fit_cells=None, **options)
    gathered, wanted = corrected(cohort, fit_cells=10**6, **options)
    sampled, _ = corrected(cohort, fit_cells=1000, **options)
    assert found["converged"].all()
    finite = np.isfinite(wanted["intercept"].values)
    for name in COEFFICIENTS:
        a, b = found[name].values[..., finite], wanted[name].values[..., finite]
        np.testing.assert_allclose(a, b, atol=1e-5)
    name = "target_coefficients"
    by_default = (corrected(cohort, fit_cells=n, keep=keep)[1][name] for n in (None, 10**6))
    one, other = (values.values[..., finite] for values in by_default)
    np.testing.assert_allclose(one, other, atol=0.05)
    assert (in_passes != gathered).mean() < 1e-4
    assert (sampled != gathered).mean() > 1e-2


@pytest.mark.filterwarnings("ignore:.*cells-empty", "ignore:.*genes-empty")
def test_blocks_and_workers_do_not_matter(cohort, tmp_path, client):
    from stdist import io

    cohort.write_h5ad(tmp_path / "cohort.h5ad")
    stores = []
    for name, options in (("one", {"block_length": 1024}), ("two", {"client": client})):
        store = tmp_path / f"{name}.zarr"
        io.convert([tmp_path / "cohort.h5ad"], store)
        tl.crescendo(
            store, batch_key="slide", clusters="soft", min_cells=20, fit_cells=None, **options
        )
        stores.append(store)
    one, two = (open_element(s, "layers/crescendo").read(0, N_CELLS) for s in stores)
    assert (one != two).sum() == 0
    in_memory, _ = corrected(cohort, fit_cells=None, quasi_poisson=True)
    assert (in_memory != one).sum() == 0


@pytest.mark.filterwarnings("ignore:.*cells-empty", "ignore:.*genes-empty")
def test_a_gene_does_not_depend_on_the_others_to_the_last_bit(cohort):
    whole, every = corrected(cohort, fit_cells=None)
    for genes in (["gene3"], ["gene8", "gene0"]):
        adata = cohort.copy()
        options = {"fit_cells": None, "quasi_poisson": False, "genes": genes, "min_cells": 20}
        tl.crescendo(adata, batch_key="slide", clusters="soft", **options)
        place = [adata.var_names.get_loc(gene) for gene in sorted(genes)]
        np.testing.assert_array_equal(adata.layers["crescendo"][:, place], whole[:, place])
        found = adata.uns["crescendo"]["coefficients"]
        for name in COEFFICIENTS:
            np.testing.assert_array_equal(found[name].values, every[name].values[..., place])
