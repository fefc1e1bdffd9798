from __future__ import annotations

import doctest
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from stdist.kernels import poisson_ridge
from stdist.kernels.cluster_merge import apply_merge, merge_groups, weight_sums
from stdist.kernels.poisson_marginal import (
    exceeding_marginals,
    interquartile_marginal,
    log_factor_to_keep_totals,
    marginal,
    reference_marginal,
)
from stdist.kernels.poisson_ridge import Penalty, RidgeFit, fit, fit_strata

FIXTURES = Path(__file__).resolve().parents[3] / "shared/fixtures/crescendo"
needs_fixtures = pytest.mark.skipif(not FIXTURES.exists(), reason="needs ../shared/fixtures")
COEFFICIENTS = ("intercept", "cluster", "batch", "interaction")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Use one BLAS thread, as a worker does: threads only wait for each other on small systems."""
    with threadpool_limits(1):
        yield


def simulate(
    seed: int, n_cells: int = 300, n_genes: int = 5, n_clusters: int = 4, n_batches: int = 3
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Draw counts (cells, genes), weights, batch codes and depths."""
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.full(n_clusters, 0.3), n_cells)
    batch = rng.integers(0, n_batches, n_cells)
    depth = rng.gamma(4, 500, n_cells)
    effects = rng.normal(0, 1, (n_clusters, n_genes))
    shifts = rng.normal(0, 0.7, (n_batches, n_clusters, n_genes))
    rates = np.exp(
        rng.normal(-7, 1.5, n_genes) + np.einsum("nk,nkg->ng", weights, effects + shifts[batch])
    )
    return rng.poisson(depth[:, None] * rates), weights, batch, depth


def dense_design(weights: np.ndarray, batch: np.ndarray, n_batches: int) -> np.ndarray:
    """Columns intercept, clusters, interactions (clusters fastest), batches."""
    member = (batch[:, None] == np.arange(n_batches)).astype(float)
    products = (member[:, :, None] * weights[:, None, :]).reshape(len(batch), -1)
    return np.column_stack([np.ones(len(batch)), weights, products, member])


def dense_penalty(penalty: Penalty) -> np.ndarray:
    return np.concatenate([[0.0], penalty.cluster, penalty.interaction.ravel(), penalty.batch])


def flat(result: RidgeFit) -> np.ndarray:
    """Coefficients in the order of ``dense_design``, (n_columns, n_genes)."""
    n_genes = len(result.intercept)
    interaction = result.interaction.reshape(-1, n_genes)
    return np.concatenate([result.intercept[None], result.cluster, interaction, result.batch])


def assert_same(first: RidgeFit, second: RidgeFit, atol: float) -> None:
    for name in COEFFICIENTS:
        np.testing.assert_allclose(getattr(first, name), getattr(second, name), rtol=0, atol=atol)


def one_hot_problem(
    seed: int, n_labels: int = 5, n_batches: int = 3, n_genes: int = 4
) -> tuple[np.ndarray, ...]:
    """Cells with one label each (counts, weights, batch, depth) and their sums by stratum."""
    rng = np.random.default_rng(seed)
    counts, _, batch, depth = simulate(seed, n_genes=n_genes, n_batches=n_batches)
    labels = rng.integers(0, n_labels, len(batch))
    summed = np.zeros((n_batches, n_labels, n_genes))
    np.add.at(summed, (batch, labels), counts)
    total = np.zeros((n_batches, n_labels))
    np.add.at(total, (batch, labels), depth)
    return counts, np.eye(n_labels)[labels], batch, depth, summed, total


# ---- the released program -------------------------------------------------------------------


def load_case(name: str) -> tuple[Any, np.ndarray, np.ndarray, int]:
    case = np.load(FIXTURES / f"{name}.npz")
    levels, batch = np.unique(case["batch"], return_inverse=True)
    return case, case["R"].T, batch, len(levels)


@needs_fixtures
@pytest.mark.parametrize("name", ["sim_a", "real_a"])
def test_single_small_lambda_equals_glmnet(name: str) -> None:
    case, weights, batch, n_batches = load_case(name)
    expected = case["betas_lambda0p01_tight"]
    fitted_by_glmnet = ~np.isnan(expected).any(axis=0)
    assert fitted_by_glmnet.sum() >= len(fitted_by_glmnet) - 1
    penalty = Penalty.standardized(weights, batch, n_batches)
    result = fit(case["counts"], weights, batch, case["numi"], penalty, 0.01)
    assert result.converged.all()
    assert np.abs(flat(result) - expected)[:, fitted_by_glmnet].max() <= 5e-3


