"""Likelihood of the place of spots: against plain NumPy; moves, search and bootstrap."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from scipy.optimize import minimize_scalar

from stdist.kernels.poisson_factors_rows import Counts
from stdist.kernels.spot_alignment import (
    Profiles,
    composition_field,
    compositions_at,
    log_likelihoods,
    moved,
    platform_factors,
    rigid,
)
from stdist.kernels.spot_alignment_search import (
    block_weights,
    climb,
    coarse_moves,
    lead,
    nearby_moves,
    spatial_blocks,
    spread,
    tabulate,
)


@pytest.fixture(scope="module")
def small():
    rng = np.random.default_rng(0)
    Q = rng.dirichlet(np.ones(12), 3)
    phi = rng.uniform(0.5, 2.0, 12)
    loadings = rng.gamma(1.0, 1.0, (7, 3))
    counts = sparse.csr_array(rng.poisson(30 * (loadings @ Q) * phi).astype(np.float32))
    return counts, loadings, Q, phi, np.arange(12) % 2


def test_the_likelihood_is_poissons_at_the_best_scale(small):
    counts, loadings, Q, phi, half = small
    found = log_likelihoods(Counts.of(counts), loadings, Profiles.of(Q, phi, half))
    means, dense = loadings @ Q * phi, counts.toarray().astype(float)
    genes = [np.ones(12, bool), half == 0, half == 1]
    for column, mine in enumerate(genes):
        for j in range(7):
            y, mean = dense[j, mine], means[j, mine]
            total = y.sum()

            def loss(log_s, y=y, mean=mean):
                return np.exp(log_s) * mean.sum() - (y * (log_s + np.log(mean))).sum()

            best = -minimize_scalar(loss, bounds=(-5, 10), method="bounded").fun
            constant = total * np.log(total) - total if total else 0.0
            assert found[j, column] + constant == pytest.approx(best, abs=1e-6)


def test_a_scale_of_the_loadings_changes_nothing(small):
    counts, loadings, Q, phi, half = small
    profiles = Profiles.of(Q, phi, half)
    one, other = (log_likelihoods(Counts.of(counts), c * loadings, profiles) for c in (1.0, 37.0))
    np.testing.assert_allclose(other, one, rtol=1e-10)


def test_platform_factors_are_at_their_optimum(small):
    counts, loadings, Q, _, half = small
    by_gene, by_spot = (np.asarray(counts.sum(axis=axis), float).ravel() for axis in (0, 1))
    phi = platform_factors(by_gene, by_spot, loadings, Q, rounds=200)

    def level(factors):
        return log_likelihoods(Counts.of(counts), loadings, Profiles.of(Q, factors, half))[
            :, 0
        ].sum()

    for gene in range(12):
        for factor in (0.99, 1.01):
            other = phi.copy()
            other[gene] *= factor
            assert level(other) < level(phi)


def test_the_field_is_the_blur_of_the_cells():
    rng = np.random.default_rng(1)
    points, loadings = rng.uniform(0, 400, (300, 2)), rng.gamma(1.0, 1.0, (300, 2))
    corners = np.array([[-50.0, -50.0], [-71.0, -33.0]]), np.array([[450.0, 450.0], [480.0, 470.0]])
    sigma = 25.0
    field = composition_field(points, loadings, *corners, 1.0, sigma)
    places = rng.uniform(0, 400, (40, 2))
    apart = ((places[:, None] - points) ** 2).sum(axis=2)
    direct = np.exp(-apart / (2 * sigma**2)) @ loadings * (1.0 / (2 * np.pi * sigma**2))
    for window in (0, 1):
        found = compositions_at(field, np.full(40, window), places)
        np.testing.assert_allclose(found, direct, rtol=0.03)
    off = compositions_at(field, np.zeros(1, np.int64), np.array([[900.0, 0.0]]))
    assert (off == 0).all()


@given(
    st.tuples(*3 * [st.floats(-200, 200)]), st.tuples(*2 * [st.floats(-1e4, 1e4)]),
    st.floats(100, 1e4),
)  # fmt: skip
def test_moves_are_rigid_and_their_matrices_do_the_same(move, centre, radius):
    rng = np.random.default_rng(2)
    points = rng.uniform(-1e3, 1e3, (6, 2))
    moves, centre = np.array([move]), np.array(centre)
    (there,) = moved(points, moves, centre, radius)
    (matrix,) = rigid(moves, centre, radius)
    homogeneous = np.column_stack([points, np.ones(6)]) @ matrix.T
    np.testing.assert_allclose(homogeneous[:, :2], there, atol=1e-7)
    before, after = (np.linalg.norm(p[:, None] - p, axis=2) for p in (points, there))
    np.testing.assert_allclose(after, before, atol=1e-6)
    np.testing.assert_allclose(matrix @ [*centre, 1.0], [*(centre + move[:2]), 1.0], atol=1e-7)


def bowl(optimum):
    """Gains of 40 spots with one optimum, up to noise of each spot and gene half."""
    rng = np.random.default_rng(3)
    wobble = rng.normal(0, 4.0, (40, 3, 3))

    def gains(moves):
        apart = moves[:, None, None] - optimum - wobble
        return -(apart**2).sum(axis=3)

    return gains, optimum + wobble[:, 0].mean(axis=0)


def test_search_and_bootstrap_find_an_optimum_and_its_error():
    gains, optimum = bowl(np.array([31.0, -47.0, 6.0]))
    coarse = coarse_moves(100.0, 20.0, 20.0)
    start = coarse[gains(coarse)[:, :, 0].sum(axis=1).argmax()]
    best = climb(gains, start, 10.0, 100.0, 20.0)
    np.testing.assert_allclose(best, optimum, atol=0.6)
    moves = np.concatenate([coarse, nearby_moves(best, 0.25, 12, 100.0, 20.0)])
    weights = block_weights(np.arange(40), 400, 0)
    found = spread(moves, tabulate(gains, moves), best, weights, 15.0)
    assert found.standard_error == pytest.approx(4.0 * np.sqrt(3 / 40), rel=0.25)
    assert found.share == 1.0


def test_the_search_stays_within_its_bounds():
    gains, _ = bowl(np.array([300.0, 0.0, 90.0]))
    best = climb(gains, np.zeros(3), 10.0, 100.0, 20.0)
    assert np.hypot(*best[:2]) <= 100.0
    assert abs(best[2]) <= 20.0
    assert best[0] > 95.0


def test_a_lead_is_in_standard_errors_of_blocks():
    points = np.random.default_rng(4).uniform(0, 1000, (500, 2))
    blocks = spatial_blocks(points, 100.0)
    assert len(np.unique(blocks)) == blocks.max() + 1 > 90
    noise = np.random.default_rng(5).normal(0, 1, (200, 500))
    leads = np.array([lead(row, np.zeros(500), blocks) for row in noise])
    assert leads.std() == pytest.approx(1.0, abs=0.15)
    assert lead(noise[0] + 1.0, np.zeros(500), blocks) > 10
