"""Crescendo's options: the released program as one setting, and every switch by itself."""

from __future__ import annotations

import shutil
import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.special import logsumexp

import stdist
from stdist.kernels.keyed_random import stream_key
from stdist.kernels.poisson_match import match_labels, rates
from stdist.kernels.poisson_match_reference import reference_bounds
from stdist.kernels.poisson_means import soft_means
from stdist.kernels.poisson_ridge import RidgeFit
from stdist.methods.crescendo import CrescendoSpec, crescendo
from stdist.methods.crescendo.marginal import target_coefficients
from stdist.methods.crescendo.rows import Rows
from stdist.methods.crescendo.sample import group_clusters
from stdist.store import InputError, StdistWarning, Store

N, G, K = 3000, 12, 3


@pytest.fixture(scope="module")
def cohort():
    """Counts with effects of batch, condition and age; labels, soft clusters, a depth per cell."""
    rng = np.random.default_rng(11)
    batch, label, condition = rng.integers(0, 3, N), rng.integers(0, K, N), rng.integers(0, 2, N)
    age = rng.uniform(20, 80, N)
    rate = rng.lognormal(-2.5, 1, (K, G))
    log_mean = rng.normal(0, 0.6, (3, G))[batch] + np.outer(condition, np.full(G, 0.8))
    log_mean += np.outer((age - 50) / 60, np.full(G, 1.0))
    depth = rng.lognormal(3, 0.4, N)
    counts = rng.poisson(depth[:, None] * rate[label] * np.exp(log_mean))
    adata = anndata.AnnData(sparse.csr_matrix(counts.astype(np.float32)))
    adata.obs_names = [f"cell{i}" for i in range(N)]
    adata.var_names = [f"gene{i}" for i in range(G)]
    adata.obs["slide"] = pd.Categorical([f"s{b}" for b in batch])
    adata.obs["type"] = pd.Categorical([f"t{k}" for k in label])
    adata.obs["condition"] = pd.Categorical(np.where(condition, "sick", "well"))
    adata.obs["smoker"] = rng.random(N) < 0.3
    adata.obs["age"] = age
    adata.obs["wanted"] = rng.uniform(10, 40, N)
    adata.obs["depth"] = depth
    soft = rng.dirichlet(np.full(K, 0.3), N) * 0.4
    soft[np.arange(N), label] += 0.6
    adata.obsm["soft"] = soft
    adata.obsm["hot"] = np.eye(K)[label]
    return adata


def run(adata, clusters="type", **options):
    adata = adata.copy()
    crescendo(adata, batch_key="slide", clusters=clusters, **options)
    return adata


def layer(adata, name="crescendo"):
    values = adata.layers[name]
    return values.toarray() if sparse.issparse(values) else np.asarray(values)


def effects(adata):
    return adata.uns["crescendo"]["coefficients"]


# ---- the released program -------------------------------------------------------------------


def released(shared, name):
    case = np.load(shared / "fixtures" / "crescendo" / f"{name}.npz")
    adata = anndata.AnnData(case["counts"])
    adata.var_names = case["genes"]
    adata.obs_names = [f"cell{i}" for i in range(len(case["numi"]))]
    adata.obs["slide"], adata.obs["numi"] = pd.Categorical(case["batch"]), case["numi"]
    adata.obsm["R"] = case["R"].T.copy()
    return case, adata


def flat(found):
    """Coefficients in the order of the fixtures, (n_columns, n_genes)."""
    interaction = found["interaction"].values
    return np.concatenate(
        [
            found["intercept"].values[None],
            found["cluster_effect"].values,
            interaction.reshape(-1, interaction.shape[-1]),
            found["batch_effect"].values,
        ]
    )