@needs_fixtures
@pytest.mark.parametrize("name", ["sim_a", "real_a"])
def test_reference_marginal_equals_released_program(name: str) -> None:
    case, weights, _, n_batches = load_case(name)
    betas = case["betas_tight"]
    n_clusters, n_genes = weights.shape[1], betas.shape[1]
    cuts = np.cumsum([1, n_clusters, n_clusters * n_batches])
    intercept, cluster, interaction, main = np.split(betas, cuts)
    ones = np.ones(n_genes)
    result = RidgeFit(
        intercept[0],
        cluster,
        main,
        interaction.reshape(n_batches, n_clusters, n_genes),
        converged=ones.astype(bool),
        iterations=ones.astype(int),
        gradient_norm=0 * ones,
    )
    base, coefficients = reference_marginal(result)
    expected = cluster + case["mu"] + case["sigma"] ** 2 / 2
    np.testing.assert_allclose(coefficients, expected, rtol=1e-6)
    means = np.median(case["numi"]) * np.exp(base + weights @ coefficients)
    np.testing.assert_allclose(means, case["expected_marginalized"], rtol=1e-6)


@needs_fixtures
def test_default_keeps_counts_bounded_on_real_data() -> None:
    anndata = pytest.importorskip("anndata")
    pandas = pytest.importorskip("pandas")
    name = "pbmc_ifn_kang"  # 37 of these genes explode in the released program
    clusters = np.load(FIXTURES / "clusters_open.npz")
    data = anndata.read_h5ad(FIXTURES.parents[1] / f"data/{name}.h5ad")
    genes = clusters[f"{name}/genes"].astype(str)
    depth = np.asarray(data.X.sum(axis=1), dtype=np.float64).ravel()
    counts = data[:, genes].X.toarray()
    weights = clusters[f"{name}/R"].T
    weights = apply_merge(weights, merge_groups(*weight_sums(weights)))
    levels, batch = np.unique(data.obs["batch"].astype(str), return_inverse=True)
    penalty = Penalty.random_effects(weights.shape[1], len(levels))
    result = fit(counts, weights, batch, depth, penalty)
    assert result.converged.all()
    mass = np.stack([weights[batch == b].sum(axis=0) for b in range(len(levels))])
    intercept, coefficients = marginal(result, mass)
    largest = (counts / depth[:, None]).max(axis=0)
    assert exceeding_marginals(intercept, coefficients, weights, largest).size == 0

    means = depth[:, None] * np.exp(intercept + weights @ coefficients)
    table = pandas.read_csv(FIXTURES / "baselines_open.csv.gz")
    same = (table.dataset == name) & (table.method == "pit_prior1_lme_obs")
    table = table[same & (table.offset_variant == "observed")].set_index("gene").loc[genes]
    ratio = means.sum(axis=0) / counts.sum(axis=0)
    recorded = (table.mean_post / table.mean_pre).to_numpy()
    # the recorded means are one random draw, so single genes carry its noise
    assert np.median(np.abs(ratio / recorded - 1)) < 0.02
    assert abs(means.sum() / counts.sum() - table.mean_post.sum() / table.mean_pre.sum()) < 0.02
    assert ratio.max() < 1.1


