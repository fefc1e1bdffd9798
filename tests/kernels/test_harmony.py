from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stdist.kernels.harmony_cells import (
    Assignment,
    corrected_rows,
    mass_sums,
    row_sums,
    scale_rows,
    soft_clusters,
)
from stdist.kernels.harmony_ridge import intercept_centroids, level_shift, regress
from stdist.kernels.harmony_rounds import (
    after_correction,
    after_round,
    assignment,
    begin,
    correct_pass,
    finish,
    round_pass,
)
from stdist.kernels.harmony_sequential import harmonize
from stdist.kernels.harmony_settings import Strata, make_settings, unit_rows

FLAVOURS = ["harmony1", "harmony2"]


def one_variable(batch):
    n_levels = int(batch.max()) + 1
    cells = np.bincount(batch, minlength=n_levels).astype(float)
    return Strata(np.arange(n_levels)[:, None], cells, np.zeros(n_levels, int))


def two_variables(first, second):
    n_first, n_second = int(first.max()) + 1, int(second.max()) + 1
    flat, codes = np.unique(first * n_second + second, return_inverse=True)
    levels = np.stack([flat // n_second, n_first + flat % n_second], axis=1)
    variables = np.repeat([0, 1], [n_first, n_second])
    return Strata(levels, np.bincount(codes).astype(float), variables), codes.astype(np.int32)


def simulate(n_cells=1500, n_dims=8, n_batches=4, n_types=6, seed=0):
    rng = np.random.default_rng(seed)
    share = np.linspace(4, 1, n_batches)
    batch = rng.choice(n_batches, n_cells, p=share / share.sum()).astype(np.int32)
    types = rng.integers(0, n_types, n_cells)
    centres, effects = rng.normal(0, 3, (n_types, n_dims)), rng.normal(0, 1, (n_batches, n_dims))
    values = centres[types] + effects[batch] + rng.normal(0, 1, (n_cells, n_dims))
    centroids = unit_rows(values)[rng.choice(n_cells, 12, replace=False)]
    return values.astype(np.float32), batch, centroids


def run_jacobi(values, strata, centroids, chosen, max_iterations=10):
    """The parallel form on one tile; returns the last state and the corrected rows."""
    unit, state = unit_rows(values), begin(centroids, chosen)
    for _ in range(max_iterations):
        unit, sums = correct_pass(values, unit, strata, state, chosen)
        state = after_correction(sums, state, chosen)
        for _ in range(chosen.inner_rounds - 1):
            state = after_round(round_pass(unit, strata, state, chosen), state, chosen)
        state = finish(round_pass(unit, strata, state, chosen, values), state, chosen)
        if state["converged"]:
            break
    tables = assignment(state, chosen)
    corrected = corrected_rows(values, unit, strata, tables, state["shift"])
    return state, unit, soft_clusters(unit, strata, tables), corrected


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_sequential_steps_equal_the_reference(shared, flavour):
    golden = np.load(shared / "fixtures/sysvi/harmony_steps_a.npz")
    strata, orders = one_variable(golden["batch"]), golden["orders"]
    chosen = make_settings(flavour, strata, len(golden["Y0"]), tolerance=-np.inf)
    found = {
        iterations: harmonize(
            golden["Z"],
            golden["batch"],
            golden["Y0"],
            lambda number: orders[number % len(orders)],
            chosen,
            max_iterations=iterations,
        )
        for iterations in (1, 3)
    }
    pairs = {
        "R1": found[1].weights,
        "O1": found[1].observed,
        "E1": strata.expected(found[1].observed),
        "Z1": found[1].corrected,
        "W1": found[1].coefficients,
        "Z_corr": found[3].corrected,
        "R": found[3].weights,
        "O": found[3].observed,
        "objective": found[3].inner_objective,
        "objective_harmony": found[3].objective,
    }
    for name, mine in pairs.items():
        expected = golden[f"{flavour}:{name}"]
        scale = np.abs(expected).max()
        np.testing.assert_allclose(mine, expected, rtol=1e-5, atol=1e-7 * scale, err_msg=name)
    assert found[3].rounds == golden[f"{flavour}:rounds"].tolist()


@settings(max_examples=25)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([3, 50, 300]),
    st.integers(1, 40),
    st.integers(1, 23),
    st.integers(1, 5),
)
def test_passes_equal_float64_oracle(seed, n_rows, n_clusters, n_dims, n_strata):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n_rows, n_dims)).astype(np.float32)
    unit, sigma = unit_rows(values), rng.uniform(0.02, 1)
    np.testing.assert_allclose(scale_rows(values.copy()), unit, rtol=1e-5)
    centroids = unit_rows(rng.normal(size=(n_clusters, n_dims)))
    penalty = rng.normal(0, 20, (n_strata, n_clusters))
    strata = rng.integers(0, n_strata, n_rows).astype(np.int32)
    tables = Assignment.of(centroids, penalty, sigma)
    weights = soft_clusters(unit, strata, tables)

    logits = 2 / sigma * unit.astype(float) @ centroids.T + penalty[strata]
    largest = logits.max(axis=1, keepdims=True)
    powers = np.exp(logits - largest)
    total = powers.sum(axis=1, keepdims=True)
    error = 3e-7 * (2 / sigma + np.abs(penalty).max() + 10)
    np.testing.assert_allclose(weights, powers / total, rtol=2 * error, atol=1e-30)

    onehot, wide = np.eye(n_strata)[strata], weights.astype(float)
    found = mass_sums(unit, strata, tables)
    np.testing.assert_allclose(found["observed"], onehot.T @ wide, rtol=1e-12, atol=1e-300)
    expected = (np.log(total) + largest).sum()
    np.testing.assert_allclose(found["log_sum"], expected, rtol=error, atol=1e-3)
    levels = np.column_stack([np.arange(n_strata), n_strata + np.arange(n_strata) % 2])
    again, sums = row_sums(unit, strata, tables, values, levels)
    np.testing.assert_allclose(again["observed"], found["observed"], rtol=1e-12, atol=1e-300)
    member = np.zeros((n_rows, levels.max() + 1))
    np.put_along_axis(member, levels[strata], 1.0, axis=1)
    expected = np.einsum("nl,nd,nk->ldk", member, values.astype(float), wide)
    np.testing.assert_allclose(sums, expected, atol=1e-7 * n_rows)
    shift = rng.normal(size=(n_strata, n_dims, n_clusters)).astype(np.float32)
    expected = values - np.einsum("nk,ndk->nd", wide, shift[strata].astype(float))
    corrected = corrected_rows(values, unit, strata, tables, shift)
    np.testing.assert_allclose(corrected, expected, atol=1e-5)


