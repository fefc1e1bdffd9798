"""Genes that a batch lacks, imputed from neighbours."""

from __future__ import annotations

import anndata
import numpy as np
import pytest
from scipy import sparse

from stdist import io, tl
from stdist.methods.crescendo import impute, passes, program
from stdist.methods.crescendo.match import Rule
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
    effect = np.exp(rng.normal(0, 0.3, (3, 8)))
    truth = rng.poisson(depth[:, None] * rate[label] * effect[batch])
    counts = truth.copy()
    counts[np.ix_(batch == 1, LACKING)] = 0
    adata = anndata.AnnData(counts.astype(np.int32))
    adata.obs["slide"], adata.obs["type"] = np.array(list("abc"))[batch], label.astype(str)
    adata.obs["depth"] = depth
    adata.obsm["soft"] = np.eye(N_TYPES)[label].astype(np.float32)
    centres = 5 * rng.normal(size=(N_TYPES, 6))
    adata.obsm["X_pca_harmony"] = (centres[label] + rng.normal(size=(N_CELLS, 6))).astype("f4")
    adata.uns["truth"] = truth
    share = np.stack([np.bincount(label[batch == b], minlength=N_TYPES) for b in (0, 2)])
    share = (share / share.sum(axis=0))[:, :, None]
    adata.uns["rate"] = rate * (share * effect[[0, 2], None]).sum(axis=0)
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
    others = np.delete(np.arange(8), LACKING)
    np.testing.assert_array_equal(new[:, others], old[:, others])
    imputed = found.uns["crescendo"]["coefficients"]["imputed"]
    assert imputed.sel(batch="b").values.nonzero()[0].tolist() == LACKING
    assert int(imputed.sum()) == len(LACKING)
    assert (found.var["crescendo_status"] == "imputed in a batch").to_numpy().nonzero()[
        0
    ].tolist() == LACKING
    depth, label = cohort.obs["depth"].to_numpy(), cohort.obs["type"].to_numpy()
    for gene in LACKING:
        for k in range(N_TYPES):
            known = cohort.uns["rate"][k, gene]
            for among in (lacks, ~lacks):  # imputed, and corrected where it is measured
                cells = np.flatnonzero((label == str(k)) & among)
                error = np.sqrt(known / depth[cells].sum())
                rate = new[cells, gene].sum() / depth[cells].sum()
                assert abs(rate - known) < 5 * error + 0.02 * known
    # as close to counts that were really there as an independent draw at the true rate
    truth = cohort.uns["truth"][np.ix_(lacks, LACKING)]
    assert (
        np.corrcoef(np.log1p(new[np.ix_(lacks, LACKING)]).ravel(), np.log1p(truth).ravel())[0, 1]
        > 0.5
    )


@pytest.mark.parametrize(
    ("clusters", "options"),
    [
        ("type", {"margin": "negative_binomial"}),
        ("type", {"lam": "mean"}),
        ("type", {"keep": ["sex"]}),
        ("soft", {"fit_cells": None}),
        ("soft", {"target_offset": 200.0}),
    ],
)
def test_batches_that_lack_a_gene_have_no_say(cohort, monkeypatch, clusters, options):
    """The fit of the other batches is that without the batch, however it is fitted."""
    for module in (passes, program):
        monkeypatch.setattr(module, "SAMPLE_CELLS", 1500)
    adata = cohort.copy()
    adata.obs["sex"] = np.where(np.arange(N_CELLS) % 3, "f", "m")
    found = corrected(adata, clusters, impute_missing=True, **options)
    alone = corrected(adata[adata.obs["slide"] != "b"].copy(), clusters, **options)
    one, two = (a.uns["crescendo"]["coefficients"] for a in (found, alone))
    rates = [
        np.exp(c["intercept"].values + c["target_coefficients"].values)[:, LACKING]
        for c in (one, two)
    ]
    tolerance = 0.1 if "fit_cells" in options else 1e-3  # other samples, other dispersions
    np.testing.assert_allclose(*rates, rtol=tolerance)
    depth, b = cohort.obs["depth"].to_numpy(), (cohort.obs["slide"] == "b").to_numpy()
    goal = np.ones(N_CELLS) * options.get("target_offset", depth)
    label = cohort.obs["type"].astype(int).to_numpy()
    for cells in (b, ~b):
        wanted = (goal[cells, None] * cohort.uns["rate"][label[cells]][:, LACKING]).sum(axis=0)
        total = found.layers["crescendo"][cells][:, LACKING].sum(axis=0)
        np.testing.assert_allclose(total, wanted, rtol=0.05)