# ---- optimality -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["random_effects", "standardized"])
def test_optimum_equals_general_purpose_minimiser(kind: str) -> None:
    counts, weights, batch, depth = simulate(1, n_cells=150, n_clusters=3, n_batches=2)
    if kind == "random_effects":
        penalty = Penalty.random_effects(3, 2, tau=0.7)
    else:
        penalty = Penalty.standardized(weights, batch, 2).scaled(0.1)
    design, ridge = dense_design(weights, batch, 2), dense_penalty(penalty)
    result = flat(fit(counts, weights, batch, depth, penalty))

    for gene, y in enumerate(counts.T):

        def objective(beta: np.ndarray, y: np.ndarray = y) -> float:
            eta = design @ beta
            return float((depth * np.exp(eta) - y * eta).sum() + ridge @ beta**2 / 2)

        def gradient(beta: np.ndarray, y: np.ndarray = y) -> np.ndarray:
            return design.T @ (depth * np.exp(design @ beta) - y) + ridge * beta

        def hessian(beta: np.ndarray) -> np.ndarray:
            mean = depth * np.exp(design @ beta)
            return (design * mean[:, None]).T @ design + np.diag(ridge)

        start = np.zeros(design.shape[1])
        start[0] = np.log(y.sum() / depth.sum())
        found = minimize(
            objective, start, jac=gradient, hess=hessian, method="trust-exact", tol=1e-9
        )
        np.testing.assert_allclose(result[:, gene], found.x, rtol=0, atol=1e-6)
        assert objective(result[:, gene]) <= found.fun + 1e-9


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    n_clusters=st.integers(1, 7),
    n_batches=st.integers(1, 4),
    tau=st.floats(0.05, 5),
)
def test_gradient_vanishes(seed: int, n_clusters: int, n_batches: int, tau: float) -> None:
    counts, weights, batch, depth = simulate(
        seed, n_cells=80, n_clusters=n_clusters, n_batches=n_batches
    )
    penalty = Penalty.random_effects(n_clusters, n_batches, tau)
    result = fit(counts, weights, batch, depth, penalty)
    assert result.converged.all()
    kept = ~result.without_counts
    coefficients = flat(result)[:, kept]
    design, ridge = dense_design(weights, batch, n_batches), dense_penalty(penalty)
    residual = depth[:, None] * np.exp(design @ coefficients) - counts[:, kept]
    gradient = design.T @ residual + ridge[:, None] * coefficients
    size = 1 + counts.sum(axis=0)[kept]
    assert (np.abs(gradient).max(axis=0) <= 1e-12 * size).all()
    assert (result.gradient_norm[kept] <= 1e-12 * size).all()


def test_large_counts_converge() -> None:
    counts, weights, batch, depth = simulate(2)
    result = fit(counts * 100_000, weights, batch, depth, Penalty.random_effects(4, 3))
    assert result.converged.all()


def test_too_few_iterations_are_reported() -> None:
    counts, weights, batch, depth = simulate(3)
    penalty = Penalty.random_effects(4, 3)
    result = fit(counts, weights, batch, depth, penalty, max_iterations=1)
    assert not result.converged.any()
    assert (result.iterations == 1).all()
    assert (result.gradient_norm > 1e-6).all()


# ---- invariances ----------------------------------------------------------------------------


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000))
def test_order_of_rows_batches_and_clusters_is_irrelevant(seed: int) -> None:
    counts, weights, batch, depth = simulate(seed)
    rng = np.random.default_rng(seed + 1)
    rows, batches, clusters = (rng.permutation(n) for n in (len(batch), 3, 4))
    penalty = Penalty(rng.gamma(2, 1, 4), rng.gamma(2, 1, 3), rng.gamma(2, 1, (3, 4)))
    shuffled = Penalty(
        penalty.cluster[clusters],
        penalty.batch[batches],
        penalty.interaction[np.ix_(batches, clusters)],
    )
    before = fit(counts, weights, batch, depth, penalty)
    after = fit(
        counts[rows],
        weights[rows][:, clusters],
        np.argsort(batches)[batch[rows]],
        depth[rows],
        shuffled,
    )
    kept = ~before.without_counts
    for name, order in (
        ("intercept", ...),
        ("cluster", clusters),
        ("batch", batches),
        ("interaction", np.ix_(batches, clusters)),
    ):
        moved = getattr(before, name)[order]
        difference = getattr(after, name)[..., kept] - moved[..., kept]
        np.testing.assert_allclose(difference, 0.0, atol=1e-8)


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), data=st.data())
def test_gene_does_not_depend_on_other_genes(seed: int, data: st.DataObject) -> None:
    counts, weights, batch, depth = simulate(seed, n_genes=6)
    genes = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=6))
    penalty = Penalty.random_effects(4, 3)
    whole = fit(counts, weights, batch, depth, penalty)
    part = fit(counts[:, genes], weights, batch, depth, penalty)
    for name in (*COEFFICIENTS, "gradient_norm", "iterations"):
        np.testing.assert_array_equal(getattr(whole, name)[..., genes], getattr(part, name))