@pytest.mark.parametrize("name", ["sim_a", "real_a"])
def test_compat_reproduces_the_released_program(shared, name):
    case, adata = released(shared, name)
    result = run(adata, "R", depth_key="numi", compat="reference")
    found = effects(result)
    assert np.abs(flat(found) - case["betas_tight"]).max() <= 1e-4
    np.testing.assert_allclose(found["lam"], np.maximum(case["lambda_last"], 1.0), rtol=1e-10)
    assert result.uns["crescendo"]["target_depth"] == np.median(case["numi"])
    mean = np.median(case["numi"]) * np.exp(
        found["intercept"].values + adata.obsm["R"] @ found["target_coefficients"].values
    )
    np.testing.assert_allclose(mean, case["expected_marginalized"], rtol=1e-4)

    out = layer(result)
    inside = (out >= np.floor(case["qmin_final"])) & (out <= np.floor(case["qmax_final"] + 1))
    assert inside.mean() >= 0.9998  # far tails, where the released root finding ends at zero
    # the expected draw of every entry, from the bounds and the target mean
    spread = out - case["draw_reference"]
    error = spread.std(axis=0, ddof=1) / np.sqrt(len(out))
    assert (np.abs(spread.mean(axis=0)) <= 4 * error).all()
    again = run(adata, "R", depth_key="numi", compat="reference", rng=7)
    changed = (layer(again) != out).mean()
    assert abs(changed - (case["draw_reference"] != out).mean()) < 0.01


@pytest.mark.parametrize("name", ["sim_a", "real_a"])
def test_marginal_means_equal_the_released_program_given_its_coefficients(shared, name):
    case, adata = released(shared, name)
    weights = adata.obsm["R"]
    n, k, g = *weights.shape, adata.n_vars
    b = adata.obs["slide"].cat.categories.size
    intercept, cluster, interaction, main = np.split(case["betas_tight"], np.cumsum([1, k, k * b]))
    ones = np.ones(g)
    fitted = RidgeFit(
        intercept[0], cluster, main, interaction.reshape(b, k, g), ones > 0, ones.astype(int), ones
    )
    spec = CrescendoSpec("slide", "R", compat="reference")
    batch, depth = adata.obs["slide"].cat.codes.to_numpy(), case["numi"]
    rows = Rows(adata.X, weights, batch, depth, np.ones((b, k)), saturated=np.zeros)
    base, coefficients = target_coefficients(fitted, rows, spec)
    depth = np.full(n, np.median(case["numi"]))
    means = soft_means(weights, np.zeros(n, int), depth, base[None], coefficients[None])
    np.testing.assert_allclose(means, case["expected_marginalized"], rtol=1e-6)


def test_compat_is_one_setting(cohort):
    whole = run(cohort, "soft", compat="reference")
    single = run(
        cohort,
        "soft",
        lam_rule="reference",
        marginal="reference",
        match="reference",
        source_offset="final",
        target_offset="median",
        main_effects="drop",
        skip_unaffected=False,
        fit_cells=None,
        min_cells=50,
    )
    np.testing.assert_array_equal(layer(whole), layer(single))
    some = run(cohort, "soft", compat="reference", prop=0.1)
    assert (layer(some) != layer(whole)).any()
    explicit = CrescendoSpec("a", "b", compat="reference", prop=0.1)
    assert (explicit.share, explicit.min_cells) == (0.1, 50)
    assert CrescendoSpec(**explicit.to_parameters()) == explicit
    for option in (
        {"lam": 1.0},
        {"lam_rule": "exact"},
        {"source_offset": "observed", "target_offset": 100},
        {"min_cells": 20},
        {"fit_cells": 500},
        {"prop": 0.5},
        {"keep": ["condition"]},
        {"interval": 0.9},
        {"skip_absent": True},
        {"prior_sd": 2.0},
    ):
        with pytest.raises(InputError) as caught:
            CrescendoSpec("slide", "soft", compat="reference", **option)
        assert caught.value.code == "parameter-conflict"
        assert caught.value.remedy


def test_genes_that_the_released_marginal_raises_without_bound_are_left_alone(cohort):
    """A cluster of almost no mass in a batch: its coefficient is free, its variance explodes."""
    adata = cohort.copy()
    soft = adata.obsm["soft"].copy()
    soft[(adata.obs["slide"] == "s1").to_numpy(), 2] *= 1e-6
    adata.obsm["soft"] = soft / soft.sum(axis=1, keepdims=True)
    with pytest.warns(StdistWarning, match="genes-unsupported"):
        out = run(adata, "soft", compat="reference")
    kept = (out.var["crescendo_status"] == "rate unsupported, kept").to_numpy()
    assert kept.any()
    np.testing.assert_array_equal(layer(out)[:, kept], cohort.X.toarray()[:, kept])
    with pytest.raises(InputError) as caught:
        run(adata, "soft", lam=1e-9, fit_cells=None, marginal="arithmetic")
    assert caught.value.code == "marginal-unsupported"
    default = run(adata, "soft")
    assert (default.var["crescendo_status"] == "corrected").all()


