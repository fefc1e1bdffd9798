"""The released rule of lambda: against glmnet's numbers and against a walk along the whole path."""

from __future__ import annotations

import numpy as np
import pytest

from stdist.kernels.lambda_path import (
    FitSums,
    deviance_ratio,
    exact_lambda,
    fit_reference,
    lambda_maximum,
)
from stdist.kernels.poisson_ridge import Penalty, fit


class Problem:
    """Counts (cells, genes), weights, batch codes and depths, with what the rule needs of them."""

    def __init__(self, counts, weights, batch, depth):
        self.counts, self.weights, self.batch, self.depth = counts, weights, batch, depth
        n_batches = batch.max() + 1
        self.penalty = Penalty.standardized(weights, batch, n_batches)
        design = np.column_stack([np.ones(len(batch)), weights])
        own = [batch == b for b in range(n_batches)]
        self.sums = FitSums(
            len(batch),
            np.stack([design[o].T @ counts[o] for o in own]),
            np.stack([design[o].T @ depth[o] for o in own]),
        )
        ratio = np.where(counts > 0, counts / depth[:, None], 1.0)
        self.saturated = (counts * np.log(ratio)).sum(axis=0)

    def fit_at(self, genes, lambdas):
        return fit(
            self.counts[:, genes], self.weights, self.batch, self.depth, self.penalty, lambdas
        )

    def predictor(self, coefficients):
        """Log rates of the cells, (n_cells, n_genes), from coefficients as of ``flat``."""
        b, k = self.penalty.interaction.shape
        intercept, cluster, interaction, batch = np.split(coefficients, np.cumsum([1, k, b * k]))
        of_batch = interaction.reshape(b, k, -1)[self.batch]
        own = np.einsum("nk,nkg->ng", self.weights, cluster + of_batch)
        return intercept + own + batch[self.batch]

    def reference(self):
        return fit_reference(self.fit_at, self.sums, self.saturated, self.penalty)


def flat(result):
    n_genes = len(result.intercept)
    interaction = result.interaction.reshape(-1, n_genes)
    return np.concatenate([result.intercept[None], result.cluster, interaction, result.batch])


@pytest.mark.parametrize("name", ["sim_a", "real_a"])
def test_fit_equals_tight_glmnet(shared, name):
    case = np.load(shared / "fixtures" / "crescendo" / f"{name}.npz")
    batch = np.unique(case["batch"], return_inverse=True)[1]
    problem = Problem(case["counts"].astype(float), case["R"].T, batch, case["numi"])
    maximum = lambda_maximum(problem.sums, problem.penalty)
    np.testing.assert_allclose(maximum, case["lambda_max"], rtol=1e-10)
    result, lambdas = problem.reference()
    assert result.converged.all()
    np.testing.assert_allclose(lambdas, np.maximum(case["lambda_last"], 1.0), rtol=1e-10)
    assert np.abs(flat(result) - case["betas_tight"]).max() <= 1e-4
    assert np.abs(flat(result) - case["betas_default"]).max() <= 5e-2
    expected = np.log(case["expected_full_observed"] / case["numi"][:, None])
    np.testing.assert_allclose(problem.predictor(flat(result)), expected, rtol=0, atol=1e-4)
    released = problem.predictor(case["betas_default"])
    assert np.abs(problem.predictor(flat(result)) - released).max() <= 1.2e-2
    exact = problem.fit_at(np.arange(len(maximum)), exact_lambda(problem.sums, problem.penalty))
    assert 1e-8 < np.abs(flat(exact) - flat(result)).max() <= 1e-3

    genes = np.arange(len(maximum))
    last = problem.fit_at(genes, case["lambda_last"])
    ratio = deviance_ratio(last, problem.sums, problem.saturated)
    np.testing.assert_allclose(ratio, case["devratio_last"], atol=1e-4)


