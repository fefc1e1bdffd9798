"""HVG conservation equals scanpy's genes on real data."""

from __future__ import annotations

import warnings

import anndata
import numpy as np
import pytest

import stdist
from stdist.graph import run_in_memory
from stdist.store import InputError

scanpy = pytest.importorskip("scanpy")


def corrected(path):
    if not path.exists():
        pytest.skip(f"needs {path}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata = anndata.read_h5ad(path)
    rng = np.random.default_rng(0)
    after = adata.X.copy()
    after.data = rng.binomial(after.data.astype(int), 0.7).astype(np.float32)
    adata.layers["after"] = after
    return adata


def scanpy_genes(counts, n_top):
    adata = anndata.AnnData(counts.astype(np.float64))
    scanpy.pp.normalize_total(adata)
    scanpy.pp.log1p(adata)
    return scanpy.pp.highly_variable_genes(adata, n_top_genes=n_top, inplace=False)


@pytest.mark.parametrize("name", ["pbmc_ifn_kang", "starmap_visp_2rep", "mousebrain_st_hippo1to4"])
@pytest.mark.filterwarnings("ignore")
def test_genes_are_those_of_scanpy(shared, name):
    adata = corrected(shared / "data" / f"{name}.h5ad")
    found = stdist.metrics.hvg_conservation(adata, layer="after", n_top=250)
    chosen = []
    for when, counts in (("before", adata.X), ("after", adata.layers["after"])):
        expected = scanpy_genes(counts, 250)
        np.testing.assert_allclose(
            found.genes[f"dispersion_{when}"], expected["dispersions_norm"], rtol=1e-9, atol=1e-9
        )
        chosen.append(expected["highly_variable"].to_numpy())
        np.testing.assert_array_equal(found.genes[f"variable_{when}"], chosen[-1])
    both = (chosen[0] & chosen[1]).sum()
    assert found.score == both / min(chosen[0].sum(), chosen[1].sum())
    assert 0.3 < found.score < 1


def test_blocks_do_not_matter_and_bad_counts_are_named(monkeypatch):
    rng = np.random.default_rng(1)
    counts = rng.poisson(rng.gamma(0.5, 2.0, (1, 40)), (3000, 40)).astype(np.float32)
    adata = anndata.AnnData(counts, layers={"after": np.maximum(counts - 1, 0)})
    whole = stdist.metrics.hvg_conservation(adata, layer="after", n_top=10)

    def in_blocks(program, executor):
        return run_in_memory(program, executor, block_length=1024)

    monkeypatch.setattr("stdist.metrics.hvg.run_in_memory", in_blocks)
    again = stdist.metrics.hvg_conservation(adata, layer="after", n_top=10)
    assert again.genes.equals(whole.genes)
    adata.layers["after"][7, 3] = 0.5
    with pytest.raises(InputError, match="fractional"):
        stdist.metrics.hvg_conservation(adata, layer="after")