# ---- penalties ------------------------------------------------------------------------------


def test_lambda_as_number_and_by_mean(shared):
    case, adata = released(shared, "sim_a")
    found = run(adata, "R", depth_key="numi", lam=0.01, fit_cells=None)
    expected = case["betas_lambda0p01_tight"]
    assert np.abs(flat(effects(found)) - expected).max() <= 5e-3  # glmnet started cold
    by_mean = run(adata, "R", depth_key="numi", lam="0.2*mean", fit_cells=None)
    mean = case["counts"].mean(axis=0)
    np.testing.assert_allclose(effects(by_mean)["lam"], 0.2 * mean, rtol=1e-12)
    same = run(adata, "R", depth_key="numi", lam=f"{0.2 * mean[2]}", fit_cells=None)
    np.testing.assert_allclose(
        flat(effects(same))[:, 2], flat(effects(by_mean))[:, 2], rtol=0, atol=1e-9
    )
    default = run(adata, "R", depth_key="numi", lam="mean", fit_cells=None)
    np.testing.assert_allclose(effects(default)["lam"], 0.05 * mean, rtol=1e-12)


def test_labels_have_the_penalty_of_their_cells(cohort):
    """Sums of labelled cells give what the cells give, for every rule of lambda."""
    for options in (
        {"lam": 0.5},
        {"lam": "mean"},
        {"lam": 0.5, "penalize": "batch"},
        {"lam_rule": "exact"},
        {"lam_rule": "reference"},
    ):
        labels = effects(run(cohort, "type", **options))
        cells = effects(run(cohort, "hot", fit_cells=None, merge_threshold=2.0, **options))
        np.testing.assert_allclose(labels["lam"], cells["lam"], rtol=1e-9)
        np.testing.assert_allclose(flat(labels), flat(cells), rtol=0, atol=1e-7)


def test_batch_penalty_leaves_clusters_alone(cohort):
    both = effects(run(cohort, "type", lam=1e5))
    batch = effects(run(cohort, "type", lam=1e5, penalize="batch"))
    assert np.abs(both["cluster_effect"]).max() < 1e-3
    for found in (both, batch):
        assert np.abs(found["batch_effect"]).max() < 1e-3
        assert np.abs(found["interaction"]).max() < 1e-3
    counts = cohort.X.toarray()
    rate = np.stack([counts[cohort.obsm["hot"][:, k] > 0].sum(axis=0) for k in range(K)])
    rate = np.log(rate / (rate.sum(axis=1, keepdims=True)))
    found = batch["cluster_effect"].values
    assert np.corrcoef((found - found.mean(0)).ravel(), (rate - rate.mean(0)).ravel())[0, 1] > 0.95


# ---- covariates to keep -----------------------------------------------------------------------


def group_rates(adata, counts, *keys):
    frame = pd.DataFrame(counts / adata.obs["depth"].to_numpy()[:, None])
    return frame.groupby([adata.obs[key].to_numpy() for key in keys]).mean()


def test_kept_effect_stays_and_batch_effect_goes(cohort):
    out = run(cohort, "type", depth_key="depth", keep=["condition"], prior_sd=10.0)
    effect = effects(out)["kept_effect"].values
    assert list(effects(out)["kept"].values) == ["condition=sick", "condition=well"]
    np.testing.assert_allclose(effect[0] - effect[1], 0.8, atol=0.25)
    before, after = (
        np.log(group_rates(out, counts, "condition")) for counts in (cohort.X.toarray(), layer(out))
    )
    np.testing.assert_allclose(after.loc["sick"] - after.loc["well"], 0.8, atol=0.2)
    change = (before.loc["sick"] - before.loc["well"]) - (after.loc["sick"] - after.loc["well"])
    assert np.abs(change).max() < 0.1
    between = [
        np.log(group_rates(out, counts, "slide")).std(axis=0).median()
        for counts in (cohort.X.toarray(), layer(out))
    ]
    assert between[1] < 0.25 * between[0]