def test_a_missing_gene_does_not_make_other_genes_affected(cohort):
    rng = np.random.default_rng(2)
    counts = rng.poisson(cohort.obs["depth"].to_numpy()[:, None] * np.full(8, 0.01))
    counts[np.ix_(cohort.obs["slide"] == "b", LACKING)] = 0
    adata = anndata.AnnData(counts, obs=cohort.obs, obsm=cohort.obsm)
    found = corrected(adata, impute_missing=True)
    others = np.delete(np.arange(8), LACKING)
    assert (found.var["crescendo_status"].iloc[others] == "no batch effect").all()
    np.testing.assert_array_equal(found.layers["crescendo"][:, others], counts[:, others])


def test_donors_are_sought_among_cells_that_have_the_gene(cohort):
    """Cells of a slide that lie apart from all others still find donors."""
    adata = cohort.copy()
    b = (adata.obs["slide"] == "b").to_numpy()
    adata.obsm["X_pca_harmony"] = np.column_stack([adata.obsm["X_pca_harmony"], 100.0 * b])
    found = corrected(adata, impute_missing=True).layers["crescendo"][b][:, LACKING]
    depth, label = cohort.obs["depth"].to_numpy()[b], cohort.obs["type"].astype(int).to_numpy()[b]
    wanted = (depth[:, None] * cohort.uns["rate"][label][:, LACKING]).sum(axis=0)
    np.testing.assert_allclose(found.sum(axis=0), wanted, rtol=0.05)


def test_what_has_no_donor_is_zero_and_named(cohort, monkeypatch):
    monkeypatch.setattr(impute, "DONORS", 50)
    adata = cohort.copy()
    slide = adata.obs["slide"].to_numpy().copy()
    slide[5:9] = "few"
    adata.obs["slide"] = slide
    counts = np.asarray(adata.X).copy()
    counts[slide != "few", 2] = 0
    counts[5:9, 2] = 3
    adata.X = counts
    with pytest.warns(match="genes-not-imputed"):
        found = corrected(adata, impute_missing=True)
    assert not found.layers["crescendo"][slide != "few", 2].any()
    assert found.var["crescendo_status"].iloc[2] == "absent in a batch, not imputed"
    assert not found.uns["crescendo"]["coefficients"]["imputed"][:, 2].any()
    assert found.var["crescendo_status"].iloc[5] == "imputed in a batch"


def test_imputed_counts_that_do_not_fit_are_refused_and_only_lacking_genes_make_donors():
    n, genes = 40, np.arange(3)
    batch = np.repeat([0, 1], n // 2)
    counts = np.full((n, 3), 200, np.uint8)
    counts[:20, 1] = 0
    none = np.zeros((1, 3))
    impossible = np.array([[0.0, 0.0, 30.0]])  # gene 2 has a batch-free rate beyond any count
    tile = {
        "counts": counts,
        "batch": batch,
        "labels": np.zeros(n, int),
        "depth": np.full(n, 1.0),
        "fit": {
            "corrected": np.array([True, True, True]),
            "source_intercept": np.zeros((2, 3)) + np.log(200),
            "source_coefficients": np.zeros((2, 1, 3)),
            "target_intercept": np.log(200) + none[0],
            "target_coefficients": impossible,
        },
        "keys": np.arange(3, dtype=np.uint64),
        "genes": genes,
        "var_names": np.array(["x", "y", "z"]),
        "rule": Rule("pit", True, None, "observed", False),
        "dtype": "uint8",
        "strata": {
            "counts": np.stack([counts[batch == b].sum(axis=0)[None] for b in (0, 1)]),
            "fitted": np.full((2, 1), 20),
        },
        "embedding": np.zeros((n, 2)),
    }
    donors = impute.take_donors((0, n), share=1.0, seed=0, **tile)
    assert (donors["rates"] == 200).any()
    tile["fit"]["corrected"][2] = False
    keys = np.arange(3, dtype=np.uint64)
    more = {"donors": donors, "n_neighbors": 5, "impute_keys": keys}
    done = impute.match_and_impute((0, n), **tile, **more)["corrected"]
    assert (done[:20, 1] > 100).all()
    donors["rates"] = donors["rates"] * 10.0
    with pytest.raises(InputError) as caught:
        impute.match_and_impute((0, n), **tile, **more)
    assert caught.value.code == "count-unmatched"
    assert caught.value.place == "gene 'y', row 0"


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
