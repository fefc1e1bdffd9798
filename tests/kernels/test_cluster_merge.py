from __future__ import annotations

import doctest
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stdist.kernels import cluster_merge
from stdist.kernels.cluster_merge import (
    DROPPED,
    MERGE_THRESHOLD,
    apply_merge,
    connected_groups,
    drop_empty_groups,
    merge_groups,
    weight_sums,
)

FIXTURE = Path(__file__).resolve().parents[3] / "shared/fixtures/crescendo/merge.npz"


def add_sums(weights: np.ndarray, n_chunks: int) -> tuple[int, np.ndarray, np.ndarray]:
    counts, sums, grams = zip(*map(weight_sums, np.array_split(weights, n_chunks)), strict=True)
    return sum(counts), np.sum(sums, axis=0), np.sum(grams, axis=0)


def reference_scan(weights: np.ndarray, threshold: float) -> np.ndarray:
    """Scan all pairs of columns with NumPy's correlation, undefined ones skipped."""
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = np.corrcoef(weights.T)
    labels = list(range(weights.shape[1]))
    for i in range(len(labels)):
        for j in range(i + 1, len(labels)):
            if correlation[i, j] > threshold:
                labels[i] = labels[j] = min(labels[i], labels[j])
    return np.searchsorted(np.unique(labels), labels)


@pytest.mark.skipif(not FIXTURE.exists(), reason="needs ../shared/fixtures")
@pytest.mark.parametrize("n_chunks", [1, 3])
@pytest.mark.parametrize("case", ["merge", "chain"])
def test_reproduces_the_released_program(case: str, n_chunks: int) -> None:
    fixture = np.load(FIXTURE)
    weights, expected = fixture[f"{case}_in"].T, fixture[f"{case}_out"].T
    threshold = float(np.float32(fixture[f"{case}_threshold"]))
    merged = apply_merge(weights, merge_groups(*add_sums(weights, n_chunks), threshold))
    np.testing.assert_allclose(merged, expected, rtol=1e-15, atol=1e-16)


@pytest.mark.skipif(not FIXTURE.exists(), reason="needs ../shared/fixtures")
def test_scan_is_not_a_transitive_closure() -> None:
    fixture = np.load(FIXTURE)
    sums = weight_sums(fixture["chain_in"].T)
    threshold = float(fixture["chain_threshold"])
    assert merge_groups(*sums, threshold).tolist() == [0, 1, 0, 0]
    assert connected_groups(*sums, threshold).tolist() == [0, 0, 0, 0]


@settings(max_examples=50)
@given(seed=st.integers(0, 10_000), n_chunks=st.integers(1, 7))
def test_equals_scan_of_the_correlation_matrix(seed: int, n_chunks: int) -> None:
    rng = np.random.default_rng(seed)
    factors = rng.gamma(0.3, size=(150, 3))
    mixture = factors[:, rng.integers(0, 3, size=9)]
    weights = mixture * rng.uniform(0.5, 2, 9) + rng.uniform(0, 0.2, 9) * rng.random((150, 9))
    weights[:, rng.integers(9)] = 0.0
    weights[:, rng.integers(9)] = 0.3
    with np.errstate(invalid="ignore", divide="ignore"):
        distance = np.abs(np.corrcoef(weights.T) - MERGE_THRESHOLD)
    assume(np.nanmin(distance) > 1e-9)
    groups = merge_groups(*add_sums(weights, n_chunks))
    assert groups.tolist() == reference_scan(weights, MERGE_THRESHOLD).tolist()


def test_constant_and_empty_clusters_are_not_merged() -> None:
    weights = np.random.default_rng(0).random((1000, 6))
    weights[:, 1] = weights[:, 4] = 0.1
    weights[:, 2] = weights[:, 5] = 0.0
    assert merge_groups(*weight_sums(weights)).tolist() == [0, 1, 2, 3, 4, 5]


def test_dropping_keeps_mass_of_other_groups() -> None:
    weights = np.random.default_rng(1).random((50, 5))
    weights[:, 2] = 1e-10
    groups = drop_empty_groups(np.array([0, 1, 2, 1, 3]), weights.sum(axis=0), 50)
    assert groups.tolist() == [0, 1, DROPPED, 1, 2]
    merged = apply_merge(weights, groups)
    np.testing.assert_array_equal(merged[:, 1], weights[:, 1] + weights[:, 3])
    assert merged.shape == (50, 3)


def test_dropping_needs_a_group_with_mass() -> None:
    with pytest.raises(ValueError, match="every cluster is empty"):
        drop_empty_groups(np.array([0, 1]), np.zeros(2), 10)


def test_rows_do_not_depend_on_the_chunk() -> None:
    weights = np.random.default_rng(2).random((101, 12)).astype(np.float32)
    groups = np.random.default_rng(3).integers(0, 4, 12)
    whole = apply_merge(weights, groups)
    parts = np.concatenate([apply_merge(part, groups) for part in np.array_split(weights, 5)])
    assert whole.dtype == np.float32
    np.testing.assert_array_equal(whole, parts)


def test_examples() -> None:
    result = doctest.testmod(cluster_merge)
    assert result.attempted > 0
    assert result.failed == 0