@pytest.mark.parametrize("interactions", [False, True])
def test_labels_with_kept_labels_are_fitted_to_all_cells(cohort, interactions):
    options = {"keep": ["condition", "smoker"], "keep_interactions": interactions}
    options |= {"quasi_poisson": False}  # dispersions differ: of strata, and of cells
    exact = run(cohort, "type", **options)
    cells = run(cohort, "hot", fit_cells=None, merge_threshold=2.0, **options)
    one, other = effects(exact), effects(cells)
    names = ["intercept", "cluster_effect", "batch_effect", "interaction", "kept_effect"]
    for name in names + ["kept_interaction"] * interactions:
        np.testing.assert_allclose(one[name], other[name], rtol=0, atol=1e-7)
    assert ("kept_interaction" in one) == interactions
    assert (layer(exact) != layer(cells)).sum() <= 2


def test_kept_numbers_stay_for_labels_and_soft_clusters(cohort):
    for clusters in ("type", "soft"):
        out = run(cohort, clusters, depth_key="depth", keep=["age", "condition"], fit_cells=None)
        found = effects(out)
        assert list(found["kept"].values) == ["age", "condition=sick", "condition=well"]
        np.testing.assert_allclose(found["kept_effect"][0], 1.0, atol=0.3)  # over the whole range
        old = (cohort.obs["age"] > 50).to_numpy()
        ratio = [
            np.log(counts[old].sum(axis=0) / counts[~old].sum(axis=0))
            for counts in (cohort.X.toarray(), layer(out))
        ]
        assert np.abs(ratio[0] - ratio[1]).max() < 0.15
    left = layer(run(cohort, "soft", depth_key="depth", fit_cells=None))
    assert (left != layer(out)).any()


def test_merged_clusters_share_kept_interactions(cohort):
    adata = cohort.copy()
    adata.obsm["double"] = np.column_stack([0.25 * adata.obsm["soft"][:, :1], adata.obsm["soft"]])
    adata.obsm["double"][:, 1] *= 0.75
    options = {"keep": ["condition"], "keep_interactions": True, "fit_cells": None}
    one, two = (effects(run(adata, c, **options)) for c in ("soft", "double"))
    np.testing.assert_allclose(
        two["kept_interaction"][:, [0, 2, 3]], one["kept_interaction"], atol=1e-7
    )
    np.testing.assert_array_equal(two["kept_interaction"][:, 0], two["kept_interaction"][:, 1])


def test_names_mean_nothing(cohort):
    adata = cohort.copy()
    names = {"s0": "disease: none", "s1": "disease: severe", "s2": "disease: unknown"}
    adata.obs["slide"] = adata.obs["slide"].cat.rename_categories(names)
    np.testing.assert_array_equal(layer(run(adata)), layer(run(cohort)))


# ---- depth ------------------------------------------------------------------------------------


def test_depths_of_source_and_target_reach_the_matching(cohort):
    depth, wanted = cohort.obs["depth"].to_numpy(), cohort.obs["wanted"].to_numpy()
    codes = [cohort.obs[name].cat.codes.to_numpy() for name in ("type", "slide")]
    counts = cohort.X.toarray().astype(np.uint32)
    keys = [stream_key(0, "crescendo match", name) for name in cohort.var_names]
    for source_offset, source in (("observed", depth), ("final", wanted)):
        out = run(cohort, depth_key="depth", target_offset="wanted", source_offset=source_offset)
        found = effects(out)
        of_source = rates(
            (found["intercept"] + found["batch_effect"]).transpose("batch", "gene"),
            (found["cluster_effect"] + found["interaction"]).transpose("batch", "cluster", "gene"),
        )
        of_target = rates(found["intercept"], found["target_coefficients"])
        expected = match_labels(
            counts, *codes, source, of_source, of_target, keys, 0, target_depth=wanted
        )
        np.testing.assert_array_equal(layer(out), expected)
    mean = (wanted[:, None] * of_target[codes[0]]).sum(axis=0)
    out = layer(run(cohort, depth_key="depth", target_offset="wanted"))
    assert (np.abs(out.sum(axis=0) - mean) < 0.05 * mean + 5 * np.sqrt(mean)).all()


def test_targets_are_medians_of_all_cells_or_of_a_batch(cohort):
    depth = cohort.X.toarray().sum(axis=1)
    chosen = (cohort.obs["slide"] == "s1").to_numpy()
    for given, median in (("median", np.median(depth)), ("batch:s1", np.median(depth[chosen]))):
        out = run(cohort, target_offset=given)
        assert out.uns["crescendo"]["target_depth"] == median
        for same in (median, str(median)):
            np.testing.assert_array_equal(layer(run(cohort, target_offset=same)), layer(out))


