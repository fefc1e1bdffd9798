from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse, stats
from scipy.optimize import minimize

from stdist.kernels import poisson_factor_genes
from stdist.kernels.count_thinning import split_counts
from stdist.kernels.keyed_random import stream_key
from stdist.kernels.poisson_factor_genes import gene_profiles
from stdist.kernels.poisson_factors import Settings, proportions, spot_loadings, tile_pass
from stdist.kernels.poisson_factors_dispersion import dispersion_step
from stdist.kernels.poisson_factors_global import global_step, next_exponent, total_loss
from stdist.kernels.poisson_factors_rows import EPSILON, penalised_row
from stdist.kernels.poisson_factors_spots import Rows
from stdist.kernels.poisson_factors_start import start_factors, start_rows

PLAIN = Settings(rounds=1, exponent=1)
seeds = st.integers(0, 2**32 - 1)


class Pair:
    """Random slides with unmapped cells, spots without cells, cells and genes without counts."""

    def __init__(self, seed, n_cells=30, n_spots=5, n_panel=9, n_genes=12, n_factors=3, depth=3.0):
        rng = np.random.default_rng(seed)
        types = rng.integers(0, n_factors, n_cells)
        profiles = rng.dirichlet(np.full(n_genes, 0.5), n_factors)
        self.spot = rng.integers(-1, n_spots - 1, n_cells).astype(np.int32)  # the last has none
        means = depth * n_genes * profiles[types]
        cells = rng.poisson(means[:, :n_panel])
        cells[rng.random(n_cells) < 0.1] = 0
        totals = np.zeros((n_spots, n_genes))
        np.add.at(totals, self.spot[self.spot >= 0], means[self.spot >= 0])
        spots = rng.poisson(totals * rng.lognormal(0, 0.5, n_genes) + 0.3)
        spots[:, rng.random(n_genes) < 0.1] = 0
        self.cells, self.spots = sparse.csr_array(cells), sparse.csr_array(spots)
        self.Q = rng.dirichlet(np.ones(n_genes), n_factors)
        self.phi = np.append(rng.lognormal(0, 0.5, n_panel), np.ones(n_genes - n_panel))
        p, sizes = rng.dirichlet(np.ones(n_factors), n_cells), rng.lognormal(2, 1, (2, n_cells))
        self.rows, self.n_panel = Rows(p, *sizes), n_panel

    def part(self, spots):
        """The tile of some spots, and its cells; None is the tile of the cells without one."""
        inside = np.isin(self.spot, [-1] if spots is None else spots)
        spots = [] if spots is None else spots
        local = np.full(self.spots.shape[0] + 1, -1, np.int32)
        local[spots] = np.arange(len(spots))
        rows = Rows(*(value[inside] for value in self.rows))
        return inside, (self.cells[inside], self.spots[spots], local[self.spot[inside]], rows)

    def passes(self, number, chosen, exponent=1.0, **options):
        """Losses of passes, each with the global step."""
        rows, Q, phi, gauge, losses = self.rows, self.Q, self.phi, None, []
        for _ in range(number):
            rows, total = tile_pass(self.cells, self.spots, self.spot, rows, Q, phi, chosen, gauge)
            losses.append(total_loss(total, Q, phi, chosen))
            Q, phi, gauge = global_step(
                total, Q, phi, self.n_panel, exponent=exponent, l2=chosen.l2, **options
            )
        return np.array(losses)


def dense_losses(cells, spots, spot, rows, Q, phi):
    """Of cells, and of spots that have some."""
    n_panel = cells.shape[1]
    member = spot == np.arange(spots.shape[0])[:, None]
    means = rows.n[:, None] * (rows.p @ Q)[:, :n_panel]
    of_spots = (member @ (rows.m[:, None] * rows.p) @ Q * phi)[member.any(axis=1)]
    y = spots.toarray()[member.any(axis=1)]
    x = (means - cells.toarray() * np.log(means + EPSILON)).sum()
    return x, (of_spots - y * np.log(of_spots + EPSILON)).sum()