@pytest.mark.parametrize("lamb", [None, 0.7, (0.3, 2.0)])
def test_regression_equals_weighted_least_squares(lamb):
    rng = np.random.default_rng(1)
    first, second = rng.integers(0, 3, 400), rng.integers(0, 2, 400)
    values, weights = rng.normal(size=(400, 5)), rng.dirichlet(np.ones(4), 400)
    both, codes = two_variables(first, second)
    problems = [(both, codes)] if np.ndim(lamb) else [(one_variable(first), first), (both, codes)]
    for strata, cells in problems:
        chosen = make_settings("harmony2", strata, 4, ridge=lamb)
        observed = np.eye(len(strata.cells))[cells].T @ weights
        design = np.zeros((400, strata.n_levels))
        np.put_along_axis(design, strata.levels[cells], 1.0, axis=1)
        sums = np.einsum("nl,nk,nd->lkd", design, weights, values)
        found = regress(chosen, observed, sums)
        columns = np.column_stack([np.ones(400), design])
        expected = strata.expected(observed)
        np.testing.assert_allclose(
            expected, np.outer(design.mean(axis=0), weights.sum(axis=0)), rtol=1e-12
        )
        for k in range(4):
            penalty = 0.2 * expected[:, k]
            if lamb is not None:
                penalty = np.broadcast_to(lamb, strata.n_variables)[strata.variables]
            gram = columns.T @ (weights[:, k, None] * columns) + np.diag([0, *penalty])
            right = columns.T @ (weights[:, k, None] * values)
            np.testing.assert_allclose(found[k], np.linalg.solve(gram, right), rtol=1e-9)
        shift = level_shift(strata, found)
        np.testing.assert_allclose(
            np.einsum("nk,nkd->nd", weights, shift[cells]),
            np.einsum("nk,nl,kld->nd", weights, design, found[:, 1:]),
            rtol=1e-9,
        )


@pytest.mark.parametrize("n_variables", [1, 2])
def test_regression_leaves_out_what_a_cluster_hardly_holds(n_variables):
    observed = np.array([[5.0, 5.0, 5.0], [4.0, 0.0, 1e-6], [3.0, 1e-5, 3.0]])
    levels, variables = np.arange(3)[:, None], np.zeros(3, int)
    if n_variables == 2:  # the second variable has one level only, and is left out everywhere
        levels, variables = np.column_stack([np.arange(3), np.full(3, 3)]), np.array([0, 0, 0, 1])
    strata = Strata(levels, np.full(3, 10.0), variables)
    sums = np.random.default_rng(0).normal(size=(strata.n_levels, 3, 2))
    found = regress(make_settings("harmony2", strata, 3), observed, sums)
    zero = (found[:, 1:4] == 0).all(axis=2)
    np.testing.assert_array_equal(
        zero, [[False, False, False], [True, True, True], [False, True, False]]
    )
    np.testing.assert_array_equal(np.isnan(found[:, 0]).all(axis=1), [False, True, False])
    kept = intercept_centroids(np.eye(3)[:, :2], found)
    np.testing.assert_array_equal(kept[1], [0.0, 1.0])
    assert np.isfinite(level_shift(strata, found)).all()


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("variables", [1, 2])
def test_objective_needs_no_weights(flavour, variables):
    values, batch, centroids = simulate()
    strata, codes = one_variable(batch), batch
    if variables == 2:
        strata, codes = two_variables(batch, np.arange(len(batch)) % 3)
    chosen = make_settings(flavour, strata, len(centroids), theta=[2.0, 1.0][:variables])
    unit, state = unit_rows(values), begin(centroids, chosen)
    unit, sums = correct_pass(values, unit, codes, state, chosen)
    state = after_correction(sums, state, chosen)
    for _ in range(3):
        weights = soft_clusters(unit, codes, assignment(state, chosen)).astype(float)
        means = state["goal_centroids"]
        state = after_round(round_pass(unit, codes, state, chosen), state, chosen)
        distance = 2 * (1 - unit @ means.T)
        design = np.zeros((len(values), strata.n_levels))
        np.put_along_axis(design, strata.levels[codes], 1.0, axis=1)
        mass = design.T @ weights
        share = np.outer(design.mean(axis=0), weights.sum(axis=0))
        ratio = (mass + 1) / (share + 1)
        if flavour == "harmony2":
            ratio = (mass + share + 1) / (2 * share + 1)
        penalty = chosen.theta[:, None] * mass * np.log(ratio)
        entropy = (weights * np.log(np.maximum(weights, 1e-300))).sum()
        expected = (weights * distance).sum() + 0.1 * (entropy + penalty.sum())
        found = state["inner_objective"][-1]
        np.testing.assert_allclose(found, expected * 2000 / len(values), rtol=1e-5)