def test_a_batch_without_counts_has_no_depth(cohort):
    adata = cohort.copy()
    counts = adata.X.toarray()
    counts[(adata.obs["slide"] == "s1").to_numpy()] = 0
    adata.X = sparse.csr_matrix(counts)
    adata.obs["slide"] = adata.obs["slide"].cat.add_categories(["ghost"])
    for name in ("ghost", "s1"):
        with pytest.raises(InputError, match=f"no cell of batch '{name}' has counts") as caught:
            run(adata, target_offset=f"batch:{name}")
        assert caught.value.code == "target-empty"


def test_imputation_has_room_and_empty_cells_stay_empty(cohort):
    adata = cohort.copy()
    counts = adata.X.toarray()
    counts[5] = 0
    adata.X = np.asarray(counts, np.uint8)
    with pytest.warns(StdistWarning, match="cells-empty"):
        out = layer(run(adata, target_offset=1_000_000))
    assert out.max() > 2**16
    assert not out[5].any()
    with pytest.warns(StdistWarning, match="cells-empty"):
        out = layer(run(adata, "soft", compat="reference"))
    assert not out[5].any()


# ---- marginal, matching, intervals ------------------------------------------------------------


def interquartile(effects, share):
    """Integral of the quantile function of effects from a quarter to three quarters."""
    found = []
    for own in effects.T:
        order = np.argsort(own)
        end = np.cumsum(share[order])
        level = np.unique([0.25, *np.clip(end, 0.25, 0.75), 0.75])
        quantile = own[order][np.searchsorted(end, (level[1:] + level[:-1]) / 2)]
        found.append(2 * quantile @ np.diff(level))
    return found


def test_main_effects_and_marginals_follow_their_formulas(cohort):
    share = pd.crosstab(cohort.obs["slide"], cohort.obs["type"]).to_numpy()
    share = (share / share.sum(axis=0))[:, :, None]
    kept, least = [], 1 - 0.3 / len(share)
    for main_effects in ("drop", "fold"):
        for marginal in ("interquartile", "arithmetic", "reference"):
            found = effects(run(cohort, main_effects=main_effects, marginal=marginal))
            gamma = found["interaction"].values
            if main_effects == "fold":
                gamma = gamma + found["batch_effect"].values[:, None]
            mean = {
                "arithmetic": logsumexp(gamma, axis=0, b=share),
                "reference": gamma.mean(axis=0) + gamma.var(axis=0, ddof=1) / 2,
                "interquartile": np.array(
                    [interquartile(gamma[:, k], share[:, k, 0]) for k in range(gamma.shape[1])]
                ),
            }[marginal]
            expected = found["cluster_effect"].values + mean
            if marginal == "interquartile":
                batch, label = (cohort.obs[name].cat.codes for name in ("slide", "type"))
                depth = np.asarray(cohort.X.sum(axis=1)).ravel()
                source = found["cluster_effect"].values + found["interaction"].values
                source = source + found["batch_effect"].values[:, None]
                before = depth @ np.exp(source)[batch, label]
                ratio = depth @ np.exp(expected)[label] / before
                expected = expected + np.log(np.clip(ratio, least, 1 / least) / ratio)
                kept.append(ratio)
            np.testing.assert_allclose(found["target_coefficients"], expected, rtol=1e-9)
    # some genes of this cohort are beyond the bounds, most are not
    assert 0.05 < np.mean((np.array(kept) < least) | (np.array(kept) > 1 / least)) < 0.5


def test_totals_are_kept_in_the_data_not_in_the_sample(cohort):
    """A small batch has more than its share of the sample."""
    few = (cohort.obs["slide"] == "s2") & (np.arange(N) % 10 > 0)
    adata = cohort[~few].copy()
    found = effects(run(adata, "soft", fit_cells=300, min_cells=80, skip_unaffected=False))
    weights, batch = adata.obsm["soft"], adata.obs["slide"].cat.codes.to_numpy()
    source = found["cluster_effect"].values + found["interaction"].values
    means = np.exp(np.einsum("nk,nkg->ng", weights, source[batch]))
    depth = np.asarray(adata.X.sum(axis=1)).ravel()
    before = depth @ (means * np.exp(found["batch_effect"].values)[batch])
    ratio = depth @ np.exp(weights @ found["target_coefficients"].values) / before
    least = 1 - 0.3 / adata.obs["slide"].nunique()
    assert ((ratio > least / 1.03) & (ratio < 1.03 / least)).all()
    assert (ratio < least * 1.03).any() or (ratio > 1 / least / 1.03).any()