def dense_pass(cells, spots, spot, rows, Q, phi):
    """One EM iteration, every array dense; spots without cells are left out."""
    (p, n, m), n_panel = rows, cells.shape[1]
    member = (spot == np.arange(spots.shape[0])[:, None]).astype(float)
    y = spots.toarray() * member.any(axis=1)[:, None]
    Qx, Qv = Q[:, :n_panel], Q * phi
    ratio_x = cells.toarray() / (n[:, None] * p @ Qx + EPSILON)
    B = member @ (m[:, None] * p)
    ratio_v = y / (B @ Qv + EPSILON)
    CX = n[:, None] * p * (ratio_x @ Qx.T)
    CV = m[:, None] * p * (member.T @ (ratio_v @ Qv.T))
    D = Qv * (B.T @ ratio_v)
    explained = D.sum(axis=0)
    D[:, :n_panel] += Qx * ((n[:, None] * p).T @ ratio_x)

    mapped = member.any(axis=0)
    d = n[:, None] * Qx.sum(axis=1) + (m * mapped)[:, None] * Qv.sum(axis=1)
    has = (CX + CV).sum(axis=1) > 0
    p = np.where(has[:, None], (CX + CV) / d, p)
    p = p / p.sum(axis=1, keepdims=True)
    n = np.maximum(CX.sum(axis=1) / (p @ Qx.sum(axis=1)), 1e-6)
    m = np.where(mapped, np.maximum(CV.sum(axis=1) / (p @ Qv.sum(axis=1)), 1e-6), m)
    a, b = n @ p, (m * mapped) @ p
    rates = a[:, None] * (np.arange(Q.shape[1]) < n_panel) + b[:, None] * phi
    Q = np.divide(D, rates, out=Q.copy(), where=rates > 0)
    phi, scale = phi.copy(), b @ Q
    moves = (np.arange(len(phi)) < n_panel) & (scale > 0)
    phi[moves] = np.maximum(explained[moves] / scale[moves], 1e-8)
    return Rows(p, n, m), Q / Q.sum(axis=1, keepdims=True), phi, Q.sum(axis=1)


