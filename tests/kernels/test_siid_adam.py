from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse

from stdist.kernels.poisson_factors import proportions, spot_loadings
from stdist.kernels.poisson_factors_spots import Rows
from stdist.kernels.siid_adam import (
    AdamState,
    Objective,
    Parameters,
    adam_steps,
    reference_start,
)

FIXTURES = ["basic", "entropy", "holdout_unmapped", "nophi", "refinit_adam200"]
KEYS = ("tP", "tQ", "sx", "sv", "psi")


def opened(shared, name):
    golden = np.load(shared / f"fixtures/siid/grad_{name}.npz")
    objective = Objective(
        sparse.csr_array(golden["A_X"]),
        sparse.csr_array(golden["A_V"]),
        golden["cell_spot"],
        float(golden["l2"]),
        bool(golden["platform_scaling"]),
    )
    return golden, objective, Parameters(*(golden[f"theta_{key}"] for key in KEYS))


def relative(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("name", FIXTURES)
def test_losses_and_gradients_equal_the_reference(shared, name):
    golden, objective, parameters = opened(shared, name)
    losses, gradient = objective.evaluate(parameters, float(golden["entropy_weight"]))
    for part in losses._fields:
        expected = float(golden[f"loss_{part}"])
        assert abs(getattr(losses, part) - expected) <= 1e-9 * abs(expected), part
    for key, found in zip(KEYS, gradient, strict=True):
        assert relative(found, golden[f"grad_{key}"]) < 1e-9, key


@pytest.mark.parametrize("name", FIXTURES)
def test_estimates_equal_the_reference(shared, name):
    golden, objective, parameters = opened(shared, name)
    p, q = objective.probabilities(parameters)
    rows = Rows(p, np.exp(parameters.log_n), np.exp(parameters.log_m))
    phi = objective.platform_factors(parameters)
    loadings = spot_loadings(rows, objective.spot, objective.spots.shape[0])
    shares = np.nan_to_num(proportions(loadings))
    cells = (rows.n[:, None] * rows.p @ q)[:20]
    n_panel = objective.cells.shape[1]
    assert relative(cells[:, :n_panel], golden["est_x_panel_first20"]) < 1e-6
    assert relative(cells, golden["est_x_all_first20"]) < 1e-6
    assert relative((loadings @ q * phi)[:20], golden["est_v_first20"]) < 1e-6
    assert relative(shares, golden["deconv"]) < 1e-6


def test_trajectory_equals_the_reference_and_resumes(shared):
    golden, objective, parameters = opened(shared, "refinit_adam200")
    expected, rate = golden["adam_losses"], float(golden["adam_lr"])
    state, first = adam_steps(objective, AdamState.begin(parameters), 77, learning_rate=rate)
    state, rest = adam_steps(objective, state, len(expected) - 77, learning_rate=rate)
    np.testing.assert_allclose(np.concatenate([first, rest]), expected, rtol=1e-6)
    for key, found in zip(KEYS, state.parameters, strict=True):
        assert relative(found, golden[f"after_{key}"]) < 1e-6, key


def test_spots_without_cells_add_a_constant_only(shared):
    golden, objective, parameters = opened(shared, "holdout_unmapped")
    native = replace(objective, compat_loss=False)
    with_constant, gradient = objective.evaluate(parameters)
    without, same = native.evaluate(parameters)
    spot = golden["cell_spot"]
    empty = np.bincount(spot[spot >= 0], minlength=len(golden["A_V"])) == 0
    constant = np.log(1e8) * golden["A_V"][empty].sum()
    assert empty.sum() == 2
    assert with_constant.v - without.v == pytest.approx(constant, rel=1e-9)
    for one, other in zip(gradient, same, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_loss_that_is_not_finite_is_refused():
    rng = np.random.default_rng(0)
    start = reference_start(5, 2, 4, 3, rng)
    counts = rng.poisson(1.0, (5, 3)), rng.poisson(1.0, (2, 4))
    objective = Objective(*map(sparse.csr_array, counts), np.array([0, 1, -1, 0, 1]))
    wrong = start._replace(log_n=np.full(5, 800.0))
    with (
        np.errstate(over="ignore", invalid="ignore"),
        pytest.raises(FloatingPointError, match="step 0"),
    ):
        adam_steps(objective, AdamState.begin(wrong), 1)
