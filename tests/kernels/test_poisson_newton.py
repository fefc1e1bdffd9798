"""The fit of many genes at once is the fit of each, whichever genes are beside it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from stdist.kernels.poisson_newton import Cells, Ridges, Strata, _solve, fit_genes
from stdist.kernels.poisson_ridge import Penalty, fit


def penalties(rng, n_clusters, n_batches, kind):
    if kind == "random effects":
        return Penalty.random_effects(n_clusters, n_batches)
    left_out = [rng.random(shape) < 0.2 for shape in (n_clusters, n_batches)]
    crossed = rng.random((n_batches, n_clusters)) < 0.2
    weights = (np.where(gone, np.inf, rng.lognormal(1, 1, gone.shape)) for gone in left_out)
    return Penalty(*weights, np.where(crossed, np.inf, rng.lognormal(2, 1, crossed.shape)))


def coefficients(expected):
    """Those of the fit gene by gene, in the order of the batched one."""
    common = np.concatenate([expected.intercept[None], expected.cluster]).T
    local = np.concatenate([expected.batch[:, None], expected.interaction], axis=1)
    return common, np.moveaxis(local, 2, 0)


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def fit_rows(counts, depth, penalty, *arguments, **options):
    """Fit strata gene by gene: a stratum is a row with one label."""
    batch, label = np.nonzero(depth)
    rows = counts[batch, label], np.eye(depth.shape[1])[label], batch, depth[batch, label]
    return fit(*rows, penalty, *arguments, **options)


KINDS = st.sampled_from(["random effects", "left out"])


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), kind=KINDS, b=st.integers(1, 6), k=st.integers(1, 9))
def test_strata(seed, kind, b, k):
    rng = np.random.default_rng(seed)
    n_genes = 12
    depth = rng.lognormal(8, 1, (b, k))
    depth[0, 0] = 0.0 if b * k > 1 else depth[0, 0]
    eta = rng.normal(-5, 2, n_genes) + rng.normal(0, 1, (k, n_genes))
    counts = rng.poisson(depth[..., None] * np.exp(eta + rng.normal(0, 0.4, (b, k, n_genes))))
    counts[..., 3] = 0
    penalty, factors = penalties(rng, k, b, kind), rng.lognormal(0, 1, n_genes)
    by_gene = np.moveaxis(counts.astype(float), 2, 0)
    sums = np.concatenate([by_gene.sum(axis=2)[..., None], by_gene], axis=2)
    ridges = Ridges.of(penalty, factors)
    found = fit_genes(Strata(depth), sums, ridges, 1e-10, 100)
    expected = fit_rows(counts, depth, penalty, factors)
    common, local = coefficients(expected)
    assert (found.converged == expected.converged).all()
    assert np.abs(found.iterations - expected.iterations).max() <= 1
    # rates: what moves from all clusters to the intercept is known as well as its small ridge says
    assert_close(found.common[:, :1] + found.common[:, 1:], common[:, :1] + common[:, 1:])
    assert_close(found.local, local)
    some = np.array([1, 3, 4, 10])
    alone = fit_genes(Strata(depth), sums[some], ridges.take(some), 1e-10, 100)
    for whole, part in zip(found, alone, strict=True):
        np.testing.assert_array_equal(whole[some], part)


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), kind=KINDS, b=st.integers(1, 4), k=st.integers(1, 5))
def test_cells(seed, kind, b, k):
    rng = np.random.default_rng(seed)
    n, n_genes = 700, 6
    weights, batch = rng.dirichlet(np.full(k, 0.3), n), rng.integers(0, b, n)
    batch[batch == 1] = 0  # a batch without cells
    depth = rng.lognormal(5, 0.5, n)
    eta = rng.normal(-4, 1.5, n_genes) + weights @ rng.normal(0, 1, (k, n_genes))
    counts = rng.poisson(depth[:, None] * np.exp(eta + rng.normal(0, 0.4, (b, n_genes))[batch]))
    counts[:, 2] = 0
    penalty, factors = penalties(rng, k, b, kind), rng.lognormal(0, 1, n_genes)
    cells, ridges = Cells(weights, batch, depth, b), Ridges.of(penalty, factors)
    sums = cells.count_sums(sparse.csr_array(counts))
    found = fit_genes(cells, sums, ridges, 1e-10, 100)
    assert found.converged.all()
    genes = np.flatnonzero(counts.any(axis=0))
    common, local, weight = found.common[genes], found.local[genes], ridges.take(genes)
    residual = cells.means(common[:, None] + local)[1] - sums[genes]
    slopes = residual.sum(axis=1) + weight.common * common, residual + weight.local * local
    noise = 1e-6 * (1.0 + counts[:, genes].sum(axis=0))
    for slope, free in zip(slopes, (ridges.free_common, ridges.free_local), strict=True):
        largest = np.abs(slope * free).reshape(len(genes), -1).max(axis=1)
        assert (largest < noise).all()
    for some in (np.array([4]), np.array([5, 0, 2])):
        alone = fit_genes(cells, sums[some], ridges.take(some), 1e-10, 100)
        for whole, part in zip(found, alone, strict=True):
            np.testing.assert_array_equal(whole[some], part)


def test_a_gene_out_of_steps_is_not_converged_and_the_others_are():
    counts = np.array([[[5.0, 4000.0]], [[7.0, 1.0]]])
    depth = np.full((2, 1), 1e4)
    sums = np.repeat(np.moveaxis(counts, 2, 0), 2, axis=2)
    penalty = Penalty.random_effects(1, 2)
    found = fit_genes(Strata(depth), sums, Ridges.of(penalty, np.ones(2)), 1e-10, 3)
    expected = fit_rows(counts, depth, penalty, max_iterations=3)
    assert found.converged.tolist() == expected.converged.tolist() == [True, False]
    assert found.iterations.tolist() == expected.iterations.tolist()


@pytest.mark.parametrize("singular", [[], [0], [2, 3], [0, 1, 2, 3, 4]])
def test_a_singular_system_spoils_no_other(singular):
    rng = np.random.default_rng(0)
    matrix = np.eye(3) + 0.1 * rng.normal(size=(5, 3, 3))
    matrix[singular] = 0.0
    right = rng.normal(size=(5, 3, 1))
    found = _solve(matrix, right)
    assert np.isnan(found).all(axis=(1, 2)).nonzero()[0].tolist() == singular
    good = np.setdiff1d(np.arange(5), singular)
    np.testing.assert_allclose(matrix[good] @ found[good], right[good], atol=1e-12)