@pytest.mark.parametrize("clusters", ["type", "soft"])
def test_reference_matching_stays_in_its_bounds(cohort, clusters):
    out = run(cohort, clusters, match="reference", depth_key="depth")
    found, weights = effects(out), cohort.obsm["hot" if clusters == "type" else "soft"]
    batch, depth = cohort.obs["slide"].cat.codes.to_numpy(), cohort.obs["depth"].to_numpy()
    source = soft_means(
        weights,
        batch,
        depth,
        (found["intercept"] + found["batch_effect"]).transpose("batch", "gene").values,
        (found["cluster_effect"] + found["interaction"])
        .transpose("batch", "cluster", "gene")
        .values,
    )
    target = soft_means(
        weights,
        0 * batch,
        depth,
        found["intercept"].values[None],
        found["target_coefficients"].values[None],
    )
    counts = cohort.X.toarray()
    some = np.s_[::7]
    lower, upper = reference_bounds(counts[some], source[some], target[some])
    values = layer(out)[some]
    assert ((values >= np.floor(lower)) & (values <= np.floor(upper + 1))).all()
    assert (layer(out)[counts > 0] > 0).all()


@pytest.mark.parametrize("clusters", ["type", "soft"])
def test_outliers_are_kept_in_bounds_unless_asked_otherwise(cohort, clusters):
    adata = cohort.copy()
    counts = adata.X.toarray()
    counts[:30, 2] = 300  # far beyond the target distribution
    adata.X = sparse.csr_matrix(counts)
    options = {"depth_key": "depth", "skip_unaffected": False}
    capped, free = (layer(run(adata, clusters, cap_outliers=c, **options)) for c in (True, False))
    raised = free[:30, 2] > 300
    assert raised.any()
    assert (capped[:30, 2][raised] == 300).all()
    cut = capped != free
    assert cut.mean() < 0.01
    assert ((counts <= capped) & (capped < free))[cut].all()


def test_intervals_hold_their_mass_over_draws(cohort):
    first = run(cohort, "type", interval=0.8)
    low, high = layer(first, "crescendo_lower"), layer(first, "crescendo_upper")
    # the fit has no sample: only the matching is drawn anew
    draws = [layer(run(cohort, "type", rng=seed)) for seed in range(8)]
    np.testing.assert_array_equal(draws[0], layer(first))
    assert np.mean([(draw < low).mean() for draw in draws]) <= 0.1 + 0.002
    assert np.mean([(draw > high).mean() for draw in draws]) <= 0.1 + 0.002
    assert (low < high).any()

    soft = run(cohort, "soft", interval=0.8)
    low, high = layer(soft, "crescendo_lower"), layer(soft, "crescendo_upper")
    np.testing.assert_array_equal(layer(soft), layer(run(cohort, "soft")))
    assert 0.8 <= ((low <= layer(soft)) & (layer(soft) <= high)).mean() < 1


# ---- genes and cells that are special -----------------------------------------------------------


def test_genes_absent_in_a_batch_are_skipped_if_asked(cohort):
    adata = cohort.copy()
    counts = adata.X.toarray()
    counts[(adata.obs["slide"] == "s1").to_numpy(), 3] = 0
    adata.X = sparse.csr_matrix(counts)
    for clusters in ("type", "soft"):
        with pytest.warns(StdistWarning, match="genes-absent"):
            skipped, kept = (run(adata, clusters, skip_absent=skip) for skip in (True, False))
        np.testing.assert_array_equal(layer(skipped)[:, 3], counts[:, 3])
        assert (layer(kept)[:, 3] != counts[:, 3]).any()
        others = np.arange(G) != 3
        np.testing.assert_array_equal(layer(skipped)[:, others], layer(kept)[:, others])
        assert skipped.var["crescendo_status"]["gene3"] == "absent in a batch, kept"
        assert kept.var["crescendo_status"]["gene3"] == "absent in a batch"


