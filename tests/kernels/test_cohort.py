from __future__ import annotations

import pickle
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest, norm

from stdist.kernels.cohort import CohortModel, cohort_model, simulate_block, true_mean_block
from stdist.kernels.cohort_cells import CELLS_PER_MM2


@cache
def small_cohort() -> CohortModel:
    return cohort_model(n_cells=3001, n_genes=40, n_batches=3, n_types=4, seed=11)


@cache
def atlas() -> CohortModel:
    return cohort_model(n_cells=200_000_000, n_genes=300, n_batches=8, seed=3)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 3001), max_size=6))
def test_any_split_into_blocks_gives_the_same_cells(cuts: list[int]) -> None:
    model = small_cohort()
    whole = simulate_block(model, 0, 3001)
    truth = true_mean_block(model, 0, 3001, corrected=False)
    edges = [0, *sorted(cuts), 3001]
    pairs = list(pairwise(edges))
    blocks = [simulate_block(model, start, stop) for start, stop in pairs]
    for name, expected in whole._asdict().items():
        joined = np.concatenate([getattr(block, name) for block in blocks])
        np.testing.assert_array_equal(joined, expected, err_msg=name)
        assert joined.dtype == expected.dtype
    means = [true_mean_block(model, start, stop, corrected=False) for start, stop in pairs]
    np.testing.assert_array_equal(np.concatenate(means), truth)


def test_types_and_shapes() -> None:
    block = simulate_block(small_cohort(), 10, 60)
    assert [(array.dtype.name, array.shape) for array in block] == [
        ("uint16", (50, 40)),
        ("int16", (50,)),
        ("int16", (50,)),
        ("float32", (50, 2)),
        ("float32", (50,)),
    ]
    assert simulate_block(small_cohort(), 7, 7).counts.shape == (0, 40)
    assert true_mean_block(small_cohort(), 7, 7).shape == (0, 40)


def test_survives_storage_as_arrays() -> None:
    model = small_cohort()
    arrays = model.to_arrays()
    assert all(array.dtype != object for array in arrays.values())
    again = CohortModel.from_arrays(pickle.loads(pickle.dumps(arrays)))
    for name, expected in simulate_block(model, 900, 1100)._asdict().items():
        np.testing.assert_array_equal(getattr(simulate_block(again, 900, 1100), name), expected)
    del arrays["slide_shift"], arrays["seed"]
    with pytest.raises(ValueError, match="seed, slide_shift missing"):
        CohortModel.from_arrays(arrays)


def test_seed_decides_everything() -> None:
    options = {"n_cells": 500, "n_genes": 30}
    first, again, other = (
        simulate_block(cohort_model(seed=seed, **options), 0, 500) for seed in (5, 5, 6)
    )
    np.testing.assert_array_equal(first.counts, again.counts)
    for name in ("counts", "cell_type", "spatial", "depth"):
        assert not np.array_equal(getattr(first, name), getattr(other, name))


def test_slides_are_consecutive_and_nearly_equal() -> None:
    model = small_cohort()
    batch = simulate_block(model, 0, 3001).batch
    assert (np.diff(batch) >= 0).all()
    assert np.bincount(batch).tolist() == np.diff(model.batch_offsets).tolist()
    assert sorted(np.bincount(batch)) == [1000, 1000, 1001]
    assert model.batch_offsets[-1] == 3001


@pytest.mark.parametrize("density", [0.05, 0.09, 0.25])
@pytest.mark.parametrize("options", [{}, {"n_types": 3, "n_batches": 1}, {"depth_sigma": 1.0}])
def test_density_is_met(density: float, options: dict[str, float]) -> None:
    model = cohort_model(n_cells=400_000, n_genes=200, density=density, seed=1, **options)  # type: ignore[arg-type]
    found = [
        (simulate_block(model, at, at + 200).counts > 0).mean() for at in range(0, 400_000, 10_000)
    ]
    assert np.mean(found) == pytest.approx(density, rel=0.1)


def test_default_panel_has_realistic_depth() -> None:
    model = cohort_model(n_cells=1_000_000)
    counts = simulate_block(model, 249_000, 251_000).counts
    assert 20 < counts.sum(axis=1, dtype=np.int64).mean() < 500


def test_counts_are_poisson_around_the_true_mean() -> None:
    model = cohort_model(
        n_cells=30_000, n_genes=60, n_batches=2, n_types=3, density=0.25, rate_sigma=2.5, seed=2
    )
    block = simulate_block(model, 0, 30_000)
    mean = true_mean_block(model, 0, 30_000, corrected=False).astype(float)
    assert mean.max() > 130  # both regimes of the quantile
    n_groups = 0
    for b in range(2):
        for t in range(3):
            cells = (block.batch == b) & (block.cell_type == t)
            assert cells.sum() > 1000
            expected = mean[cells].sum(axis=0)
            deviate = (block.counts[cells].sum(axis=0) - expected) / np.sqrt(expected)
            often = expected > 20
            assert np.abs(deviate[often]).max() < 4.5
            n_groups += often.sum()
    assert n_groups > 300
    # Pearson residuals: variance equals mean, zeros occur as often as exp(-mean).
    dispersion = ((block.counts - mean) ** 2 / mean)[:, mean.mean(axis=0) > 0.2].mean()
    assert dispersion == pytest.approx(1.0, abs=0.01)
    zero_share = np.exp(-mean)
    spread = np.sqrt((zero_share * (1 - zero_share)).sum())
    assert abs((block.counts == 0).sum() - zero_share.sum()) < 4.5 * spread


