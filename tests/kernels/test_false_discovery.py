"""Which genes to correct: nothing without batch effects, nearly all that have one."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from scipy import stats

from stdist.kernels import false_discovery
from stdist.kernels.false_discovery import affected_genes, share_without_effect


def test_share_without_effect():
    rng = np.random.default_rng(0)
    p = np.concatenate([rng.uniform(size=6000), rng.beta(0.1, 10, 4000)])
    assert share_without_effect(p) == pytest.approx(0.6, abs=0.03)
    assert share_without_effect(rng.beta(0.1, 10, 3)) == pytest.approx(2 / 3)
    assert share_without_effect(np.ones(5)) == 1


@pytest.mark.parametrize(("n_genes", "share"), [(5, 0.05), (150, 0.01), (2000, 0.005)])
def test_data_without_batch_effects_are_left_alone(n_genes, share):
    rng = np.random.default_rng(n_genes)
    found = [affected_genes(rng.uniform(size=n_genes), rng.random(n_genes)) for _ in range(400)]
    times = sum(f.any() for f in found)
    assert stats.binomtest(times, 400, 0.05).pvalue > 1e-3
    assert np.mean(found) < share


def test_share_of_unaffected_genes_among_the_corrected_is_bounded():
    rng = np.random.default_rng(5)
    false, kept, strict = [], [], []
    for _ in range(50):
        counts = rng.lognormal(6, 1.5, 1000)
        affected = rng.random(1000) < 0.3
        score = rng.normal(size=1000) + affected * rng.normal(0, np.sqrt(counts / 30), 1000)
        p = 2 * stats.norm.sf(np.abs(score))
        found = affected_genes(p, counts)
        false.append((found & ~affected).sum() / found.sum())
        kept.append(found[affected].mean())
        strict.append((stats.false_discovery_control(p) < 0.05)[affected].mean())
    assert 0.4 < np.mean(false) <= 0.6
    assert np.mean(kept) > np.mean(strict) + 0.1


def test_weak_effects_of_sparse_genes_count_as_effects():
    """All genes are affected; only the quarter with most counts shows it."""
    rng = np.random.default_rng(6)
    counts = np.concatenate([np.full(300, 10.0), np.full(100, 1e4)])
    score = rng.normal(0, np.where(counts > 100, 10.0, 1.05))
    found = affected_genes(2 * stats.norm.sf(np.abs(score)), counts)
    assert found.mean() > 0.95
    assert affected_genes(2 * stats.norm.sf(np.abs(score)), counts[::-1]).mean() < 0.8


def test_untested_genes_are_left_alone():
    assert not affected_genes([np.nan, np.nan], [0.0, 0.0]).any()
    assert affected_genes([np.nan, 1e-9, 1e-9], [0.0, 5.0, 5.0]).tolist() == [False, True, True]
    assert affected_genes([], []).shape == (0,)


def test_doctests():
    assert doctest.testmod(false_discovery).failed == 0