@pytest.mark.filterwarnings("ignore:.*cells-empty")
@pytest.mark.parametrize("clusters", ["one", "soft"])
def test_cells_without_counts_do_not_weigh(clusters):
    """Rates .01 and .04 in two slides; a third slide, and half of the first, are empty."""
    rng = np.random.default_rng(5)
    batch = np.repeat([0, 0, 1, 2], 1500)
    rate = np.where(batch == 0, 0.01, 0.04)[:, None] * np.ones(4)
    counts = rng.poisson(200 * rate)
    counts[batch == 2] = 0
    counts[:1500] = 0
    adata = anndata.AnnData(counts.astype(np.float32))
    adata.obs["slide"] = np.array(list("abc"))[batch]
    adata.obs["one"] = "all"
    adata.obsm["soft"] = np.ones((len(batch), 1))
    adata.obs["depth"] = np.where(counts.any(axis=1), 200.0, 0.0)
    options = {"depth_key": "depth", "prior_sd": 10.0, "skip_absent": True}
    with pytest.warns(StdistWarning, match=r"batch-empty\] no cell in batch c has counts"):
        out = run(adata, clusters, **options)
    found = effects(out)
    target = np.exp(found["intercept"] + found["target_coefficients"][0]).values
    np.testing.assert_allclose(target, 0.85 * 0.025, rtol=0.03)
    assert (out.var["crescendo_status"] == "corrected").all()


def test_share_of_cells_to_fit_to():
    cells = np.array([[1000.0, 40.0], [90.0, 3000.0]])
    total = {
        "n": np.int64(cells.sum()),
        "mass": cells,
        "sums": cells.sum(axis=0),
        "gram": np.diag(cells.sum(axis=0)),
        "cells": cells,
        "gene_counts": np.ones((2, 1)),
        "largest_rate": np.ones(1),
        "empty_cells": 0,
    }
    options = {"merge_threshold": 0.99, "fit_cells": None, "min_cells": 50}
    tenth = group_clusters(total, **options, share=0.1)
    np.testing.assert_array_equal(tenth["wanted"], [100, 40, 50, 300])
    every = group_clusters(total, **options, share=1.0)
    np.testing.assert_array_equal(every["wanted"], cells.ravel())


@pytest.mark.filterwarnings("ignore::stdist.store.StdistWarning")
@pytest.mark.parametrize("options", [{}, {"compat": "reference"}, {"lam": "mean"}])
def test_odd_data_have_results(cohort, options):
    """One cluster, an empty cluster, an empty batch, genes and cells without counts."""
    adata = cohort[:600].copy()
    counts = adata.X.toarray()
    counts[:, 4] = 0
    counts[17] = 0
    adata.X = sparse.csr_matrix(counts)
    adata.obs["slide"] = adata.obs["slide"].cat.add_categories(["ghost"])
    adata.obs["type"] = adata.obs["type"].cat.add_categories(["nothing"])
    adata.obs["one"] = "all"
    adata.obsm["one"] = np.ones((600, 1))
    adata.obsm["gap"] = np.insert(adata.obsm["soft"], 1, 0.0, axis=1)
    for clusters in ("type", "one", "gap"):
        out = layer(run(adata, clusters, **options))
        assert not out[:, 4].any()
        assert not out[17].any()
        assert out.max() < 50 * counts.max()
    one = anndata.AnnData(adata.X, obs=adata.obs[["slide"]], var=adata.var)
    one.obsm["clusters"] = adata.obsm["one"]
    np.testing.assert_array_equal(layer(run(one, "clusters", **options)).shape, (600, G))


def test_one_batch_has_all_layers(cohort):
    adata = cohort.copy()
    adata.obs["slide"] = "only"
    with pytest.warns(StdistWarning, match="one-batch"):
        crescendo(adata, batch_key="slide", clusters="type", interval=0.9)
    for name in ("crescendo", "crescendo_lower", "crescendo_upper"):
        np.testing.assert_array_equal(layer(adata, name), cohort.X.toarray())


# ---- where the data are, and what is refused ----------------------------------------------------

EVERYTHING = [
    ("type", {"keep": ["condition", "smoker"], "keep_interactions": True, "interval": 0.9}),
    ("type", {"keep": ["age"], "target_offset": "wanted", "fit_cells": 1000}),
    ("soft", {"compat": "reference", "prop": 0.1}),
    ("soft", {"keep": ["age", "condition"], "target_offset": "batch:s1", "interval": 0.5}),
]