def test_truth_follows_the_documented_equation() -> None:
    model = small_cohort()
    block = simulate_block(model, 500, 2500)
    corrected = true_mean_block(model, 500, 2500)
    expected = block.depth[:, None] * model.type_rate[block.cell_type]
    np.testing.assert_allclose(corrected, expected, rtol=1e-6)
    effect = model.batch_effect[block.batch] + model.batch_type_effect[block.batch, block.cell_type]
    uncorrected = true_mean_block(model, 500, 2500, corrected=False)
    np.testing.assert_allclose(uncorrected, expected * np.exp(effect), rtol=1e-6)
    np.testing.assert_allclose(model.batch_effect.sum(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(model.batch_type_effect.sum(axis=0), 0, atol=1e-12)


def test_effects_have_the_requested_spread() -> None:
    model = cohort_model(n_cells=1000, n_genes=2000, n_batches=6, batch_sigma=0.4, seed=9)
    assert model.batch_effect.std() == pytest.approx(0.4, rel=0.05)
    assert model.batch_type_effect.std() == pytest.approx(0.15, rel=0.05)
    lone = cohort_model(n_cells=1000, n_genes=20, n_batches=1)
    assert not lone.batch_effect.any()
    assert not lone.batch_type_effect.any()


def test_markers_raise_their_type() -> None:
    model = cohort_model(n_cells=1000, n_genes=1000, n_types=5, markers_per_type=40, seed=4)
    assert model.marker.sum(axis=1).tolist() == [40] * 5
    log_rate = np.log(model.type_rate[:, model.marker.sum(axis=0) == 1])
    marker = model.marker[:, model.marker.sum(axis=0) == 1]
    raised = log_rate[marker].mean() - log_rate[~marker].mean()
    assert np.exp(raised) == pytest.approx(8.0, rel=0.1)


def test_cells_fill_the_slide_at_tissue_density() -> None:
    model = atlas()
    spatial = simulate_block(model, 0, 20_000).spatial
    area = model.batch_offsets[1] / CELLS_PER_MM2  # mm2
    width = 1000 * np.sqrt(area)
    for axis in range(2):
        assert kstest(spatial[:, axis] / width, "uniform").pvalue > 1e-4
    assert abs(np.asarray(np.corrcoef(spatial.T))[0, 1]) < 4.5 / np.sqrt(20_000)

    whole = simulate_block(small_cohort(), 0, 1000).spatial
    assert whole.max() < 1000 * np.sqrt(1000 / 2800)
    assert whole.max() > 0.98 * 1000 * np.sqrt(1000 / 2800)


def test_depth_is_lognormal_with_mean_one() -> None:
    depth = simulate_block(atlas(), 60_000_000, 60_020_000).depth
    assert kstest(np.log(depth), norm(-0.125, 0.5).cdf).pvalue > 1e-4


def test_types_form_domains_that_recur_on_every_slide() -> None:
    model = cohort_model(n_cells=40_000, n_genes=10, n_batches=2, n_types=6, seed=8)
    width = 1000 * np.sqrt(20_000 / CELLS_PER_MM2)
    block = simulate_block(model, 0, 40_000)
    assert np.bincount(block.cell_type, minlength=6).min() > 400
    square = (block.spatial // (width / 20)).astype(int).clip(0, 19) @ [20, 1]
    table = np.zeros((2, 400, 6))
    np.add.at(table, (block.batch, square, block.cell_type), 1)
    majority = table.argmax(axis=2)
    purity = table.max(axis=2).sum() / table.sum()
    assert 0.6 < purity < 0.95
    assert (majority[0] == majority[1]).mean() > 0.6
    assert (majority[0] != majority[1]).any()

    scattered = cohort_model(n_cells=40_000, n_genes=10, n_types=6, scatter_fraction=1.0, seed=8)
    share = np.bincount(simulate_block(scattered, 0, 10_000).cell_type, minlength=6) / 10_000
    np.testing.assert_allclose(share, 1 / 6, atol=4.5 * np.sqrt(1 / 6 * 5 / 6 / 10_000))


def test_far_rows_differ_from_near_rows() -> None:
    model = atlas()
    near = simulate_block(model, 0, 500)
    far = simulate_block(model, 2**27, 2**27 + 500)
    assert far.batch[0] == 5
    assert not np.array_equal(near.counts, far.counts)
    assert np.abs(np.corrcoef(near.depth, far.depth)[0, 1]) < 0.2


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_cells": 3},
        {"n_genes": 0},
        {"n_types": 0},
        {"n_batches": 0},
        {"n_batches": 40_000},
        {"seed": -1},
        {"density": 0.5},
        {"density": float("nan")},
        {"depth_sigma": -0.1},
        {"batch_sigma": float("inf")},
        {"batch_type_sigma": float("nan")},
        {"rate_sigma": -1.0},
        {"type_sigma": -1.0},
        {"markers_per_type": 1000},
        {"marker_factor": 0.5},
        {"scatter_fraction": 1.1},
        {"boundary_width": -1.0},
    ],
    ids=str,
)
def test_bad_parameters_are_refused_by_name(wrong: dict[str, float]) -> None:
    name = next(iter(wrong))
    with pytest.raises(ValueError, match=f"out of range: {name}="):
        cohort_model(**{"n_cells": 100_000, **wrong})  # type: ignore[arg-type]


def test_means_beyond_the_stored_type_are_refused() -> None:
    with pytest.raises(ValueError, match="mean counts could reach"):
        cohort_model(n_cells=1000, rate_sigma=5.0)


@pytest.mark.parametrize(("start", "stop"), [(-1, 5), (5, 4), (0, 3002)])
def test_rows_outside_the_cohort_are_refused(start: int, stop: int) -> None:
    with pytest.raises(ValueError, match="3001 cells"):
        simulate_block(small_cohort(), start, stop)
