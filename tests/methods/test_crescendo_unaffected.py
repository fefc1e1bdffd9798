"""Genes that Crescendo leaves alone, those it cannot test, and what it says of them."""

from __future__ import annotations

import anndata
import numpy as np
import pytest
from scipy import sparse

from stdist import tl
from stdist.kernels.keyed_random import stream_key
from stdist.methods.crescendo import match
from stdist.methods.crescendo.match import Rule, match_block
from stdist.store import InputError, StdistWarning

N_CELLS, N_GENES, N_TYPES, N_AFFECTED = 4000, 60, 3, 12
FORMS = pytest.mark.parametrize("clusters", ["type", "soft"])


def cohort(effect):
    """Counts whose first genes differ between two slides of different depth."""
    rng = np.random.default_rng(0)
    batch, label = rng.integers(0, 2, N_CELLS), rng.integers(0, N_TYPES, N_CELLS)
    shift = np.zeros((2, N_GENES))
    shift[:, :N_AFFECTED] = np.outer([effect, -effect], np.where(np.arange(N_AFFECTED) % 2, 1, -1))
    rate = rng.lognormal(-3.5, 0.8, (N_TYPES, N_GENES))
    depth = rng.lognormal(3, 0.3, N_CELLS) * np.where(batch, 1.5, 1.0)
    counts = rng.poisson(depth[:, None] * rate[label] * np.exp(shift)[batch])
    adata = anndata.AnnData(sparse.csr_matrix(counts.astype(np.float32)))
    adata.var_names = [f"gene{g}" for g in range(N_GENES)]
    adata.obs["slide"], adata.obs["type"] = np.array(["a", "b"])[batch], label.astype(str)
    adata.obs["depth"] = depth
    soft = rng.dirichlet(np.full(N_TYPES, 0.3), N_CELLS) * 0.2
    soft[np.arange(N_CELLS), label] += 0.8
    adata.obsm["soft"] = soft.astype(np.float32)
    return adata


@pytest.fixture(scope="module")
def null():
    return cohort(0.0)


@pytest.fixture(scope="module")
def mixed():
    return cohort(0.7)


def corrected(adata, clusters, batch_key="slide", **options):
    adata = adata.copy()
    tl.crescendo(adata, batch_key=batch_key, clusters=clusters, depth_key="depth", **options)
    layer = adata.layers["crescendo"]
    return (layer.toarray() if sparse.issparse(layer) else layer), adata.var["crescendo_status"]


@FORMS
def test_without_batch_effects_nothing_is_changed(null, clusters):
    found, status = corrected(null, clusters)
    np.testing.assert_array_equal(found, null.X.toarray())
    assert (status == "no batch effect").all()
    forced, status = corrected(null, clusters, skip_unaffected=False)
    assert (forced != null.X.toarray()).mean() > 0.01
    assert (status == "corrected").all()


@FORMS
def test_genes_without_an_effect_are_left_alone_among_others(mixed, clusters):
    found, status = corrected(mixed, clusters)
    before, depth = mixed.X.toarray(), mixed.obs["depth"].to_numpy()
    left = (status == "no batch effect").to_numpy()
    assert not left[:N_AFFECTED].any()
    assert left[N_AFFECTED:].mean() > 0.3
    np.testing.assert_array_equal(found[:, left], before[:, left])
    slides = [(mixed.obs["slide"] == name).to_numpy() for name in "ab"]
    apart = [
        np.log([counts[s].sum(axis=0) / depth[s].sum() for s in slides])[:, :N_AFFECTED]
        for counts in (before, found)
    ]
    between = [np.abs(rates[0] - rates[1]).mean() for rates in apart]
    assert between[0] > 1.2
    assert between[1] < 0.1


@FORMS
def test_another_depth_reaches_every_gene(mixed, clusters):
    """Also those without a batch effect: one layer, one scale of depth."""
    before, depth = mixed.X.toarray(), mixed.obs["depth"].to_numpy()
    found, status = corrected(mixed, clusters, target_offset=1000)
    left = (status == "no batch effect").to_numpy()
    assert left.any()
    gain = found.sum(axis=0) / before.sum(axis=0)
    assert np.abs(gain * depth.mean() / 1000 - 1)[left].max() < 0.05
    slides = [(mixed.obs["slide"] == name).to_numpy() for name in "ab"]
    one, other = (found[s].mean(axis=0) for s in slides)
    assert np.abs(np.log(one / other))[left].max() < 0.25  # the depths of the slides are gone
    # where source and target have the same depth, the counts keep their own
    found, status = corrected(mixed, clusters, target_offset=1000, source_offset="final")
    left = (status == "no batch effect").to_numpy()
    np.testing.assert_array_equal(found[:, left], before[:, left])


@FORMS
def test_a_gene_absent_in_a_batch_says_whether_it_was_corrected(null, clusters):
    adata = null.copy()
    counts = adata.X.toarray()
    in_a = (adata.obs["slide"] == "a").to_numpy()
    counts[:, 1] = 0
    counts[np.flatnonzero(in_a)[:2], 1] = 1  # by chance in one slide only
    counts[~in_a, 2] = 0
    adata.X = sparse.csr_matrix(counts)
    with pytest.warns(StdistWarning, match="genes-absent"):
        found, status = corrected(adata, clusters)
    changed = (found != counts).any(axis=0)
    assert status.iloc[1] == "absent in a batch, kept"
    assert not changed[1]
    assert status.iloc[2] == "absent in a batch"
    assert changed[2]