def test_strata_gene_does_not_depend_on_other_genes() -> None:
    *_, summed, total = one_hot_problem(4, n_genes=7)
    penalty = Penalty.random_effects(5, 3)
    whole = fit_strata(summed, total, penalty)
    part = fit_strata(summed[:, :, [5, 2]], total, penalty)
    for name in (*COEFFICIENTS, "gradient_norm", "iterations"):
        np.testing.assert_array_equal(getattr(whole, name)[..., [5, 2]], getattr(part, name))


@pytest.mark.parametrize("convert", [sparse.csr_array, sparse.csc_array, sparse.csr_matrix])
def test_storage_of_counts_is_irrelevant(convert: Callable[[np.ndarray], Any]) -> None:
    counts, weights, batch, depth = simulate(5)
    penalty = Penalty.random_effects(4, 3)
    dense = fit(counts, weights, batch, depth, penalty)
    stored = fit(convert(counts.astype(np.float32)), weights, batch, depth, penalty)
    for name in COEFFICIENTS:
        np.testing.assert_array_equal(getattr(dense, name), getattr(stored, name))


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), n_labels=st.integers(1, 6), n_batches=st.integers(1, 4))
def test_strata_equal_cells_with_one_label(seed: int, n_labels: int, n_batches: int) -> None:
    counts, weights, batch, depth, summed, total = one_hot_problem(seed, n_labels, n_batches)
    rng = np.random.default_rng(seed)
    shape = (n_batches, n_labels)
    penalty = Penalty(rng.gamma(2, 1, n_labels), rng.gamma(2, 1, n_batches), rng.gamma(2, 1, shape))
    scale = rng.gamma(2, 1, counts.shape[1])
    cells = fit(counts, weights, batch, depth, penalty, scale)
    strata = fit_strata(summed, total, penalty, scale)
    assert strata.converged.all()
    np.testing.assert_array_equal(cells.without_counts, strata.without_counts)
    assert_same(cells, strata, atol=1e-9)


def test_strata_leave_out_the_same_coefficients() -> None:
    counts, weights, batch, depth, summed, total = one_hot_problem(6)
    penalty = Penalty.random_effects(5, 3)
    penalty.cluster[1] = penalty.batch[0] = penalty.interaction[2, 3] = np.inf
    cells = fit(counts, weights, batch, depth, penalty)
    strata = fit_strata(summed, total, penalty)
    assert_same(cells, strata, atol=1e-9)
    for result in (cells, strata):
        assert result.converged.all()
        assert not result.cluster[1].any()
        assert not result.batch[0].any()
        assert not result.interaction[2, 3].any()


# ---- degenerate data ------------------------------------------------------------------------


def test_gene_without_counts_has_mean_zero() -> None:
    counts, weights, batch, depth = simulate(7)
    counts[:, 2] = 0
    result = fit(counts, weights, batch, depth, Penalty.random_effects(4, 3))
    assert result.without_counts.tolist() == [False, False, True, False, False]
    assert result.converged[2]
    assert not flat(result)[1:, 2].any()
    intercept, coefficients = marginal(result, np.ones((3, 4)))
    assert not np.exp(intercept[2] + weights @ coefficients[:, 2]).any()
    assert not np.exp(result.source_intercept[batch, 2]).any()
    largest = (counts / depth[:, None]).max(axis=0)
    assert exceeding_marginals(intercept, coefficients, weights, largest).size == 0
    empty = fit_strata(np.zeros((2, 3, 1)), np.ones((2, 3)), Penalty.random_effects(3, 2))
    assert empty.without_counts.all()


def test_cluster_absent_from_a_batch_has_no_effect_there() -> None:
    counts, weights, batch, depth = simulate(8)
    weights[batch == 1, 2] = 0.0
    for penalty in (Penalty.random_effects(4, 3), Penalty.standardized(weights, batch, 3)):
        result = fit(counts, weights, batch, depth, penalty)
        assert result.converged.all()
        assert not result.interaction[1, 2].any()


def test_gene_absent_from_a_batch_stays_finite() -> None:
    counts, weights, batch, depth = simulate(9)
    counts[batch == 0, 1] = 0
    result = fit(counts, weights, batch, depth, Penalty.random_effects(4, 3))
    assert result.converged.all()
    assert np.isfinite(flat(result)).all()
    assert result.batch[0, 1] < result.batch[1:, 1].min()


