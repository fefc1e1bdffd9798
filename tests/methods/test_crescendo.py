"""Crescendo: the same numbers everywhere, defined behaviour on odd data, quality on real data."""

from __future__ import annotations

import shutil
import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import stdist
from stdist.methods.crescendo import crescendo
from stdist.methods.crescendo.sample import group_clusters, trim_sample
from stdist.methods.crescendo.tiles import Keys, drawn_labels, sample_cells, sum_clusters
from stdist.store import InputError, StdistWarning, Store

N_CELLS, N_GENES, N_TYPES = 5000, 40, 3


@pytest.fixture(scope="module")
def cohort():
    """Counts with a known batch effect, soft clusters and labels."""
    rng = np.random.default_rng(3)
    batch = rng.integers(0, 3, N_CELLS)
    label = rng.integers(0, N_TYPES, N_CELLS)
    rate = rng.lognormal(-3, 1, (N_TYPES, N_GENES))
    effect = rng.normal(0, 0.5, (3, N_GENES))
    depth = rng.lognormal(3, 0.4, N_CELLS)
    mean = depth[:, None] * rate[label] * np.exp(effect[batch])
    adata = anndata.AnnData(sparse.csr_matrix(rng.poisson(mean).astype(np.float32)))
    adata.obs_names = [f"cell{i}" for i in range(N_CELLS)]
    adata.var_names = [f"gene{i}" for i in range(N_GENES)]
    adata.obs["slide"] = pd.Categorical([f"s{b}" for b in batch])
    adata.obs["type"] = pd.Categorical([f"t{k}" for k in label])
    soft = rng.dirichlet(np.full(N_TYPES, 0.3), N_CELLS) * 0.4
    soft[np.arange(N_CELLS), label] += 0.6
    adata.obsm["soft"] = soft.astype(np.float32)
    return adata


def corrected(adata, **options):
    adata = adata.copy()
    crescendo(adata, batch_key="slide", **options)
    layer = adata.layers["crescendo"]
    return (layer.toarray() if sparse.issparse(layer) else np.asarray(layer)), adata


@pytest.fixture(scope="module")
def cohort_store(cohort, tmp_path_factory):
    path = tmp_path_factory.mktemp("cohort") / "cohort.zarr"
    stdist.io.write(cohort, path)
    return path


@pytest.mark.parametrize("clusters", ["type", "soft"])
def test_store_lazy_and_memory_give_the_same_numbers(cohort, cohort_store, tmp_path, clusters):
    options = {"clusters": clusters, "fit_cells": 2000, "min_cells": 50}
    expected, result = corrected(cohort, **options)
    assert (expected != cohort.X.toarray()).any()

    path = shutil.copytree(cohort_store, tmp_path / "path.zarr")
    crescendo(path, batch_key="slide", block_length=1024, **options)
    on_disk = Store(path).element("layers/crescendo").read(0, N_CELLS)
    np.testing.assert_array_equal(on_disk, expected)

    path = shutil.copytree(cohort_store, tmp_path / "lazy.zarr")
    lazy = stdist.io.open(path)
    crescendo(lazy, batch_key="slide", block_length=4096, **options)
    np.testing.assert_array_equal(lazy.layers["crescendo"].compute(), expected)

    subset = stdist.io.open(path)[:]
    assert stdist.io.store_of(subset[:3000]) is None
    for name, value in result.uns["crescendo"]["coefficients"].items():
        found = Store(path).uns("crescendo")["coefficients"][name]
        np.testing.assert_array_equal(found, value.values)


def test_wide_csr_store_stays_csr(cohort, tmp_path):
    path = tmp_path / "csr.zarr"
    stdist.io.write(cohort, path, kind="csr")
    crescendo(path, batch_key="slide", clusters="type", block_length=2048)
    rows = Store(path).element("layers/crescendo").read(0, N_CELLS)
    assert sparse.issparse(rows)
    np.testing.assert_array_equal(rows.toarray(), corrected(cohort, clusters="type")[0])


