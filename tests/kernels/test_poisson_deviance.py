"""Deviances against scipy on dense means."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.special import xlogy

from stdist.kernels.poisson_deviance import poisson_deviances


def test_deviances_are_those_of_dense_means():
    draws = np.random.default_rng(0)
    weights, factors = draws.gamma(2.0, 3.0, (50, 5)), draws.dirichlet(np.full(30, 0.3), 5)
    means = weights @ factors
    counts = draws.poisson(means)
    counts[7] = 0
    found = poisson_deviances(sparse.csr_array(counts), weights, factors)
    expected = 2 * (xlogy(counts, counts) - xlogy(counts, means + 1e-8) - counts + means).sum(1)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
