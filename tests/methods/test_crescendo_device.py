"""Crescendo on a device: the counts of the processor (on the strict fake where there is none)."""

from __future__ import annotations

import anndata
import dask
import numpy as np
import pytest
from scipy import sparse

from stdist import tl
from stdist.kernels import poisson_match_cuda, poisson_match_numba, poisson_ridge
from stdist.methods.crescendo import passes, program
from tests.fake_cupy import ndarray

N_CELLS, N_GENES, N_CLUSTERS = 3000, 12, 4
OPTIONS = {
    "default": {},
    "median": {"target_offset": "median"},
    "some genes": {"genes": ["3", "7"]},
    "drop": {"main_effects": "drop", "prior_sd": 0.5},
    "untested": {"skip_unaffected": False, "quasi_poisson": False},
}


@pytest.fixture(scope="module")
def cohort():
    rng = np.random.default_rng(0)
    batch, label = rng.integers(0, 3, N_CELLS), rng.integers(0, N_CLUSTERS, N_CELLS)
    rate = rng.lognormal(-3, 1, (N_CLUSTERS, N_GENES))
    effect = rng.normal(0, 0.5, (3, N_GENES))
    mean = rng.lognormal(3, 0.4, N_CELLS)[:, None] * rate[label] * np.exp(effect[batch])
    adata = anndata.AnnData(rng.poisson(mean).astype(np.uint16))
    adata.obs["slide"], adata.obs["type"] = batch.astype(str), label.astype(str)
    soft = rng.dirichlet(np.full(N_CLUSTERS, 0.3), N_CELLS) * 0.4
    soft[np.arange(N_CELLS), label] += 0.6
    adata.obsm["soft"] = soft.astype(np.float32)
    return adata


@pytest.fixture(autouse=True)
def numba_for_cuda(cuda, monkeypatch):
    """On the fake, let the Numba twins stand in for the CUDA kernels."""

    def on_host(kernel):
        return lambda *arguments: kernel(*(getattr(a, "_host", a) for a in arguments))

    if cuda.ndarray is ndarray:
        for name in ("soft", "labelled"):
            twin = getattr(poisson_match_numba, name)
            monkeypatch.setattr(poisson_match_cuda, name, on_host(twin))


def run(cohort, form, device, **options):
    adata = cohort.copy()
    if form == "csr":
        adata.X = sparse.csr_matrix(adata.X)
    with dask.config.set({"stdist.device": device}):
        tl.crescendo(adata, batch_key="slide", min_cells=30, **options)
    layer = adata.layers["crescendo"]
    return layer.toarray() if sparse.issparse(layer) else layer


@pytest.mark.filterwarnings("ignore:.*cells-empty")
@pytest.mark.parametrize("form", ["dense", "csr"])
@pytest.mark.parametrize("clusters", ["type", "soft"])
@pytest.mark.parametrize("name", OPTIONS)
def test_counts_are_those_of_the_processor(cuda, cohort, form, clusters, name):
    expected = run(cohort, form, "cpu", clusters=clusters, **OPTIONS[name])
    found = run(cohort, form, "cuda", clusters=clusters, **OPTIONS[name])
    assert (found == expected).mean() >= 1 - 1e-6


@pytest.mark.filterwarnings("ignore:.*cells-empty")
@pytest.mark.parametrize("options", [{}, {"lam": 0.5}, {"fit_cells": None}])
def test_systems_of_soft_clusters_are_solved_on_the_device(cuda, cohort, monkeypatch, options):
    real, solved = poisson_ridge.fit_genes, []

    def spy(design, sums, *arguments):
        solved.append(type(sums))
        return real(design, sums, *arguments)

    monkeypatch.setattr(poisson_ridge, "fit_genes", spy)
    for module in (passes, program):
        monkeypatch.setattr(module, "SAMPLE_CELLS", 600)
    run(cohort, "dense", "cuda", clusters="soft", **options)
    assert set(solved) == {cuda.ndarray}


@pytest.mark.filterwarnings("ignore:.*cells-empty")
def test_passes_over_all_cells(cuda, cohort, monkeypatch):
    for module in (passes, program):
        monkeypatch.setattr(module, "SAMPLE_CELLS", 600)
    expected = run(cohort, "dense", "cpu", clusters="soft", fit_cells=None)
    found = run(cohort, "dense", "cuda", clusters="soft", fit_cells=None)
    assert (found == expected).mean() >= 1 - 1e-6