def test_result_of_a_gene_does_not_depend_on_the_others(cohort):
    whole, _ = corrected(cohort, clusters="soft")
    genes = ["gene31", "gene2", "gene17"]
    some, result = corrected(cohort, clusters="soft", genes=genes)
    columns = [31, 2, 17]
    np.testing.assert_array_equal(some[:, columns], whole[:, columns])
    others = np.setdiff1d(np.arange(N_GENES), columns)
    np.testing.assert_array_equal(some[:, others], cohort.X.toarray()[:, others])
    assert (result.var["crescendo_status"] == "corrected").sum() == 3


def test_labels_equal_one_hot_soft_clusters(cohort):
    adata = cohort.copy()
    adata.obsm["hot"] = np.eye(N_TYPES)[adata.obs["type"].cat.codes]
    soft, _ = corrected(adata, clusters="hot", merge_threshold=2.0)
    labelled, _ = corrected(adata, clusters="type")
    assert (soft != labelled).sum() <= 2  # the fits agree to 1e-9: a draw may fall in between


def test_known_batch_effect_is_removed():
    """Sums of corrected counts per (batch, type, gene) follow the batch-free truth."""
    rng = np.random.default_rng(8)
    n, genes = 30_000, 12
    batch, label = rng.integers(0, 2, n), rng.integers(0, 2, n)
    rate = rng.uniform(0.2, 3.0, (2, genes))
    effect = np.array([np.full(genes, 0.4), np.full(genes, -0.4)])
    counts = rng.poisson(rate[label] * np.exp(effect[batch]))
    adata = anndata.AnnData(counts.astype(np.int32))
    adata.obs["slide"], adata.obs["type"] = batch.astype(str), label.astype(str)
    adata.obs["depth"] = np.ones(n)
    out, _ = corrected(adata, clusters="type", depth_key="depth", prior_sd=10.0)
    group = [np.flatnonzero((batch == b) & (label == k)) for k in (0, 1) for b in (0, 1)]
    mean = np.array([out[cells].mean(axis=0) for cells in group]).reshape(2, 2, genes)
    error = np.sqrt(2 * mean[:, 0] / (n / 4) * 3)
    assert (np.abs(mean[:, 0] - mean[:, 1]) < 4 * error).all()
    raw = np.array([counts[cells].mean(axis=0) for cells in group]).reshape(2, 2, genes)
    assert (np.abs(raw[:, 0] - raw[:, 1]) > 10 * error).all()


def test_sample_is_stratified_keyed_and_exact():
    rng = np.random.default_rng(0)
    n, k = 20_000, 4
    weights = rng.dirichlet(np.full(k, 0.5), n)
    batch = (rng.random(n) < 0.9).astype(np.int32)
    counts = rng.poisson(1.0, (n, 3)).astype(np.uint16)
    rows = (7 * 1024, 7 * 1024 + n)
    inputs = {"counts": counts, "batch": batch, "weights": weights}
    total = sum_clusters(rows, **inputs, n_batches=2, seed=5, keys=Keys("b", "c"))
    groups = group_clusters(total, merge_threshold=2.0, fit_cells=4000, min_cells=300)
    found = sample_cells(rows, **inputs, groups=groups, seed=5)
    sample = trim_sample(found, groups=groups)

    label = drawn_labels(rows, weights, 5)
    alive = counts.sum(axis=1) > 0
    cells = np.array(
        [[((batch == b) & (label == c) & alive).sum() for c in range(k)] for b in (0, 1)]
    )
    share = 4000 / cells.sum()
    wanted = np.minimum(cells, np.maximum(300, np.ceil(share * cells)))
    np.testing.assert_array_equal(groups["wanted"].reshape(2, k), wanted)
    assert len(sample["depth"]) == wanted.sum()
    by_batch = np.bincount(sample["batch"], minlength=2)
    np.testing.assert_array_equal(by_batch, wanted.sum(axis=1))
    dense = sparse.csc_matrix(
        (sample["data"], sample["indices"], sample["indptr"]), shape=(len(sample["depth"]), 3)
    ).toarray()
    np.testing.assert_array_equal(dense.sum(axis=1), sample["depth"])


