"""Measures of neighbourhoods on a device (the strict fake where there is none)."""

from __future__ import annotations

import sys

import anndata
import dask
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from stdist import metrics
from stdist.graph import run_in_memory
from stdist.metrics import strips
from tests.fake_cupy import assert_agree

PAIRS = pd.DataFrame({"ligand": [*"01234"], "receptor": [*"21403"]})
MEASURES = {
    "moran": lambda adata, **keys: metrics.morans_i(adata, **keys, n_neighbors=4),
    "raw moran": lambda adata, **keys: metrics.morans_i(adata, **keys, normalize=False),
    "sci": lambda adata, **keys: metrics.sci(adata, label_key="type", **keys),
    "pooled sci": lambda adata, **keys: metrics.sci(
        adata, label_key="type", sums_of="counts", cells="both", genes=["2", "0"], **keys
    ),
    "tests": lambda adata, **keys: metrics.ligand_receptor(
        adata, label_key="type", pairs=PAIRS, n_permutations=39, **keys
    ),
    "two-sided tests": lambda adata, **keys: metrics.ligand_receptor(
        adata, label_key="type", pairs=PAIRS, n_permutations=39, alternative="two-sided", **keys
    ),
}


@pytest.fixture(scope="module")
def cells():
    rng = np.random.default_rng(0)
    n = 900
    counts = rng.poisson(rng.gamma(1.0, 1.0, (n, 5))).astype(np.float32)
    counts[11] = 0
    adata = anndata.AnnData(sparse.csr_matrix(counts))
    adata.obs["type"], adata.obs["slide"] = rng.choice([*"abc"], n), rng.choice(["1", "2"], n)
    adata.obsm["spatial"] = rng.random((n, 2)) * [480.0, 330.0]
    return adata


@pytest.mark.parametrize("name", MEASURES)
def test_measures_are_those_of_the_processor(cuda, cells, monkeypatch, name):
    monkeypatch.setattr(strips, "MOST_CELLS", 90)
    monkeypatch.setattr(strips, "BAND", 64)
    sums, tests, moran = (
        sys.modules[f"stdist.metrics.{name}"]
        for name in ("cross_correlation", "pair_tests", "moran")
    )
    monkeypatch.setattr(sums, "PANEL_NUMBERS", 60)
    monkeypatch.setattr(tests, "PANEL", 3)

    def moving(program, executor):
        assert program.on_device
        return run_in_memory(program, executor)

    for module in (sums, tests, moran):
        monkeypatch.setattr(module, "run_in_memory", moving)
        monkeypatch.setattr(module, "CHUNK_ENTRIES", 1000, raising=False)
    found = []
    for device in ("cpu", "cuda"):
        with dask.config.set({"stdist.device": device}):
            table = MEASURES[name](cells, slice_key="slide")
        frame = table.to_dataframe() if name.endswith("sci") else table
        found.append(frame.select_dtypes("number").to_numpy(float))
    expected, values = found
    assert np.isfinite(expected).any(axis=0).all()
    assert_agree(cuda, values, expected)