def test_batch_without_cells_and_strata_without_cells() -> None:
    counts, weights, batch, depth = simulate(10, n_batches=2)
    three = fit(counts, weights, batch, depth, Penalty.random_effects(4, 3))
    two = fit(counts, weights, batch, depth, Penalty.random_effects(4, 2))
    np.testing.assert_allclose(three.cluster, two.cluster, rtol=0, atol=1e-9)
    assert not three.batch[2].any()
    assert not three.interaction[2].any()

    *_, summed, total = one_hot_problem(10)
    summed[1, 2] = total[1, 2] = 0.0
    strata = fit_strata(summed, total, Penalty.random_effects(5, 3))
    assert strata.converged.all()
    assert not strata.interaction[1, 2].any()


def test_one_cluster_and_one_batch() -> None:
    counts, _, _, depth = simulate(11, n_clusters=1, n_batches=1)
    ones, zeros = np.ones((len(depth), 1)), np.zeros(len(depth), dtype=int)
    pooled = np.log(counts.sum(axis=0) / depth.sum())
    for penalty in (Penalty.random_effects(1, 1), Penalty.standardized(ones, zeros, 1)):
        result = fit(counts, ones, zeros, depth, penalty)
        np.testing.assert_allclose(result.intercept, pooled, rtol=0, atol=1e-8)
        np.testing.assert_allclose(flat(result)[1:], 0.0, atol=1e-8)
    _, coefficients = reference_marginal(result)
    np.testing.assert_array_equal(coefficients, result.cluster + result.interaction[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": np.zeros(300)}, "depth"),
        ({"batch": np.full(300, 3)}, "batch codes"),
        ({"batch": np.zeros(300)}, "int codes"),
        ({"weights": np.full((300, 4), np.nan)}, "weights"),
        ({"weights": np.ones((300, 5))}, "weights has shape"),
        ({"counts": np.full((300, 1), -1.0)}, "counts"),
        ({"counts": np.ones((299, 1))}, "counts has 299 rows"),
    ],
)
def test_invalid_cells_are_refused(change: dict[str, np.ndarray], message: str) -> None:
    names = ("counts", "weights", "batch", "depth")
    arguments: dict[str, Any] = dict(zip(names, simulate(12), strict=True)) | change
    with pytest.raises(ValueError, match=message):
        fit(**arguments, penalty=Penalty.random_effects(4, 3))


def test_invalid_strata_and_penalties_are_refused() -> None:
    penalty = Penalty.random_effects(2, 2)
    with pytest.raises(ValueError, match="without depth"):
        fit_strata(np.ones((2, 2, 1)), np.array([[1.0, 0.0], [1.0, 1.0]]), penalty)
    with pytest.raises(ValueError, match="depth has shape"):
        fit_strata(np.ones((2, 3, 1)), np.ones((2, 3)), penalty)
    with pytest.raises(ValueError, match="positive"):
        Penalty.random_effects(2, 2, cluster=0.0)
    with pytest.raises(ValueError, match="n_batches, n_clusters"):
        Penalty(np.ones(2), np.ones(3), np.ones((2, 3)))


# ---- marginals ------------------------------------------------------------------------------


def test_marginal_is_the_mean_rate_over_the_mass_of_a_cluster() -> None:
    counts, weights, batch, depth = simulate(13)
    result = fit(counts, weights, batch, depth, Penalty.random_effects(4, 3))
    mass = np.stack([weights[batch == b].sum(axis=0) for b in range(3)])
    mass[:, 3] = 0.0
    intercept, coefficients = marginal(result, mass)
    np.testing.assert_array_equal(intercept, result.intercept)
    for k in range(3):
        expected = np.average(np.exp(result.interaction[:, k]), axis=0, weights=mass[:, k])
        np.testing.assert_allclose(
            np.exp(coefficients[k] - result.cluster[k]), expected, rtol=1e-12
        )
    assert np.isfinite(coefficients[3]).all()
    highest = result.cluster + result.interaction.max(axis=0)
    assert (coefficients <= highest + 1e-12).all()
    with pytest.raises(ValueError, match="mass has shape"):
        marginal(result, mass.T)


def with_effects(effects: np.ndarray) -> RidgeFit:
    """Fit of one cluster and one gene with given effects of the batches on it."""
    counts, weights, batch, depth = simulate(13)
    result = fit(counts, weights, batch, depth, Penalty.random_effects(4, 3))
    return replace(result, cluster=np.zeros((1, 1)), interaction=np.asarray(effects)[:, None, None])


