"""EM steps of cells with several spots: a dense oracle, one spot as before, a falling loss."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from stdist.kernels.poisson_factors import Settings, tile_pass
from stdist.kernels.poisson_factors_edges import (
    EdgeRows,
    edge_loadings,
    edge_pass,
    explain_spots,
)
from stdist.kernels.poisson_factors_global import global_step, total_loss
from stdist.kernels.poisson_factors_spots import Rows

N, S, G, PANEL, H = 60, 9, 30, 22, 4


def problem(k, seed=0):
    """Cells of which some have fewer than k spots, some none; the last spot has no cell."""
    rng = np.random.default_rng(seed)
    edges = np.array([rng.permutation(S - 1)[:k] for _ in range(N)])
    edges[rng.uniform(size=edges.shape) < 0.2] = -1
    rows = EdgeRows(
        rng.dirichlet(np.ones(H), N), rng.gamma(5.0, 4.0, N), rng.gamma(2.0, 3.0, (N, k))
    )
    Q, phi = rng.dirichlet(np.ones(G), H), rng.uniform(0.5, 2.0, G)
    phi[PANEL:] = 1.0
    cells = sparse.csr_array(rng.poisson(3.0, (N, PANEL)).astype(np.float32))
    spots = sparse.csr_array(rng.poisson(20.0, (S, G)).astype(np.float32))
    return cells, spots, edges, rows, Q, phi


def one_pass(cells, spots, edges, rows, Q, phi, parts=1, **penalties):
    """A pass over cells and spots cut into parts, statistics added."""
    loadings = np.zeros((spots.shape[0], len(Q)))
    blocks = np.array_split(np.arange(len(edges)), parts)
    for block in blocks:
        mine = EdgeRows(*(values[block] for values in rows))
        at, load = edge_loadings(mine, edges[block])
        loadings[at] += load
    halves = np.array_split(np.arange(spots.shape[0]), parts)
    explained = [explain_spots(spots[half], loadings[half], Q, phi) for half in halves]
    ratios = np.concatenate([ratio for ratio, _ in explained])
    found = [
        edge_pass(
            cells[block], edges[block], EdgeRows(*(values[block] for values in rows)), ratios,
            Q, phi, **penalties,
        )
        for block in blocks
    ]  # fmt: skip
    new = EdgeRows(*(np.concatenate(values) for values in zip(*(r for r, _ in found), strict=True)))
    total = {}
    for statistics in (*(s for _, s in found), *(s for _, s in explained)):
        for name, value in statistics.items():
            total[name] = total.get(name, 0) + value
    return new, total


def test_a_pass_is_that_of_dense_matrices():
    cells, spots, edges, rows, Q, phi = problem(3)
    new, total = one_pass(cells, spots, edges, rows, Q, phi)
    x, v, eps = cells.toarray().astype(float), spots.toarray().astype(float), 1e-8
    gamma = np.zeros((N, S))
    for i, j in zip(*np.nonzero(edges >= 0), strict=True):
        gamma[i, edges[i, j]] = rows.m[i, j]
    B = gamma.T @ rows.p
    full = B.sum(axis=1) > 0
    mean_x, mean_v = rows.n[:, None] * rows.p @ Q[:, :PANEL], B @ Q * phi
    R_x, R_v = x / (mean_x + eps), np.where(full[:, None], v / (mean_v + eps), 0.0)
    assert total["loss_x"] == pytest.approx((mean_x - x * np.log(mean_x + eps)).sum(), rel=1e-10)
    loss_v = (mean_v - v * np.log(mean_v + eps))[full].sum()
    assert total["loss_v"] == pytest.approx(loss_v, rel=1e-10)
    assert total["n_spots"] == full.sum() == S - 1
    assert total["empty_counts"] == v[~full].sum()
    T = (R_v * phi) @ Q.T
    from_cells = rows.n[:, None] * rows.p * (R_x @ Q[:, :PANEL].T)
    from_spots = rows.p * (gamma @ T)
    q_x, q_phi = Q[:, :PANEL].sum(axis=1), Q @ phi
    p = (from_cells + from_spots) / (rows.n[:, None] * q_x + gamma.sum(axis=1)[:, None] * q_phi)
    p /= p.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(new.p, p, rtol=1e-9)
    np.testing.assert_allclose(new.n, from_cells.sum(axis=1) / (p @ q_x), rtol=1e-9)
    for i, e in zip(*np.nonzero(edges >= 0), strict=True):
        m = rows.m[i, e] * (rows.p[i] @ T[edges[i, e]]) / (p[i] @ q_phi)
        assert new.m[i, e] == pytest.approx(m, rel=1e-9)
    counts = Q * phi * (B.T @ R_v)
    np.testing.assert_allclose(total["spot_counts"], counts.sum(axis=0), rtol=1e-9)
    counts[:, :PANEL] += Q[:, :PANEL] * ((rows.n[:, None] * rows.p).T @ R_x)
    np.testing.assert_allclose(total["factor_counts"], counts, rtol=1e-9)
    masses = np.where(edges >= 0, new.m, 0.0).sum(axis=1)
    np.testing.assert_allclose(total["spot_mass"][:, 0], masses @ new.p, rtol=1e-9)
    np.testing.assert_allclose(total["cell_mass"], new.n @ new.p, rtol=1e-9)


def test_the_gradient_of_a_size_is_that_of_the_loss():
    cells, spots, edges, rows, Q, phi = problem(4)

    def loss(m):
        total = one_pass(cells, spots, edges, rows._replace(m=m), Q, phi)[1]
        return total["loss_x"] + total["loss_v"]

    loadings = np.zeros((S, H))
    at, load = edge_loadings(rows, edges)
    loadings[at] = load
    T = explain_spots(spots, loadings, Q, phi)[0]
    for i, e in np.argwhere(edges >= 0)[:12]:
        analytic = rows.m[i, e] * (rows.p[i] @ (Q @ phi - T[edges[i, e]]))
        up, down = rows.m.copy(), rows.m.copy()
        up[i, e] *= np.exp(1e-4)
        down[i, e] *= np.exp(-1e-4)
        assert (loss(up) - loss(down)) / 2e-4 == pytest.approx(analytic, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("penalties", [{}, {"entropy": 2.0}, {"l2": 0.01}])
def test_with_one_spot_per_cell_it_is_the_pass_in_one(penalties):
    cells, spots, edges, rows, Q, phi = problem(1)
    new, total = one_pass(cells, spots, edges, rows, Q, phi, **penalties)
    one = Rows(rows.p, rows.n, rows.m[:, 0])
    settings = Settings(rounds=1, exponent=1, **penalties)
    expected, statistics = tile_pass(cells, spots, edges[:, 0], one, Q, phi, settings)
    np.testing.assert_allclose(new.p, expected.p, rtol=1e-9)
    np.testing.assert_allclose(new.n, expected.n, rtol=1e-9)
    mapped = edges[:, 0] >= 0
    np.testing.assert_allclose(new.m[mapped, 0], expected.m[mapped], rtol=1e-9)
    for name, value in total.items():
        if name in ("entropy", "squares") and not penalties:
            continue
        np.testing.assert_allclose(value, statistics[name], rtol=1e-9, err_msg=name)


def test_the_loss_never_rises_and_parts_do_not_matter():
    cells, spots, edges, rows, Q, phi = problem(4, seed=1)
    gauge, losses = np.ones(H), []
    for _ in range(120):
        own = np.maximum(rows.p * gauge, 1e-12)
        scale = own.sum(axis=1)
        rows = EdgeRows(own / scale[:, None], rows.n * scale, rows.m * scale[:, None])
        whole, total = one_pass(cells, spots, edges, rows, Q, phi)
        in_parts, added = one_pass(cells, spots, edges, rows, Q, phi, parts=3)
        np.testing.assert_allclose(in_parts.p, whole.p, rtol=1e-9, atol=1e-13)
        np.testing.assert_allclose(added["factor_counts"], total["factor_counts"], rtol=1e-9)
        rows = whole
        losses.append(total_loss(total, Q, phi, Settings()))
        Q, phi, gauge = global_step(total, Q, phi, PANEL)
    assert (np.diff(losses) / np.abs(losses[:-1])).max() < 1e-9
    assert losses[-1] < losses[0] - 100