def test_clusters_of_one_batch_leave_nothing_to_test(null):
    with pytest.warns(StdistWarning) as caught:
        found, status = corrected(null, "type", batch_key="type")
    assert (status == "not testable").all()
    np.testing.assert_array_equal(found, null.X.toarray())
    text = " ".join(str(warning.message) for warning in caught)
    assert "[batches-confounded] no cluster of batch 0, 1, 2 " in text
    assert "genes-untestable" in text
    part = null.copy()
    a = (part.obs["slide"] == "a").to_numpy()
    part.obs["slide"] = np.where(a, "a", np.where(np.arange(N_CELLS) % 2, "b", "c"))
    part.obs["type"] = np.where(a, "only", part.obs["type"])
    with pytest.warns(StdistWarning, match=r"batches-confounded\] no cluster of batch a is"):
        _, status = corrected(part, "type")
    assert (status == "no batch effect").all()


def test_chains_of_clusters_that_are_not_merged_are_named(shared, null):
    fixture = np.load(shared / "fixtures" / "crescendo" / "merge.npz")
    chain = fixture["chain_in"].T
    chain = (chain - chain.min()) * 0.5 / (chain - chain.min()).sum(axis=1).max()
    adata = null[: len(chain)].copy()
    adata.obsm["soft"] = np.column_stack([chain, 1.0 - chain.sum(axis=1)])
    with pytest.warns(StdistWarning, match="clusters-chained"):
        corrected(adata, "soft", merge_threshold=float(fixture["chain_threshold"]))
    corrected(adata, "soft")  # nothing is merged, nothing is said


# ---- one block ------------------------------------------------------------------------------


def block(rate, corrected, dispersion=None, dtype="uint16", **options):
    """Match counts of 3 under a rate of 1 to each gene's target rate."""
    rate, corrected = np.asarray(rate, float), np.asarray(corrected)
    n = len(rate)
    fit = {
        "corrected": corrected,
        "source_intercept": np.zeros((1, n)),
        "source_coefficients": np.zeros((1, 1, n)),
        "target_intercept": np.log(rate),
        "target_coefficients": np.zeros((1, n)),
    }
    fit |= {} if dispersion is None else {"dispersion": np.asarray(dispersion)}
    out = match_block(
        (1024, 1026),
        counts=np.full((2, n), 3, np.uint16),
        batch=np.zeros(2, int),
        labels=np.zeros(2, int),
        depth=np.ones(2),
        fit=fit,
        keys=np.array([stream_key(0, "crescendo match", str(g)) for g in range(n)]),
        genes=np.arange(n),
        var_names=np.array([f"gene{g}" for g in range(n)]),
        rule=Rule("pit", True, options.pop("interval", None), "observed", False),
        dtype=dtype,
        **options,
    )
    return out["corrected"] if len(out) == 1 else out


def test_genes_that_are_not_corrected_are_not_matched():
    impossible = [np.exp(30), 1.0, np.exp(12)]
    found = block(impossible, [False, True, False])
    np.testing.assert_array_equal(found, np.full((2, 3), 3))
    both = block(impossible, [False, False, False], interval=0.9)
    assert all((values == 3).all() for values in both.values())
    assert set(both) == {"corrected", "lower", "upper"}


@pytest.mark.parametrize(
    ("rate", "dispersion"),
    [(np.exp(30), 0.0), (np.exp(12), 0.0), (np.exp(30), 0.5), (np.exp(12), 0.5)],
)
def test_a_count_that_cannot_be_matched_is_named(rate, dispersion):
    with pytest.raises(InputError) as caught:
        block([1.0, 1.0, rate], [True, False, True], [0.5, 0.0, dispersion])
    assert caught.value.code == "count-unmatched"
    assert caught.value.place == "gene 'gene2', row 1024"
    assert "target_offset" in caught.value.remedy


def test_every_gene_is_matched_by_its_own_distribution_only(monkeypatch):
    seen = []
    for name in ("match_labels", "match_tile"):
        real = getattr(match, name)

        def spy(*arguments, real=real, name=name, **more):
            seen.append((name, arguments[0].shape[1]))
            return real(*arguments, **more)

        monkeypatch.setattr(match, name, spy)
    found = block([2.0, 2.0, 2.0, 2.0], [True, True, True, False], [0.0, 0.5, 0.0, 0.5])
    assert seen == [("match_labels", 2), ("match_tile", 1)]
    assert (found[:, 3] == 3).all()
    alone = block([2.0, 2.0, 2.0, 2.0], [True, True, True, True], [0.0, 0.5, 0.0, 0.0])
    np.testing.assert_array_equal(found[:, :3], alone[:, :3])


def test_genes_of_an_unsupported_rate_do_not_stop_the_exact_matching(null):
    """The released marginal explodes where a cluster is almost absent from a batch."""
    adata = null.copy()
    soft = adata.obsm["soft"].astype(float)
    soft[(adata.obs["slide"] == "b").to_numpy(), 2] *= 1e-6
    adata.obsm["soft"] = soft / soft.sum(axis=1, keepdims=True)
    with pytest.warns(StdistWarning, match="genes-unsupported"):
        found, status = corrected(
            adata, "soft", lam_rule="reference", marginal="reference", main_effects="drop",
            skip_unaffected=False, fit_cells=None,
        )  # fmt: skip
    kept = (status == "rate unsupported, kept").to_numpy()
    np.testing.assert_array_equal(found[:, kept], adata.X.toarray()[:, kept])