@pytest.fixture(scope="module", params=["dense", "csr"])
def store(cohort, request, tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "cohort.zarr"
    stdist.io.write(cohort, path, kind=request.param)
    return path


@pytest.mark.parametrize("number", range(len(EVERYTHING)))
def test_stores_of_any_block_give_the_same_numbers(cohort, store, tmp_path, number):
    clusters, options = EVERYTHING[number]
    expected = run(cohort, clusters, **options)
    path = shutil.copytree(store, tmp_path / "cohort.zarr")
    data = stdist.io.open(path) if number % 2 else path
    block_length = 2048 if number % 2 else 1024
    crescendo(data, batch_key="slide", clusters=clusters, block_length=block_length, **options)
    names = [name for name in expected.layers if name]
    assert len(names) == (3 if "interval" in options else 1)
    for name in names:
        rows = Store(path).element(f"layers/{name}").read(0, N)
        rows = rows.toarray() if sparse.issparse(rows) else rows
        np.testing.assert_array_equal(rows, layer(expected, name))
        if number % 2:
            assert name in data.layers


@pytest.mark.parametrize(("clusters", "options"), EVERYTHING)
def test_a_gene_does_not_depend_on_the_others(cohort, clusters, options):
    whole = run(cohort, clusters, **options)
    some = run(cohort, clusters, genes=["gene8", "gene3"], **options)
    for name in some.layers:
        np.testing.assert_array_equal(layer(some, name)[:, [3, 8]], layer(whole, name)[:, [3, 8]])
    expected, found = (effects(adata)["target_coefficients"].values for adata in (whole, some))
    np.testing.assert_array_equal(found, expected[:, [3, 8]])


def missing_condition(adata):
    adata.obs.loc["cell1500", "condition"] = None
    return {"keep": ["condition"]}


def missing_condition_of_soft(adata):
    return missing_condition(adata) | {"clusters": "soft"}


def missing_label_of_sample(adata):
    adata.obs.loc["cell1500", "type"] = None
    return {"keep": ["age"]}


def missing_age(adata):
    adata.obs.loc["cell1500", "age"] = np.nan
    return {"keep": ["age"]}


def one_condition(adata):
    adata.obs["condition"] = "well"
    return {"keep": ["condition"]}


def zero_target(adata):
    adata.obs.loc["cell1500", "wanted"] = 0.0
    return {"target_offset": "wanted"}


BAD = {
    "labels-missing": [missing_condition, missing_condition_of_soft, missing_label_of_sample],
    "kept-nonfinite": [missing_age],
    "kept-constant": [one_condition],
    "target-depth": [zero_target],
    "target-unknown": [
        lambda adata: {"target_offset": "nothing"},
        lambda adata: {"target_offset": "batch:s9"},
    ],
    "element-unknown": [lambda adata: {"keep": ["nothing"]}],
    "column-not-numeric": [lambda adata: {"target_offset": "condition"}],
    "parameter-range": [
        lambda adata, one=one: one
        for one in (
            {"target_offset": 0}, {"target_offset": "-5"}, {"lam": 0}, {"lam": "x*mean"},
            {"lam": True}, {"lam_rule": "best"}, {"penalize": "none"}, {"match": "exact"},
            {"prop": 0.0}, {"prop": 1.5}, {"interval": 1.0}, {"interval": "wide"},
            {"keep": "condition"}, {"compat": "paper"}, {"target_offset": float("nan")},
            {"fit_cells": 0}, {"min_cells": None},
        )
    ],
    "parameter-conflict": [
        lambda adata, one=one: one
        for one in (
            {"lam": 1.0, "lam_rule": "exact"}, {"penalize": "batch"}, {"lam": 1.0, "prior_sd": 2.0},
            {"prop": 0.1, "fit_cells": 10}, {"keep_interactions": True}, {"keep": ["slide"]},
            {"keep": ["type"]}, {"interval": 0.9, "match": "reference"},
        )
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("code", "change"), [(code, change) for code, changes in BAD.items() for change in changes]
)
def test_bad_requests_are_refused_with_place_and_remedy(cohort, code, change):
    adata = cohort.copy()
    options = {"clusters": "type"} | change(adata)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError) as caught:
            crescendo(adata, batch_key="slide", **options)
    assert caught.value.code == code
    assert caught.value.place
    assert caught.value.remedy
    assert "crescendo" not in adata.layers