@settings(max_examples=25)
@given(seeds, st.integers(1, 17), st.integers(1, 60), st.integers(1, 12))
def test_a_plain_pass_equals_the_dense_oracle(seed, n_factors, n_cells, n_panel):
    pair = Pair(seed, n_cells=n_cells, n_panel=n_panel, n_factors=n_factors)
    slides, start = (pair.cells, pair.spots, pair.spot), (pair.rows, pair.Q, pair.phi)
    rows, total = tile_pass(*slides, *start, PLAIN)
    step = global_step(total, pair.Q, pair.phi, pair.n_panel)
    expected, Q, phi, gauge = dense_pass(*slides, *start)
    x, v = dense_losses(*slides, *start)
    np.testing.assert_allclose([total["loss_x"], total["loss_v"]], [x, v], rtol=1e-10)
    for name, mine, theirs in zip("pnm", rows, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-11, err_msg=name)
    np.testing.assert_allclose(step.Q, Q, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(step.phi, phi, rtol=1e-9)
    np.testing.assert_allclose(step.gauge, gauge, rtol=1e-9)


@pytest.mark.parametrize("name", ["basic", "entropy", "holdout_unmapped", "nophi"])
def test_losses_and_penalties_equal_the_reference(shared, name):
    golden = np.load(shared / f"fixtures/siid/grad_{name}.npz")
    P, Q = (np.exp(golden[f"theta_t{which}"]) for which in "PQ")
    P, Q = P / P.sum(axis=1, keepdims=True), Q / Q.sum(axis=1, keepdims=True)
    phi, n_panel = np.ones(Q.shape[1]), int(golden["n_panel"])
    if golden["platform_scaling"]:
        phi[:n_panel] = np.exp(golden["theta_psi"])
    rows = Rows(P, np.exp(golden["theta_sx"]), np.exp(golden["theta_sv"]))
    slides = (sparse.csr_array(golden["A_X"]), sparse.csr_array(golden["A_V"]))
    weight = float(golden["entropy_weight"]) / len(P)
    chosen = Settings(rounds=1, exponent=1, entropy=weight)
    _, total = tile_pass(*slides, golden["cell_spot"], rows, Q, phi, chosen)
    constant = -np.log(EPSILON) * total["empty_counts"]
    assert total["loss_x"] == pytest.approx(float(golden["loss_x"]), rel=1e-9)
    assert total["loss_v"] + constant == pytest.approx(float(golden["loss_v"]), rel=1e-9)
    assert weight * total["entropy"] == pytest.approx(float(golden["loss_entropy"]), rel=1e-9)


@settings(max_examples=40)
@given(
    seeds, st.integers(1, 9), st.floats(0.05, 30), st.booleans(), st.integers(1, 3), st.booleans()
)
def test_plain_passes_never_raise_the_loss(seed, n_factors, depth, scaling, rounds, tied):
    pair = Pair(seed, n_factors=n_factors, depth=depth)
    losses = pair.passes(60, Settings(rounds, exponent=1, tied=tied), platform_scaling=scaling)
    assert (np.diff(losses) <= 1e-9 * np.maximum(np.abs(losses[1:]), 1)).all()


@settings(max_examples=25)
@given(seeds, st.sampled_from([0.0, 0.5, 11.0]), st.sampled_from([0.0, 1e-5, 0.3]), st.booleans())
def test_rounds_never_raise_their_objective(seed, entropy, l2, tied):
    pair, losses = Pair(seed), []
    for rounds in range(1, 12):
        chosen = Settings(rounds, exponent=7, entropy=entropy, l2=l2, tied=tied)
        _, total = tile_pass(pair.cells, pair.spots, pair.spot, pair.rows, pair.Q, pair.phi, chosen)
        losses.append(total_loss(total, pair.Q, pair.phi, chosen))
    losses = np.array(losses)
    assert (np.diff(losses) <= 1e-9 * np.maximum(np.abs(losses[1:]), 1)).all()
    assert losses[-1] < losses[0]


def test_too_long_a_step_is_undone():
    pair = Pair(3, n_cells=80)
    _, total = tile_pass(
        pair.cells, pair.spots, pair.spot, pair.rows, pair.Q, pair.phi, Settings(12, 15)
    )
    assert total["rejected"] > 0


@settings(max_examples=25)
@given(seeds, st.sampled_from([0.0, 0.2, 30.0]), st.sampled_from([0.0, 1e-5, 1e-3]))
def test_a_penalised_row_is_the_minimum_of_its_majoriser(seed, entropy, l2):
    rng = np.random.default_rng(seed)
    h = int(rng.integers(2, 9))
    counts, rates = rng.gamma(0.3, 30, h) + 0.1, rng.gamma(2, 10, h)
    old, new = rng.dirichlet(np.full(h, 0.7)) + 1e-9, np.empty(h)
    old /= old.sum()
    penalised_row(counts, rates.copy(), old, entropy, l2, new)
    slope = -(np.log(old + 1e-12) + old / (old + 1e-12))

    def majoriser(p):
        u = np.log(p)
        centred = ((u - np.log(old).mean()) ** 2).sum()
        return rates @ p - counts @ u + entropy * slope @ p + l2 * centred

    assert new.sum() == pytest.approx(1, abs=1e-9)
    for _ in range(50):  # no way on the simplex leads lower
        direction = rng.dirichlet(np.ones(h)) - new
        near = new + 1e-4 * direction
        assert majoriser(near) >= majoriser(new) - 1e-8 * abs(majoriser(new))


def test_penalised_passes_lower_their_whole_objective():
    pair = Pair(8, n_cells=60)
    for chosen in (
        Settings(2, 2, l2=1e-5),
        Settings(2, 2, entropy=3.0),
        Settings(1, 1, l2=0.1),
        Settings(2, 2, l2=1e-5, tied=True),
    ):
        losses = pair.passes(80, chosen)
        assert (np.diff(losses) <= 1e-9 * np.abs(losses[1:])).all()


@settings(max_examples=15)
@given(seeds, st.sampled_from([0.0, 0.3]))
def test_tied_sizes_are_the_optimum_of_a_long_fit(seed, l2):
    pair = Pair(seed, n_cells=40)
    slides = (pair.cells, pair.spots, pair.spot)
    chosen = Settings(3000, exponent=2, l2=l2, tied=True)
    rows, _ = tile_pass(*slides, pair.rows, pair.Q, pair.phi, chosen)
    for spot in range(4):
        ratio = (rows.m / rows.n)[pair.spot == spot]
        np.testing.assert_allclose(ratio, ratio.mean(), rtol=1e-9)

    def loss(moved):
        _, total = tile_pass(*slides, moved, pair.Q, pair.phi, replace(chosen, rounds=1))
        return total_loss(total, pair.Q, pair.phi, chosen)

    best = loss(rows)
    for factor in (0.97, 1.03):  # sizes of one cell, and the scale of one spot
        cell = np.where(np.arange(40) == seed % 40, factor, 1.0)
        scale = np.where(pair.spot == seed % 4, factor, 1.0)
        for n, m in ((cell, cell), (1.0, scale)):
            moved = rows._replace(n=rows.n * n, m=rows.m * m)
            assert loss(moved) >= best - 1e-7 * abs(best)


@settings(max_examples=15)
@given(seeds, st.sampled_from([PLAIN, Settings(entropy=2.0, l2=1e-3), Settings(tied=True)]))
def test_tiles_add(seed, chosen):
    pair = Pair(seed, n_cells=50)
    rng = np.random.default_rng(seed)
    gauge, dispersion = rng.lognormal(0, 0.3, 3), rng.gamma(2, 0.1, 12)
    factors = (pair.Q, pair.phi, chosen, gauge, dispersion)
    rows, whole = tile_pass(pair.cells, pair.spots, pair.spot, pair.rows, *factors)
    order = rng.permutation(pair.spots.shape[0])
    added = dict.fromkeys(whole, 0.0)
    for spots in (order[:2], order[2:], None):
        inside, tile = pair.part(spots)
        mine, sums = tile_pass(*tile, *factors)
        for one, all_rows in zip(mine, rows, strict=True):
            np.testing.assert_array_equal(one, all_rows[inside])  # no spot sees its neighbours
        added = {key: added[key] + sums[key] for key in whole}
    for key, value in whole.items():
        np.testing.assert_allclose(added[key], value, rtol=1e-10, atol=1e-10, err_msg=key)


@settings(max_examples=15)
@given(seeds)
def test_the_gauge_leaves_means_alone(seed):
    pair = Pair(seed)
    scale = np.random.default_rng(seed).lognormal(0, 1, 3)
    # what the scaled factors explain is what the factors explain after the gauge
    rows = Rows(pair.rows.p / scale, pair.rows.n, pair.rows.m)
    slides = (pair.cells, pair.spots, pair.spot)
    _, plain = tile_pass(*slides, pair.rows, pair.Q, pair.phi, PLAIN)
    _, moved = tile_pass(*slides, rows, pair.Q, pair.phi, PLAIN, gauge=scale)
    np.testing.assert_allclose(moved["loss_x"], plain["loss_x"], rtol=1e-9)
    np.testing.assert_allclose(moved["loss_v"], plain["loss_v"], rtol=1e-9)


def test_over_relaxation_reaches_the_loss_of_plain_passes_sooner(shared):
    golden = np.load(shared / "fixtures/siid/dataset_tiny.npz")
    slides = sparse.csr_array(golden["A_X"]), sparse.csr_array(golden["A_V"])
    spot, n_panel = golden["cell_spot"], golden["A_X"].shape[1]
    losses = {}
    for name, chosen, number, largest in (
        ("plain", PLAIN, 120, 1.0),
        ("relaxed", Settings(), 40, 1.8),
    ):
        Q = start_factors(golden["A_V"].sum(axis=0), 5, seed=0)
        rows = start_rows(*slides, spot, np.arange(len(spot)), 5, seed=0)
        phi, gauge, exponent, losses[name] = np.ones(n_panel), None, 1.0, []
        for _ in range(number):
            rows, total = tile_pass(*slides, spot, rows, Q, phi, chosen, gauge)
            losses[name].append(total_loss(total, Q, phi, chosen))
            previous = losses[name][-2] if len(losses[name]) > 1 else np.inf
            exponent = next_exponent(exponent, losses[name][-1], previous, largest)
            Q, phi, gauge = global_step(total, Q, phi, n_panel, exponent=exponent)
    assert losses["relaxed"][-1] < losses["plain"][-1]
    shares = proportions(spot_loadings(rows, spot, len(golden["A_V"])))
    np.testing.assert_allclose(shares.sum(axis=1), 1)


def test_starts_do_not_depend_on_the_tile():
    pair = Pair(0)
    whole = start_rows(pair.cells, pair.spots, pair.spot, np.arange(30), 3, seed=4)
    inside, (cells, spots, spot, _) = pair.part([1, 3])
    part = start_rows(cells, spots, spot, np.flatnonzero(inside), 3, seed=4)
    for one, other in zip(part, whole, strict=True):
        np.testing.assert_array_equal(one, other[inside])


def overdispersed():
    """Slides whose spot counts have the size 5, dispersion 0.2; with the types known."""
    rng = np.random.default_rng(5)
    n_cells, n_spots, n_genes, h = 900, 150, 40, 3
    types, spot = rng.integers(0, h, n_cells), rng.integers(0, n_spots, n_cells)
    profiles = rng.dirichlet(np.full(n_genes, 0.7), h)
    cells = rng.poisson(80 * profiles[types])
    means = np.zeros((n_spots, n_genes))
    np.add.at(means, spot, 100 * profiles[types])
    spots = rng.poisson(means * rng.gamma(5, 1 / 5, means.shape))
    return sparse.csr_array(cells), sparse.csr_array(spots), spot.astype(np.int32)


class TestDispersion:
    @pytest.mark.parametrize("exponent", [1.0, 1.8])
    def test_is_recovered_and_never_raises_the_loss(self, exponent):
        slides = _, spots, spot = overdispersed()
        Q = start_factors(spots.sum(axis=0).astype(float), 3, seed=0)
        rows = start_rows(*slides, np.arange(len(spot)), 3, seed=0)
        phi, gauge, dispersion, losses = np.ones(40), None, np.full(40, 0.02), []
        for _ in range(150):
            rows, total = tile_pass(*slides, rows, Q, phi, PLAIN, gauge, dispersion)
            losses.append(total_loss(total, Q, phi, PLAIN))
            Q, phi, gauge = global_step(total, Q, phi, 40)
            dispersion = dispersion_step(total, dispersion, exponent)
        assert (np.diff(losses) <= 1e-9 * np.abs(losses[1:])).all()
        assert 0.13 < np.median(dispersion) < 0.25

    def test_loss_is_the_likelihood(self):
        pair = Pair(2)
        dispersion = np.linspace(0.01, 2, 12)
        slides = (pair.cells, pair.spots, pair.spot)
        start = (pair.rows, pair.Q, pair.phi)
        _, total = tile_pass(*slides, *start, PLAIN, None, dispersion)
        means = spot_loadings(pair.rows, pair.spot, 5) @ pair.Q * pair.phi
        used, y = means[:, 0] > 0, pair.spots.toarray()
        size = 1 / dispersion
        exact = stats.nbinom.logpmf(y[used], size, size / (size + means[used])).sum()
        exact += sum(np.log(np.arange(1, count + 1)).sum() for count in y[used].ravel())
        assert total["loss_v"] == pytest.approx(-exact, rel=1e-6)

    def test_without_it_counts_are_poisson(self):
        pair = Pair(2)
        slides = (pair.cells, pair.spots, pair.spot, pair.rows, pair.Q, pair.phi)
        _, poisson = tile_pass(*slides, Settings())
        _, close = tile_pass(*slides, Settings(), None, np.full(12, 1e-7))
        assert close["loss_v"] == pytest.approx(poisson["loss_v"], rel=1e-4)
        step, near = (global_step(total, pair.Q, pair.phi, 9) for total in (poisson, close))
        np.testing.assert_allclose(near.Q, step.Q, rtol=1e-3, atol=1e-9)
        np.testing.assert_allclose(near.phi, step.phi, rtol=1e-3)


@settings(max_examples=15)
@given(seeds, st.integers(1, 8), st.sampled_from([0.0, 0.7, 20.0]))
def test_gene_profiles_reach_the_optimum(seed, h, shape):
    rng = np.random.default_rng(seed)
    loadings = rng.gamma(0.5, 20, (40, h)) * (np.arange(40) > 1)[:, None]
    truth = rng.gamma(0.4, 0.5, (h, 4)) * (rng.random((h, 4)) < 0.7)
    counts = rng.poisson(loadings @ truth)
    counts[:, 3] = 0
    profiles, gaps = gene_profiles(sparse.csc_array(counts), loadings, shape, 1e-4, 5000)
    assert (gaps <= 1e-4).all()
    assert (profiles[:, 3] == 0).all()
    for gene in range(3):
        y = counts[:, gene]
        mean = y[loadings.sum(axis=1) > 0].sum() / loadings.sum()
        if mean == 0:
            continue
        rate = shape / mean

        def loss(q, y=y, rate=rate):
            means = loadings @ q
            prior = rate * q.sum() - shape * np.log(q).sum() if shape else 0.0
            return means.sum() - y @ np.log(means + EPSILON) + prior

        def slope(q, y=y, rate=rate):
            prior = rate - shape / q if shape else 0.0
            return loadings.T @ (1 - y / (loadings @ q + EPSILON)) + prior

        start, bounds = np.full(h, mean), [(1e-9 if shape else 0, None)] * h
        options = {"ftol": 1e-15, "gtol": 1e-9, "maxiter": 3000}
        best = minimize(loss, start, jac=slope, bounds=bounds, method="L-BFGS-B", options=options)
        assert loss(profiles[:, gene]) <= best.fun + 1.1e-4


@pytest.mark.parametrize("shape", [0.0, 5.0])
def test_gene_profiles_do_not_depend_on_what_memory_held(monkeypatch, shape):
    """Steps are taken back, where factors and padding without mass have never been written."""
    rng = np.random.default_rng(1)
    loadings = rng.gamma(0.5, 20, (40, 5))
    loadings[:, 3] = 0.0
    counts = sparse.csc_array(rng.poisson(loadings @ rng.gamma(0.4, 0.5, (5, 12))))
    compiled, _ = gene_profiles(counts, loadings, shape)
    assert (compiled[3] == 0).all()
    monkeypatch.setattr(np, "empty", lambda size: np.full(size, np.nan))
    monkeypatch.setattr(poisson_factor_genes, "_regress", poisson_factor_genes._regress.py_func)
    again, _ = gene_profiles(counts, loadings, shape)
    np.testing.assert_allclose(again, compiled, rtol=1e-6)


class TestThinning:
    keys = np.array([stream_key(7, "thinning", gene) for gene in range(6)])

    def test_parts_add_up_and_do_not_depend_on_the_block(self):
        counts = sparse.csr_array(np.random.default_rng(0).poisson(4.0, (50, 6)).astype(np.uint16))
        rows = np.arange(50) + 10**10
        first, rest = split_counts(counts, rows, self.keys, 0.8)
        np.testing.assert_array_equal((first + rest).toarray(), counts.toarray())
        assert first.dtype == np.uint16
        some = np.array([31, 4, 17])
        part, _ = split_counts(counts[some], rows[some], self.keys, 0.8)
        np.testing.assert_array_equal(part.toarray(), first[some].toarray())

    def test_parts_are_independent_and_poisson(self):
        n, share, mean = 40_000, 0.8, np.array([0.3, 2.0, 15.0, 0.3, 2.0, 15.0])
        counts = sparse.csr_array(np.random.default_rng(1).poisson(mean, (n, 6)))
        parts = split_counts(counts, np.arange(n), self.keys, share)
        for part, expected in zip(parts, (share * mean, (1 - share) * mean), strict=True):
            y = part.toarray()
            assert np.abs((y.mean(axis=0) - expected) / np.sqrt(expected / n)).max() < 4.5
            # the variance of a Poisson variance's estimate is (2 mean^2 + mean) / n
            spread = np.sqrt((2 * expected**2 + expected) / n)
            assert np.abs((y.var(axis=0) - expected) / spread).max() < 4.5
        together = np.column_stack([part.toarray() for part in parts])
        correlation = np.corrcoef(together, rowvar=False)[np.triu_indices(12, 1)]
        assert np.abs(correlation).max() * np.sqrt(n) < 4.5
