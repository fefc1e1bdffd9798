"""The prior of profiles: learnt as it was drawn, and what it makes of few counts is calibrated."""

from __future__ import annotations

import numpy as np
import pytest

from stdist.kernels.poisson_factors_global import global_step, profile_prior

FACTORS, PANEL, GENES = 300, 300, 600


@pytest.mark.parametrize("shape", [0.4, 1.5])
def test_profiles_of_few_counts_are_calibrated(shape):
    draws = np.random.default_rng(3)
    mean = draws.dirichlet(np.full(GENES, 2.0))
    truth = draws.gamma(shape, mean / shape, (FACTORS, GENES))
    spot_mass = draws.uniform(500.0, 3000.0, (FACTORS, 1))  # a count or two of each gene
    counts = draws.poisson(spot_mass * truth).astype(float)
    Q = np.where(np.arange(GENES) < PANEL, truth, counts / spot_mass)
    prior = found, _ = profile_prior(Q, np.full(FACTORS, 1e6), spot_mass, PANEL)
    np.testing.assert_allclose(found, shape, rtol=0.05)
    total = {"factor_counts": counts, "cell_mass": np.full(FACTORS, 1e6), "spot_mass": spot_mass}
    options = {"n_panel": PANEL, "platform_scaling": False, "prior": prior}
    step = global_step(total, Q, np.ones(GENES), **options)
    estimate = (step.Q * step.gauge[:, None])[:, PANEL:] / mean[PANEL:]
    wanted, raw = truth[:, PANEL:] / mean[PANEL:], Q[:, PANEL:] / mean[PANEL:]
    assert np.polyfit(estimate.ravel(), wanted.ravel(), 1)[0] == pytest.approx(1.0, abs=0.03)
    assert np.polyfit(raw.ravel(), wanted.ravel(), 1)[0] < 0.9
    assert ((estimate - wanted) ** 2).mean() < 0.8 * ((raw - wanted) ** 2).mean()


def test_a_gene_without_counts_and_equal_profiles_have_a_prior_too():
    Q = np.array([[0.3, 0.7, 0.0], [0.3, 0.7, 0.0]])
    shape, rate = profile_prior(Q, np.ones(2), np.ones((2, 1)), n_panel=1)
    np.testing.assert_allclose(shape, [1000.0, 1000.0, 0.0])
    np.testing.assert_allclose(rate, [1000 / 0.3, 1000 / 0.7, 0.0])