def test_drawn_labels_follow_the_weights():
    weights = np.tile([0.5, 0.3, 0.2], (40_000, 1))
    share = np.bincount(drawn_labels((0, 40_000), weights, 1), minlength=3) / 40_000
    assert np.abs(share - [0.5, 0.3, 0.2]).max() < 4 * np.sqrt(0.25 / 40_000)


def test_half_precision_clusters(cohort, tmp_path):
    adata = cohort.copy()
    adata.obsm["soft"] = adata.obsm["soft"].astype(np.float16)
    adata.obsm["same"] = adata.obsm["soft"].astype(np.float64)
    half, _ = corrected(adata, clusters="soft")
    double, _ = corrected(adata, clusters="same")
    np.testing.assert_array_equal(half, double)


def test_backed_data_are_sent_to_convert(cohort, tmp_path):
    cohort.write_h5ad(tmp_path / "cohort.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cohort.h5ad", backed="r")
    with pytest.raises(InputError, match="stdist convert"):
        crescendo(backed, batch_key="slide", clusters="type")
    backed.file.close()


def test_one_batch_returns_a_copy_and_says_so(cohort):
    adata = cohort.copy()
    adata.obs["slide"] = "only"
    with pytest.warns(StdistWarning, match=r"one-batch"):
        crescendo(adata, batch_key="slide", clusters="type")
    assert (adata.layers["crescendo"] != adata.X).nnz == 0
    assert adata.layers["crescendo"] is not adata.X


def test_empty_genes_cells_and_batches_pass_through_and_are_named(cohort):
    adata = cohort.copy()
    counts = adata.X.toarray()
    counts[:, 4] = 0
    counts[17] = 0
    counts[(adata.obs["slide"] == "s1").to_numpy(), 9] = 0
    adata.X = sparse.csr_matrix(counts)
    adata.obs["slide"] = adata.obs["slide"].cat.add_categories(["ghost"])
    with pytest.warns(StdistWarning) as caught:
        crescendo(adata, batch_key="slide", clusters="soft")
    text = " ".join(str(w.message) for w in caught)
    for code in ("genes-empty", "genes-absent", "cells-empty", "batch-empty"):
        assert code in text
    out = adata.layers["crescendo"].toarray()
    assert not out[:, 4].any()
    assert not out[17].any()
    status = adata.var["crescendo_status"]
    assert status["gene4"] == "no counts"
    assert status["gene9"] == "absent in a batch"


def negative(adata):
    adata.X.data[100] = -1
    return {}


def fractional(adata):
    adata.X.data[100] = 0.5
    return {}


def nonfinite(adata):
    adata.X.data[100] = np.nan
    return {}


def missing_labels(adata):
    adata.obs.loc["cell2000", "type"] = None
    return {}


def missing_batch(adata):
    adata.obs.loc["cell2000", "slide"] = None
    return {}


def negative_clusters(adata):
    adata.obsm["soft"][2000] = [1.5, -0.5, 0.0]
    return {"clusters": "soft"}


def clusters_not_one(adata):
    adata.obsm["soft"][2000] *= 0.9
    return {"clusters": "soft"}


def nan_clusters(adata):
    adata.obsm["soft"][2000, 1] = np.nan
    return {"clusters": "soft"}


def flat_clusters(adata):
    adata.obsm["flat"] = np.asarray(adata.obsm["soft"])[:, :1].copy()
    adata.obsm["cube"] = np.zeros((N_CELLS, 2, 2))
    return {"clusters": "cube"}


def duplicated_genes(adata):
    adata.var_names = ["gene0", "gene0", *adata.var_names[2:]]
    return {}


def duplicated_cells(adata):
    adata.obs_names = ["cell1", *adata.obs_names[1:]]
    return {}


def nan_depth(adata):
    adata.obs["depth"] = np.where(np.arange(N_CELLS) == 2000, np.nan, 5.0)
    return {"depth_key": "depth"}


def negative_depth(adata):
    adata.obs["depth"] = np.where(np.arange(N_CELLS) == 2000, -1.0, 5.0)
    return {"depth_key": "depth"}


