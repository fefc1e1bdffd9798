from __future__ import annotations

import numpy as np
from scipy import stats

from stdist.kernels.keyed_random import stream_key
from stdist.kernels.poisson_draw import poisson_draws


def test_draws_are_poisson_and_keyed_by_row():
    means = np.repeat([[0.05, 3.0, 400.0]], 100_000, axis=0)
    keys = np.array([stream_key(0, "test", g) for g in range(3)])
    rows = np.arange(len(means)) + 2**33
    drawn = poisson_draws(means, keys, rows)
    for g, mean in enumerate(means[0]):
        law = stats.poisson(mean)
        edges = np.unique(law.ppf(np.linspace(0, 1, 30)[1:-1]))
        observed = np.histogram(drawn[:, g], [-1, *(edges + 0.5), np.inf])[0]
        expected = len(means) * np.diff(np.concatenate([[0], law.cdf(edges), [1]]))
        assert stats.chisquare(observed, expected).pvalue > 1e-3
    some = np.array([5, 70_000])
    np.testing.assert_array_equal(poisson_draws(means[some], keys, rows[some]), drawn[some])
