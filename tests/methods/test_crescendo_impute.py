"""Genes that a batch lacks, imputed from neighbours."""

from __future__ import annotations

import anndata
import numpy as np
import pytest
from scipy import sparse

from stdist import io, tl
from stdist.store import InputError, open_element

N_CELLS, N_TYPES, LACKING = 6000, 4, [2, 5]

pytestmark = pytest.mark.filterwarnings("ignore:.*(genes-imputed|genes-absent)")


@pytest.fixture(scope="module")
def cohort():
    """Types apart in the embedding; genes 2 and 5 are not measured in slide b."""
    rng = np.random.default_rng(0)
    batch, label = rng.integers(0, 3, N_CELLS), rng.integers(0, N_TYPES, N_CELLS)
    rate = rng.lognormal(-3, 1.2, (N_TYPES, 8))
    depth = rng.lognormal(4, 0.3, N_CELLS)
    mean = depth[:, None] * rate[label] * np.exp(rng.normal(0, 0.3, (3, 8)))[batch]
    truth = rng.poisson(mean)
    counts = truth.copy()
    counts[np.ix_(batch == 1, LACKING)] = 0
    adata = anndata.AnnData(counts.astype(np.int32))
    adata.obs["slide"], adata.obs["type"] = np.array(list("abc"))[batch], label.astype(str)
    adata.obs["depth"] = depth
    adata.obsm["soft"] = np.eye(N_TYPES)[label].astype(np.float32)
    centres = 5 * rng.normal(size=(N_TYPES, 6))
    adata.obsm["X_pca_harmony"] = (centres[label] + rng.normal(size=(N_CELLS, 6))).astype("f4")
    adata.uns["truth"] = truth
    return adata


def corrected(cohort, clusters="type", **options):
    adata = cohort.copy()
    tl.crescendo(adata, batch_key="slide", clusters=clusters, depth_key="depth", **options)
    return adata


@pytest.mark.parametrize("clusters", ["type", "soft"])
def test_missing_genes_follow_the_type(cohort, clusters):
    plain = corrected(cohort, clusters)
    found = corrected(cohort, clusters, impute_missing=True)
    lacks = (cohort.obs["slide"] == "b").to_numpy()
    new, old = found.layers["crescendo"], plain.layers["crescendo"]
    changed = np.zeros(new.shape, bool)
    changed[np.ix_(lacks, LACKING)] = True
    np.testing.assert_array_equal(new[~changed], old[~changed])
    imputed = found.uns["crescendo"]["coefficients"]["imputed"]
    assert imputed.sel(batch="b").values.nonzero()[0].tolist() == LACKING
    assert int(imputed.sum()) == len(LACKING)
    assert (found.var["crescendo_status"] == "imputed in a batch").to_numpy().nonzero()[
        0
    ].tolist() == LACKING
    depth, label = cohort.obs["depth"].to_numpy(), cohort.obs["type"].to_numpy()
    for gene in LACKING:
        for k in range(N_TYPES):
            own, others = (np.flatnonzero((label == str(k)) & b) for b in (lacks, ~lacks))
            rates = [new[cells, gene].sum() / depth[cells].sum() for cells in (own, others)]
            error = np.sqrt(rates[0] / depth[own].sum() + rates[1] / depth[others].sum())
            assert abs(rates[0] - rates[1]) < 5 * error + 0.02 * rates[1]
    # as close to counts that were really there as an independent draw at the true rate
    truth = cohort.uns["truth"][np.ix_(lacks, LACKING)]
    assert (
        np.corrcoef(np.log1p(new[np.ix_(lacks, LACKING)]).ravel(), np.log1p(truth).ravel())[0, 1]
        > 0.5
    )


def test_blocks_and_sparse_stores_give_the_same_counts(cohort, tmp_path):
    expected = corrected(cohort, "soft", impute_missing=True).layers["crescendo"]
    for kind in ("dense", "csr"):
        path = tmp_path / f"{kind}.zarr"
        adata = cohort.copy()
        del adata.uns["truth"]
        adata.X = sparse.csr_matrix(adata.X)
        io.write(adata, path, kind=kind)
        options = {"depth_key": "depth", "impute_missing": True, "block_length": 2048}
        tl.crescendo(path, batch_key="slide", clusters="soft", **options)
        rows = open_element(path, "layers/crescendo").read(0, N_CELLS)
        rows = rows.toarray() if sparse.issparse(rows) else rows
        np.testing.assert_array_equal(rows, expected)


def test_what_excludes_it_and_what_it_needs(cohort):
    with pytest.raises(InputError, match="impute_missing"):
        corrected(cohort, impute_missing=True, skip_absent=True)
    with pytest.raises(InputError, match="X_umap"):
        corrected(cohort, impute_missing=True, use_rep="X_umap")