def zero_depth(adata):
    adata.obs["depth"] = np.where(np.arange(N_CELLS) == 2000, 0.0, 5.0)
    return {"depth_key": "depth"}


def sparse_clusters(adata):
    adata.obsm["sparse"] = sparse.csr_matrix(adata.obsm["soft"])
    return {"clusters": "sparse"}


def existing_layer(adata):
    adata.layers["kept"] = adata.X.copy()
    return {"key_added": "kept"}


BAD = {
    "depth-nonfinite": nan_depth,
    "depth-negative": negative_depth,
    "depth-zero": zero_depth,
    "clusters-sparse": sparse_clusters,
    "output-exists": existing_layer,
    "key-invalid": lambda adata: {"key_added": "a/b"},
    "column-not-numeric": lambda adata: {"depth_key": "type"},
    "counts-negative": negative,
    "counts-fractional": fractional,
    "counts-nonfinite": nonfinite,
    "labels-missing": missing_labels,
    "clusters-negative": negative_clusters,
    "clusters-sum": clusters_not_one,
    "clusters-nonfinite": nan_clusters,
    "clusters-shape": flat_clusters,
    "var-names-duplicated": duplicated_genes,
    "obs-names-duplicated": duplicated_cells,
    "clusters-unknown": lambda adata: {"clusters": "nothing"},
    "element-unknown": lambda adata: {"batch_key": "nothing"},
    "gene-absent": lambda adata: {"genes": ["gene1", "Actb"]},
    "parameter-range": lambda adata: {"prior_sd": 0.0},
}


@pytest.mark.filterwarnings("ignore:(Variable|Observation) names are not unique:UserWarning")
@pytest.mark.parametrize("code", BAD)
def test_bad_input_is_refused_with_thing_place_and_remedy(cohort, code):
    adata = cohort.copy()
    options = {"batch_key": "slide", "clusters": "type"} | BAD[code](adata)
    with pytest.raises(InputError) as caught:
        crescendo(adata, **options)
    assert caught.value.code == code
    assert caught.value.exit_code == 2
    assert caught.value.place
    assert caught.value.remedy
    assert "crescendo" not in adata.layers


@pytest.mark.parametrize(
    "options", [{"genes": []}, {"genes": "gene1"}, {"rng": None}, {"prior_sd": "a"}]
)
def test_wrong_parameters_are_refused(cohort, options):
    with pytest.raises(InputError) as caught:
        crescendo(cohort.copy(), batch_key="slide", clusters="type", **options)
    assert caught.value.code == "parameter-range"


def test_one_batch_is_checked_like_several(cohort):
    adata = cohort.copy()
    adata.obs["slide"] = pd.Categorical(["only"] * N_CELLS, categories=["only", "ghost"])
    with pytest.warns(StdistWarning, match=r"one-batch"):
        crescendo(adata, batch_key="slide", clusters="type")
    assert (adata.var["crescendo_status"] == "one batch").all()
    for options in ({"clusters": "nope"}, {"clusters": "type", "genes": ["nope"]}):
        with pytest.raises(InputError):
            crescendo(adata, batch_key="slide", overwrite=True, **options)


def test_lazy_data_that_were_edited_are_refused(cohort_store, tmp_path):
    path = shutil.copytree(cohort_store, tmp_path / "lazy.zarr")
    for what in ("slide", "soft", "new"):
        lazy = stdist.io.open(path)
        if what == "soft":
            lazy.obsm["soft"] = np.asarray(lazy.obsm["soft"])[::-1]
        else:
            lazy.obs[what] = lazy.obs["slide"].to_numpy()[::-1]
        batch_key = "new" if what == "new" else "slide"
        with pytest.raises(InputError) as caught:
            crescendo(lazy, batch_key=batch_key, clusters="soft")
        assert caught.value.code == "data-changed"