def test_parallel_updates_end_at_the_fixed_point_of_sequential_ones():
    values, batch, centroids = simulate()
    strata = one_variable(batch)
    chosen = make_settings("harmony2", strata, 12, inner_rounds=50, inner_tolerance=-1.0)
    state, unit, weights, _ = run_jacobi(values, batch, centroids, chosen, 1)
    similarity = np.exp(2 / chosen.sigma * unit.astype(float) @ state["centroids"].T)
    observed = np.eye(4)[batch].T @ weights.astype(float)
    factor = np.exp(chosen.log_penalty(observed))  # with one variable levels are strata
    update = similarity * factor[batch]
    update /= update.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(weights, update, atol=1e-5)

    # blocks do not see their own mass, so the sequential form never settles: it wanders about it
    rng, ends = np.random.default_rng(3), []
    for _ in range(2):
        found = harmonize(
            values,
            batch,
            centroids,
            lambda _: rng.permutation(len(values)),
            chosen,
            max_iterations=1,
        )
        ends.append(found.weights)
    wandering = np.abs(ends[0] - ends[1]).mean()
    assert max(np.abs(weights - end).mean() for end in ends) < wandering < 1e-3


@pytest.mark.parametrize("damping", [None, 0.5, 0.0])
@pytest.mark.parametrize("theta", [2.0, 4.0, 8.0])
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_strong_penalties_do_not_oscillate(flavour, theta, damping):
    values, batch, centroids = simulate()
    strata = one_variable(batch)
    chosen = make_settings(flavour, strata, 12, theta=theta, damping=damping)
    state, _, _, corrected = run_jacobi(values, batch, centroids, chosen)
    rng = np.random.default_rng(3)
    expected = harmonize(values, batch, centroids, lambda _: rng.permutation(len(values)), chosen)
    first = int(state["rounds"][0]) + 1
    falls = np.diff(state["inner_objective"][1:first])
    if damping is None:
        assert (falls < 1e-3 * abs(state["objective"][0])).all()
    else:  # a step that raises the objective is taken back, and the next one halved
        assert state["inner_objective"][first - 1] < state["objective"][0]
    relative = np.linalg.norm(corrected - expected.corrected) / np.linalg.norm(expected.corrected)
    assert relative < 0.05
    assert state["objective"][-1] < expected.objective[-1] + 0.02 * abs(state["objective"][0])


def test_the_penalty_fades_with_tau_and_is_one_for_each_variable():
    strata, _ = two_variables(np.repeat([0, 1], [90, 10]), np.arange(100) % 3)
    chosen = make_settings("harmony2", strata, 5, theta=[2.0, 1.0], tau=4.0)
    cells = np.array([90, 10, 34, 33, 33])
    expected = [2, 2, 1, 1, 1] * (1 - np.exp(-((cells / 20) ** 2)))
    np.testing.assert_allclose(chosen.theta, expected, rtol=1e-12)
    np.testing.assert_allclose(chosen.damping, expected / (2 + expected), rtol=1e-12)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_rows_of_zeros_are_defined(flavour):
    values, batch, centroids = simulate()
    values[:5] = 0
    chosen = make_settings(flavour, one_variable(batch), 12)
    state, _, weights, corrected = run_jacobi(values, batch, centroids, chosen, 2)
    assert np.isfinite(corrected).all()
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)
    without = Assignment.of(state["centroids"], np.zeros_like(state["log_penalty"]), 0.1)
    weights = soft_clusters(unit_rows(values)[:5], batch[:5], without)
    np.testing.assert_allclose(weights, 1 / 12, rtol=1e-6)
