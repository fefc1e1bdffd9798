from __future__ import annotations

import itertools
from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.spatial.distance import jensenshannon

from stdist.kernels.imputation_scores import (
    gene_scores,
    jensen_shannon_sums,
    matched_js,
    merge_score_sums,
    nonzero_precision,
    score_sums,
)


@pytest.fixture(scope="module")
def golden(shared):
    return np.load(shared / "fixtures" / "siid" / "eval_metrics.npz")


def toy(seed=0, n_cells=200, n_genes=5):
    rng = np.random.default_rng(seed)
    means = rng.gamma(0.5, 2.0, (n_cells, n_genes))
    return rng.poisson(means).astype(float), means * rng.gamma(5.0, 0.2, means.shape)


def in_blocks(cuts, *matrices):
    edges = [0, *sorted(set(cuts)), len(matrices[0])]
    return [[m[a:b] for m in matrices] for a, b in itertools.pairwise(edges) if b > a]


@pytest.mark.parametrize("length", [500, 64, 1])
def test_scores_are_those_of_the_reference(golden, length):
    """Gene 3 has no count, the means of gene 4 are constant, those of gene 5 are the counts."""
    tiles = in_blocks(range(0, 500, length), golden["obs"], golden["est"])
    scores = gene_scores(reduce(merge_score_sums, [score_sums(*tile) for tile in tiles]))
    close = {"rtol": 1e-10, "atol": 1e-12}
    np.testing.assert_allclose(scores["r2"], golden["r2"], **close)
    np.testing.assert_allclose(scores["pearson"], golden["pcc"], **close)
    np.testing.assert_allclose(scores["ssim"], golden["ssim"], **close)
    # sqrt(2 - 2 r) of equal columns has half the digits
    np.testing.assert_allclose(scores["rmse"], -golden["rmse"], rtol=1e-10, atol=1e-7)
    np.testing.assert_allclose(scores["symmetrised_kl"], -golden["js"], **close)


def test_precision_of_non_zeros_is_that_of_the_reference(golden):
    found = nonzero_precision(golden["obs"], golden["est"])
    np.testing.assert_allclose(found, golden["nnz"], rtol=1e-12)


def test_of_equal_means_the_last_cells_are_taken():
    counts = np.repeat([[0], [1]], [60, 40], axis=0)
    assert nonzero_precision(counts, np.ones((100, 1))) == 1.0
    assert nonzero_precision(counts[::-1], np.arange(100)[:, None] // 50) == 0.0
    assert nonzero_precision(np.zeros((5, 1)), np.ones((5, 1))) == 0.0


def test_matched_divergence_is_that_of_the_fixture(golden):
    js, type_of_factor = matched_js(golden["prop_true"], golden["prop_est"])
    np.testing.assert_array_equal(type_of_factor, golden["perm_est_col_to_true"])
    np.testing.assert_allclose(js, golden["js_matched_per_spot"], rtol=0, atol=1e-11)


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), cuts=st.lists(st.integers(1, 199), max_size=8))
def test_any_blocks_give_the_same_scores(seed, cuts):
    counts, means = toy(seed)
    whole = gene_scores(score_sums(counts, means))
    tiles = in_blocks(cuts, counts, means)
    merged = reduce(merge_score_sums, [score_sums(sparse.csr_matrix(x), y) for x, y in tiles])
    for name, score in gene_scores(merged).items():
        np.testing.assert_allclose(score, whole[name], rtol=1e-9, atol=1e-12, err_msg=name)


def test_scores_follow_their_definitions():
    counts, means = toy(1)
    scores = gene_scores(score_sums(counts, means))
    for g in range(counts.shape[1]):
        x, y = counts[:, g], means[:, g]
        assert scores["pearson"][g] == pytest.approx(np.corrcoef(x, y)[0, 1], rel=1e-12)
        z = (x - x.mean()) / x.std() - (y - y.mean()) / y.std()
        assert scores["rmse"][g] == pytest.approx(np.sqrt((z**2).mean()), rel=1e-10)
        p, q = (x + 1e-10) / (x + 1e-10).sum(), (y + 1e-10) / (y + 1e-10).sum()
        kl = ((p - q) * np.log(p / q)).sum() / 2
        assert scores["symmetrised_kl"][g] == pytest.approx(kl, rel=1e-10)


def test_constants_far_from_zero_are_constants():
    """Sums of squares would see a standard deviation of about 0.01 here."""
    rng = np.random.default_rng(0)
    counts, means = rng.poisson(2.0, (1000, 1)).astype(float), np.full((1000, 1), 1e6 + 0.1)
    tiles = in_blocks(range(0, 1000, 100), counts, means)
    scores = gene_scores(reduce(merge_score_sums, [score_sums(*tile) for tile in tiles]))
    assert scores["r2"] == scores["ssim"] == 0.0
    assert scores["rmse"] == 1.0
    means[::2] += 1e-3
    assert gene_scores(score_sums(counts, means))["r2"] > 0


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), cuts=st.lists(st.integers(1, 199), max_size=8))
def test_jensen_shannon_adds_over_blocks(seed, cuts):
    counts, means = toy(seed)
    counts[:, 0] = 0
    totals = counts.sum(axis=0), means.sum(axis=0)
    parts = [jensen_shannon_sums(*tile, *totals) for tile in in_blocks(cuts, counts, means)]
    found = np.sum(parts, axis=0)
    assert np.isnan(found[0])
    expected = jensenshannon(counts[:, 1:], means[:, 1:], axis=0) ** 2
    np.testing.assert_allclose(found[1:], expected, rtol=1e-9)


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), n_types=st.integers(1, 5), n_factors=st.integers(1, 5))
def test_the_matching_is_the_best_of_all(seed, n_types, n_factors):
    rng = np.random.default_rng(seed)
    true, estimated = rng.random((30, n_types)), rng.random((30, n_factors))
    estimated[:, 0] += 3 * true[:, -1]
    estimated[7], true[9] = 0.0, np.nan
    js, type_of_factor = matched_js(true, estimated)
    assert np.isnan(js[[7, 9]]).all()

    kept = np.delete(np.arange(30), [7, 9])
    n = max(n_types, n_factors)
    p, q = np.zeros((28, n)), np.zeros((28, n))
    p[:, :n_types] = true[kept] / true[kept].sum(axis=1, keepdims=True)
    q[:, :n_factors] = estimated[kept] / estimated[kept].sum(axis=1, keepdims=True)
    orders = [list(order) for order in itertools.permutations(range(n))]
    best = min(orders, key=lambda order: ((p[:, order] - q) ** 2).sum())
    # which of the absent types a factor has is open
    expected = [t if t < n_types else -1 for t in best[:n_factors]]
    assert type_of_factor.tolist() == expected
    np.testing.assert_allclose(js[kept], jensenshannon(p[:, best], q, axis=1) ** 2, atol=1e-12)


def test_equal_proportions_do_not_diverge():
    true = np.random.default_rng(2).dirichlet(np.full(6, 0.2), 500)
    order = [3, 0, 5, 1, 4, 2]
    js, type_of_factor = matched_js(true, true[:, order] * 7.0)
    assert type_of_factor.tolist() == order
    assert js.min() >= 0.0
    assert js.max() < 1e-15
    opposite, _ = matched_js([[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]])
    np.testing.assert_allclose(opposite, [0.0, np.log(2)])