def walk(problem, gene):
    """Lambda and coefficients by fitting all 100 values of the path, step by step."""
    maximum = lambda_maximum(problem.sums, problem.penalty)[gene]
    path = maximum * problem.sums.smallest() ** (np.arange(100) / 99)
    y, depth = problem.counts[:, gene], problem.depth
    null = y.sum() / depth.sum() * depth
    terms = np.where(y > 0, y * np.log(np.where(y > 0, y, 1.0) / null), 0.0)
    deviance = 2 * (terms - (y - null)).sum()
    fits, ratios = [], []
    for index, lam in enumerate(path):
        found = flat(problem.fit_at(np.array([gene]), np.array([lam])))[:, 0]
        if index == 0:
            found = np.append(np.log(y.sum() / depth.sum()), 0.0 * found[1:])
        mean = depth * np.exp(problem.predictor(found[:, None])[:, 0])
        left = 2 * (np.where(y > 0, y * np.log(np.where(y > 0, y, 1.0) / mean), 0.0) - (y - mean))
        fits.append(found)
        ratios.append(1 - left.sum() / deviance)
        if index >= 4 and (ratios[-1] > 0.999 or ratios[-1] - ratios[-2] < 1e-5 * ratios[-1]):
            break
    path = path[: len(fits)]
    if path[-1] >= 1:
        return path[-1], fits[-1], len(fits)
    low = int((path > 1).sum())
    if low == 0:
        return path[0], fits[0], len(fits)
    share = (1 - path[low]) / (path[low - 1] - path[low])
    return 1.0, share * fits[low - 1] + (1 - share) * fits[low], len(fits)


def test_early_ends_and_far_ends_equal_the_whole_path():
    rng = np.random.default_rng(5)
    n = 300
    batch = rng.integers(0, 2, n)
    weights = rng.dirichlet(np.full(3, 0.4), n)
    depth = rng.gamma(4, 500, n)
    effect = np.array([[0.9, -0.6, 0.1], [-0.4, 0.8, -1.0]])
    eta = (weights * effect[batch]).sum(axis=1)
    clean = np.round(depth * 20 * np.exp(0.1 * eta))  # no noise: the deviance is soon explained
    small = rng.poisson(depth * 200 * np.exp(0.002 * eta))  # gains vanish early
    rare = rng.poisson(depth * 1e-4 * np.exp(0.1 * eta))  # of the null model, nearly
    usual = rng.poisson(depth * 1e-2 * np.exp(eta))
    problem = Problem(
        np.column_stack([clean, small, rare, usual, np.zeros(n)]).astype(float),
        weights, batch, depth,
    )  # fmt: skip
    problem.counts[:, 2] = 0
    problem.counts[:3, 2] = 1
    problem = Problem(problem.counts, weights, batch, depth)
    result, lambdas = problem.reference()
    lengths = []
    for gene in range(4):
        lam, expected, length = walk(problem, gene)
        lengths.append(length)
        assert lambdas[gene] == pytest.approx(lam, rel=1e-9), gene
        np.testing.assert_allclose(flat(result)[:, gene], expected, atol=1e-7)
    assert lengths[0] < 100
    assert lengths[1] < 100
    assert lambdas[0] > 1
    assert lambdas[1] > 1
    assert result.without_counts.tolist() == [False] * 4 + [True]
    assert not flat(result)[1:, 4].any()


def test_tiny_gradients_give_the_null_model():
    rng = np.random.default_rng(0)
    batch, depth = np.repeat([0, 1], 50), np.full(100, 1000.0)
    counts = np.zeros((100, 1))
    counts[[3, 60], 0] = 1  # the same in both batches
    problem = Problem(counts, np.ones((100, 1)), batch, depth)
    problem.depth = depth * rng.uniform(0.9999, 1.0001, 100)
    problem = Problem(counts, np.ones((100, 1)), batch, problem.depth)
    assert 0 < lambda_maximum(problem.sums, problem.penalty)[0] < 1
    result, lambdas = problem.reference()
    assert lambdas[0] < 1
    assert not flat(result)[1:].any()
    assert result.intercept[0] == pytest.approx(np.log(2 / problem.depth.sum()))


def test_few_rows_have_a_short_path():
    sums = FitSums(12, np.ones((2, 4, 1)), np.ones((2, 4)))
    assert sums.smallest() == 1e-2  # 1 + 3 + 6 + 2 coefficients
    assert FitSums(13, sums.counts, sums.depth).smallest() == 1e-4