def test_moved_store_resumes_where_it_is(cohort_store, tmp_path, monkeypatch):
    from stdist import graph
    from stdist.methods.registry import build
    from stdist.store import RunStopped, writer

    options = {"batch_key": "slide", "clusters": "type", "block_length": 1024}
    here, whole = (shutil.copytree(cohort_store, tmp_path / name) for name in ("here", "whole"))
    crescendo(whole, **options)
    real, calls = writer.record_file, []

    def failing(*args, **kwargs):
        calls.append(args)
        if len(calls) > 3:
            raise OSError(28, "No space left on device")
        return real(*args, **kwargs)

    monkeypatch.setattr(writer, "record_file", failing)
    with pytest.raises(RunStopped):
        crescendo(here, **options)
    monkeypatch.undo()
    moved = here.rename(tmp_path / "moved")
    graph.resume(moved, build, graph.InProcess())
    one, other = (Store(p).element("layers/crescendo").read(0, N_CELLS) for p in (moved, whole))
    assert (one != other).sum() == 0


def test_wrong_row_is_named_and_the_store_left_clean(cohort, tmp_path):
    adata = cohort.copy()
    missing_batch(adata)
    path = tmp_path / "bad.zarr"
    stdist.io.write(adata, path)
    with pytest.raises(InputError, match=r"row 2000") as caught:
        crescendo(path, batch_key="slide", clusters="type", block_length=1024)
    assert caught.value.code == "labels-missing"
    assert not (path / "layers" / "crescendo").exists()
    assert not stdist.graph.unfinished(path)
    with pytest.warns(StdistWarning):  # each type is a batch: nothing can be tested
        crescendo(path, batch_key="type", clusters="type", block_length=1024)


def within_group_correlation(before, after, depth, groups):
    """Correlation of log-normalised counts, centred within (type, batch), per gene."""
    scale = np.median(depth) / depth[:, None]
    centred = []
    for counts in (before, after):
        values = np.log1p(counts * scale)
        sums = np.zeros((groups.max() + 1, values.shape[1]))
        np.add.at(sums, groups, values)
        centred.append(values - (sums / np.bincount(groups)[:, None])[groups])
    x, z = centred
    return (x * z).sum(0) / np.sqrt((x**2).sum(0) * (z**2).sum(0))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "least_share"),
    [("starmap_visp_2rep", 0.94), ("pbmc_ifn_kang", 0.97), ("mousebrain_st_hippo1to4", 0.98)],
)
def test_default_keeps_what_the_prototype_reached_on_real_data(shared, name, least_share):
    """Zone share, within-group correlation and gene ratio together (fixtures, baselines)."""
    adata = anndata.read_h5ad(shared / "data" / f"{name}.h5ad")
    known = np.load(shared / "fixtures" / "crescendo" / "clusters_open.npz")
    names = [text.decode() for text in known[f"{name}/label_names"].astype("S")]
    adata.obs["label"] = pd.Categorical.from_codes(known[f"{name}/labels"], names)
    adata.obsm["R"] = known[f"{name}/R"].T.astype(np.float64)
    genes = [text.decode() for text in known[f"{name}/genes"].astype("S")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StdistWarning)
        crescendo(adata, batch_key="batch", clusters="R", genes=genes)
    table = stdist.metrics.bvr_cvr(adata, batch_key="batch", label_key="label").loc[genes]
    eligible = ~table["no_batch_variance"]
    share = table["in_zone"][eligible].mean()
    ratio = table["counts_after"] / table["counts_before"]
    chosen = adata[:, genes]
    groups = chosen.obs.groupby(["label", "batch"], observed=True).ngroup().to_numpy()
    r = within_group_correlation(
        chosen.X.toarray(),
        chosen.layers["crescendo"].toarray(),
        np.asarray(adata.X.sum(axis=1)).ravel(),
        groups,
    )
    print(f"{name}: share {share:.3f} of {eligible.sum()}, r {np.nanmedian(r):.3f}, gene "
          f" ratio {ratio.min():.2f} to {ratio.max():.2f}, mean {ratio.mean():.2f}")  # fmt: skip
    assert share >= least_share - 0.015  # one draw moves one or two genes of 150
    assert np.nanmedian(r) >= 0.85
    assert ratio.max() < 2
