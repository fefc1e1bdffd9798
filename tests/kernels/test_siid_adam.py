"""SIID's objective and gradient against the recorded ones; draws of its start."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from stdist.kernels.poisson_factors import proportions, spot_loadings
from stdist.kernels.siid_adam import adam_step, begin_adam, start_cells, start_factors
from stdist.kernels.siid_gradient import cell_rows, factor_gradient, factors, tile_gradient

FIXTURES = ["basic", "entropy", "holdout_unmapped", "nophi", "refinit_adam200"]


class Recorded:
    """A fixture: slides, parameters, and the gradient of the whole as one tile."""

    def __init__(self, shared, name):
        self.golden = golden = np.load(shared / f"fixtures/siid/grad_{name}.npz")
        self.slides = (
            sparse.csr_array(golden["A_X"]),
            sparse.csr_array(golden["A_V"]),
            golden["cell_spot"],
        )
        self.parameters = np.column_stack([golden[f"theta_{key}"] for key in ("tP", "sx", "sv")])
        self.logits, self.log_phi = golden["theta_tQ"], golden["theta_psi"]
        self.scaling = {"platform_scaling": bool(golden["platform_scaling"])}
        self.Q, self.phi = factors(self.logits, self.log_phi, **self.scaling)
        weight = float(golden["entropy_weight"]) / len(golden["A_X"])
        self.weights = {"entropy": weight, "l2": float(golden["l2"])}

    def tile(self, inside=slice(None)):
        cells, spots, spot = self.slides
        return tile_gradient(
            cells[inside], spots, spot[inside], self.parameters[inside], self.Q, self.phi,
            **self.weights,
        )  # fmt: skip

    def factors(self, total):
        return factor_gradient(total, self.logits, self.log_phi, **self.weights, **self.scaling)


def relative(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("name", FIXTURES)
def test_losses_and_gradients_equal_the_reference(shared, name):
    recorded = Recorded(shared, name)
    golden = recorded.golden
    gradient, total = recorded.tile()
    losses, by_logits, by_log_phi = recorded.factors(total)
    for part in losses._fields:
        expected = float(golden[f"loss_{part}"])
        assert abs(getattr(losses, part) - expected) <= 1e-9 * abs(expected), part
    assert relative(gradient[:, :-2], golden["grad_tP"]) < 1e-9
    assert relative(gradient[:, -2], golden["grad_sx"]) < 1e-9
    assert relative(gradient[:, -1], golden["grad_sv"]) < 1e-9
    assert relative(by_logits, golden["grad_tQ"]) < 1e-9
    assert relative(by_log_phi, golden["grad_psi"]) < 1e-9


@pytest.mark.parametrize("name", FIXTURES)
def test_estimates_equal_the_reference(shared, name):
    recorded = Recorded(shared, name)
    golden, (_, _, spot) = recorded.golden, recorded.slides
    rows = cell_rows(recorded.parameters)
    loadings = spot_loadings(rows, spot, len(golden["A_V"]))
    cells = (rows.n[:, None] * rows.p @ recorded.Q)[:20]
    n_panel = golden["A_X"].shape[1]
    assert relative(cells[:, :n_panel], golden["est_x_panel_first20"]) < 1e-6
    assert relative(cells, golden["est_x_all_first20"]) < 1e-6
    means = loadings @ recorded.Q * recorded.phi
    assert relative(means[:20], golden["est_v_first20"]) < 1e-6
    assert relative(np.nan_to_num(proportions(loadings)), golden["deconv"]) < 1e-6


def test_tiles_add(shared):
    recorded = Recorded(shared, "holdout_unmapped")
    (cells, spots, spot), whole = recorded.slides, recorded.tile()
    added, gradient = dict.fromkeys(whole[1], 0.0), np.empty_like(whole[0])
    half = spots.shape[0] // 2
    for part, unmapped in ((np.arange(half), True), (np.arange(half, spots.shape[0]), False)):
        inside = np.isin(spot, part) | (unmapped & (spot < 0))
        local = np.where(spot >= 0, spot - part[0], -1)[inside]
        gradient[inside], total = tile_gradient(
            cells[inside], spots[part], local, recorded.parameters[inside], recorded.Q,
            recorded.phi, **recorded.weights,
        )  # fmt: skip
        added = {key: added[key] + total[key] for key in total}
    np.testing.assert_allclose(gradient, whole[0], rtol=1e-10, atol=1e-12)
    for key, expected in whole[1].items():
        np.testing.assert_allclose(added[key], expected, rtol=1e-10, err_msg=key)


def test_steps_of_adam_reach_the_optimum_of_a_bowl():
    centre = np.array([3.0, -20.0, 0.01])
    moving = begin_adam(np.zeros(3))
    first = adam_step(moving, moving[0] - centre, 0, 0.05)
    np.testing.assert_allclose(first[0], 0.05 * np.sign(centre), rtol=1e-5)  # scale-free
    for epoch in range(8000):
        moving = adam_step(moving, moving[0] - centre, epoch, 0.05)
    np.testing.assert_allclose(moving[0], centre, atol=1e-3)


def test_the_start_is_that_of_the_paper_and_of_each_cell():
    numbers = np.arange(4000) + 10**7
    start = start_cells(numbers, n_cells=4000, n_factors=5, seed=2)
    bound = np.sqrt(6 / 4005)
    logits = start[:, :5]
    assert np.abs(logits).max() <= bound
    assert logits.std() == pytest.approx(bound / np.sqrt(3), rel=0.02)
    assert (start[:, 5:] == 1).all()
    some = np.array([17, 3, 2500])
    np.testing.assert_array_equal(start_cells(numbers[some], 4000, 5, 2), start[some])
    logits, log_phi = start_factors(5, n_genes=2000, n_panel=1500, seed=2)
    assert logits.shape == (5, 2000)
    assert np.abs(logits).max() <= np.sqrt(6 / 2005)
    assert abs(log_phi.mean()) < 0.1
    assert log_phi.std() == pytest.approx(1, abs=0.08)