def level(effects: list[float], mass: list[float]) -> float:
    """Batch-free coefficient of one cluster and gene."""
    _, found = interquartile_marginal(with_effects(np.array(effects)), np.array(mass)[:, None])
    return float(found[0, 0])


def test_interquartile_marginal_leaves_the_batches_at_the_edges_out() -> None:
    assert level([0.3], [5.0]) == 0.3
    assert level([0.3, 0.3, 0.3], [1.0, 2.0, 5.0]) == pytest.approx(0.3, abs=1e-15)
    # two halves: the plain mean; three thirds: 1/6, 2/3, 1/6; four quarters: the middle two
    assert level([0.2, -0.1], [1.0, 1.0]) == pytest.approx(0.05)
    assert level([0.2, -0.1, 0.1], [2.0, 2.0, 2.0]) == pytest.approx(0.2 / 6 + 0.2 / 3 - 0.1 / 6)
    assert level([0.01, 9.0, 0.02, -0.03], [3.0] * 4) == pytest.approx(0.015)
    assert level([0.0, 0.0, -30.0, 0.0], [1.0] * 4) == 0.0
    # 0.2 of the mass at the edge has no weight, whatever its effect, and none without mass
    assert level([0.0, 0.1, 0.5, 9.0], [4.0, 4.0, 2.0, 0.0]) == pytest.approx(0.07)
    with pytest.raises(ValueError, match="mass has shape"):
        interquartile_marginal(with_effects(np.zeros(3)), np.ones((1, 3)))


def test_totals_are_kept_near_those_of_the_fitted_means() -> None:
    counts, weights, batch, depth = simulate(13)
    result = fit(counts, weights, batch, depth, Penalty.random_effects(4, 3))
    shift = np.array([-1.0, -0.1, 0.0, 0.1, 1.0])
    cells = weights, batch, depth * np.where(batch == 1, 3.0, 1.0)
    source = sum(
        cells[2][batch == b] @ np.exp(s + weights[batch == b] @ c)
        for b, (s, c) in enumerate(
            zip(result.source_intercept, result.source_coefficients, strict=True)
        )
    )
    target = cells[2] @ np.exp(result.intercept + weights @ result.cluster)
    shift -= np.log(target / source)  # the totals are then exp(-1) to exp(1) of the fitted
    given = result.intercept + shift, result.cluster
    factor = np.exp(log_factor_to_keep_totals(*given, result, *cells, 0.85))
    expected = [0.85 * np.e, 1.0, 1.0, 1.0, 1 / 0.85 / np.e]
    np.testing.assert_allclose(factor, expected, rtol=1e-12)
    empty = replace(result, intercept=np.full(5, -np.inf))
    assert not log_factor_to_keep_totals(empty.intercept, given[1], empty, *cells, 0.85).any()
    beyond = np.full_like(given[1], 1e4)
    assert not log_factor_to_keep_totals(given[0], beyond, result, *cells, 0.85).any()


def test_source_parameters_reproduce_the_linear_predictor() -> None:
    counts, weights, batch, depth = simulate(14)
    result = fit(counts, weights, batch, depth, Penalty.random_effects(4, 3))
    direct = dense_design(weights, batch, 3) @ flat(result)
    by_batch = [
        result.source_intercept[b] + w @ result.source_coefficients[b]
        for b, w in zip(batch, weights, strict=True)
    ]
    np.testing.assert_allclose(by_batch, direct, rtol=0, atol=1e-12)


def test_guard_names_gene_and_cluster() -> None:
    intercept = np.array([-5.0, -5.0, -5.0])
    coefficients = np.array([[0.0, 14.0, np.nan], [16.0, 0.0, 0.0]])
    largest = np.exp([-4.0, -4.0, -4.0])
    labels = np.eye(2)
    found = exceeding_marginals(intercept, coefficients, labels, largest)
    assert found.tolist() == [[0, 1], [1, 0], [2, 0]]
    mixed = np.array([[0.5, 0.5]])
    assert exceeding_marginals(intercept, coefficients, mixed, largest).tolist() == [[2, 0]]
    strict = exceeding_marginals(intercept, coefficients, mixed, largest, factor=1.0)
    assert strict.tolist() == [[0, 1], [1, 0], [2, 0]]


def test_examples() -> None:
    result = doctest.testmod(poisson_ridge)
    assert result.attempted > 0
    assert result.failed == 0
