"""Test whether a gene has a batch effect: permutation of batches within clusters.

The residuals of a model without batches are summed by (batch, cluster). If batches differ only
in their mix of clusters, batch labels are exchangeable within a cluster, and the moments of these
sums under all permutations follow from the residuals themselves (Pitman 1937): no distribution of
the counts is assumed, and overdispersed genes are not taken for affected ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import cho_factor, cho_solve
from scipy.special import chdtrc

from stdist.kernels.power_sums import residual_moments

Floats = NDArray[np.float64]

SMALLEST_STRATUM = 4  # cells below which the permutation variance is undefined
_NULL_SHARE = 1e-9  # of the largest eigenvalue: directions in which no batch can be told apart
_JITTER = 1e-10  # of the mean squared weight: keeps clusters without mass solvable


@dataclass(frozen=True)
class BatchTest:
    """Result for every gene; arrays are float64 of shape (n_genes,).

    Attributes
    ----------
    main
        P value of equal rates in all batches against a shift common to all clusters
        (generalised Cochran-Mantel-Haenszel, `n_batches - 1` degrees of freedom).
    association
        P value against any differences, of other sign in other clusters too.
    p_value
        Both combined (Cauchy combination, Liu and Xie 2020). 1 where nothing can be tested.
    dispersion
        Residual variance within batch and cluster over the mean count, at least 1.
    """

    main: Floats
    association: Floats
    p_value: Floats
    dispersion: Floats


def linear_residuals(counts: Floats, weights: Floats, depth: Floats) -> Floats:
    """Counts less ``depth_i * sum_k weights_ik rate_k``, the weighted least squares fit.

    Parameters
    ----------
    counts : (n_cells, n_genes) float64
    weights : (n_cells, n_clusters) float64
    depth : (n_cells,) float64
        Positive; the variance of a count is taken to be proportional to it.

    Returns
    -------
    (n_cells, n_genes) float64
        With one cluster per cell, the rate of a cluster is its counts over its depth.

    Examples
    --------
    >>> linear_residuals(np.array([[1.0], [5.0]]), np.ones((2, 1)), np.array([1.0, 2.0]))
    array([[-1.],
           [ 1.]])
    """
    gram = (weights * depth[:, None]).T @ weights
    gram[np.diag_indices_from(gram)] += _JITTER * np.trace(gram) / len(gram)
    rates = cho_solve(cho_factor(gram), weights.T @ counts)
    return counts - depth[:, None] * (weights @ rates)


def compare_batches(
    counts: Any,
    weights: Floats,
    batch: NDArray[Any],
    depth: Floats,
    strata: NDArray[Any],
    n_batches: int,
) -> BatchTest:
    """Test every gene on cells with soft clusters.

    Parameters
    ----------
    counts : (n_cells, n_genes) array or scipy sparse
    weights : (n_cells, n_clusters) float64
        Cluster membership; the model without batches is linear in it.
    batch : (n_cells,) int
        Codes ``0 .. n_batches - 1``.
    depth : (n_cells,) float64
        Total counts of the cells, positive.
    strata : (n_cells,) int
        One cluster per cell, within which batches are permuted: drawn from the weights, as for a
        stratified sample (whose cells must be exchangeable within batch and stratum).
    n_batches : int

    Returns
    -------
    BatchTest
        A gene's result does not depend on the others but for rounding.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> batch = np.arange(200) % 2
    >>> counts = rng.poisson(np.column_stack([np.full(200, 1.0), 1.0 + batch]))
    >>> one = np.ones(200)
    >>> compare_batches(counts, one[:, None], batch, one, 0 * batch, 2).p_value < 0.01
    array([False,  True])
    """
    dense = counts.toarray() if sparse.issparse(counts) else np.asarray(counts)
    residuals = linear_residuals(dense.astype(np.float64), weights, depth)
    n_strata = int(strata.max()) + 1
    of_stratum = _membership(strata, n_strata)
    cells = np.bincount(batch * n_strata + strata, minlength=n_batches * n_strata)
    sums = _membership(batch * n_strata + strata, n_batches * n_strata) @ residuals
    present = np.maximum(np.bincount(strata, minlength=n_strata), 1)
    centred = residuals - (of_stratum @ residuals / present[:, None])[strata]
    squares = centred**2
    return _test(
        cells.reshape(n_batches, n_strata).astype(np.float64),
        sums.reshape(n_batches, n_strata, -1),
        of_stratum @ squares,
        of_stratum @ squares**2,
        dense.sum(axis=0, dtype=np.float64),
    )


def compare_strata(
    counts: Floats, depth: Floats, cells: NDArray[Any], powers: Floats, depth_powers: Floats
) -> BatchTest:
    """Test every gene on cells with one label each, through sums over strata.

    Parameters
    ----------
    counts : (n_batches, n_labels, n_genes) float64
        Sums of counts.
    depth : (n_batches, n_labels) float64
        Sums of depths.
    cells : (n_batches, n_labels) int
        Cells with a depth above zero.
    powers, depth_powers
        :func:`stdist.kernels.power_sums.power_sums` of all batches together.

    Returns
    -------
    BatchTest
        As of :func:`compare_batches` on these cells, with labels for weights and strata.
    """
    total = counts.sum(axis=0)
    label_depth = depth.sum(axis=0)[:, None]
    rate = np.divide(total, label_depth, out=np.zeros_like(total), where=label_depth > 0)
    second, fourth = residual_moments(rate, powers, depth_powers)
    sums = counts - rate * depth[:, :, None]  # over batches they are zero, as the mean residual
    return _test(cells.astype(np.float64), sums, second, fourth, total.sum(axis=0))


def permutation_variance(
    n: Floats, second: Floats, fourth: Floats, trace: Floats, diagonal: Floats
) -> Floats:
    """Variance of ``x' A x`` over permutations of x, for a projection A with ``A 1 = 0``.

    Parameters
    ----------
    n
        Length of x, at least 4.
    second, fourth
        ``sum x**2`` and ``sum x**4``, where ``sum x = 0``.
    trace
        Trace of A, which is also that of its square.
    diagonal
        Sum of the squares of its diagonal.

    Returns
    -------
    ndarray
        Of the shape that the arguments broadcast to.
    """
    # expected products of one to four different elements, and the sums of A that go with them
    pairs = n * (n - 1.0)
    triples = pairs * (n - 2.0)
    terms = (
        (diagonal, fourth / n),
        (trace**2 + 2.0 * trace - 3.0 * diagonal, (second**2 - fourth) / pairs),
        (-4.0 * diagonal, -fourth / pairs),
        (12.0 * diagonal - 4.0 * trace - 2.0 * trace**2, (2.0 * fourth - second**2) / triples),
        (
            trace**2 + 2.0 * trace - 6.0 * diagonal,
            (3.0 * second**2 - 6.0 * fourth) / (triples * (n - 3.0)),
        ),
    )
    mean = trace * second / (n - 1.0)
    return np.maximum(sum(weight * moment for weight, moment in terms) - mean**2, 0.0)


def _membership(codes: NDArray[Any], n_codes: int) -> sparse.csr_array:
    cells = np.arange(len(codes))
    return sparse.csr_array((np.ones(len(codes)), (codes, cells)), shape=(n_codes, len(codes)))


def _test(
    cells: Floats, sums: Floats, second: Floats, fourth: Floats, counted: Floats
) -> BatchTest:
    """Both tests from residuals summed by (batch, stratum) and their moments by stratum."""
    within = sums**2 / np.maximum(cells, 1.0)[:, :, None]
    scatter = (second + sums.sum(axis=0) ** 2 / np.maximum(cells.sum(axis=0), 1.0)[:, None]).sum(0)
    freedom = max(cells.sum() - (cells > 0).sum(), 1.0)
    variance = (scatter - within.sum(axis=(0, 1))) / freedom
    mean = counted / max(cells.sum(), 1.0)
    dispersion = np.divide(variance, mean, out=np.ones_like(mean), where=mean > 0)

    testable = ((cells > 0).sum(axis=0) > 1) & (cells.sum(axis=0) >= SMALLEST_STRATUM)
    cells, sums = cells[:, testable], sums[:, testable]
    second, fourth = second[testable], fourth[testable]
    n = cells.sum(axis=0)
    deviations = sums - cells[:, :, None] * (sums.sum(axis=0) / n[:, None])
    spread = second / (n - 1.0)[:, None]
    main = _main_effect(cells, deviations.sum(axis=1), spread, n)
    association = _association(cells, deviations, second, fourth, n)
    p_value = cauchy_combination(np.stack([main, association]))
    return BatchTest(main, association, p_value, np.maximum(dispersion, 1.0))


def _main_effect(cells: Floats, totals: Floats, spread: Floats, n: Floats) -> Floats:
    """P values of the deviations summed over strata, ``(n_batches, n_genes)``."""
    kernel = -cells[:, None] * cells[None] / n
    diagonal = np.arange(len(cells))
    kernel[diagonal, diagonal] += cells
    covariance = np.einsum("abk,kg->gab", kernel, spread)
    values, axes = np.linalg.eigh(covariance)
    projected = np.einsum("gab,ag->gb", axes, totals)
    known = values > _NULL_SHARE * values[:, -1:]
    statistic = np.divide(projected**2, values, out=np.zeros_like(values), where=known).sum(axis=1)
    freedom = known.sum(axis=1)
    return np.where(freedom > 0, chdtrc(np.maximum(freedom, 1), statistic), 1.0)


def _association(
    cells: Floats, deviations: Floats, second: Floats, fourth: Floats, n: Floats
) -> Floats:
    """P values of the sum of squares between batches within strata."""
    inverse = np.divide(1.0, cells, out=np.zeros_like(cells), where=cells > 0)
    statistic = (deviations**2 * inverse[:, :, None]).sum(axis=(0, 1))
    trace = (cells > 0).sum(axis=0) - 1.0
    diagonal = (cells * (inverse - 1.0 / n) ** 2).sum(axis=0)
    mean = ((trace / (n - 1.0))[:, None] * second).sum(axis=0)
    column = (values[:, None] for values in (n, trace, diagonal))
    length, rank, squared = column
    variance = permutation_variance(length, second, fourth, rank, squared).sum(axis=0)
    tested = variance > 0
    scale = np.divide(variance, 2.0 * mean, out=np.ones_like(mean), where=tested)
    freedom = np.divide(mean, scale, out=np.ones_like(mean), where=tested)
    return np.where(tested, chdtrc(freedom, statistic / scale), 1.0)


def cauchy_combination(p_values: Floats) -> Floats:
    """Combine p values of dependent tests along the first axis (Liu and Xie 2020, JASA 115:393).

    Examples
    --------
    >>> cauchy_combination(np.array([[0.3, 1e-20], [0.3, 0.9]])).round(22)
    array([3.e-01, 2.e-20])
    """
    inside = np.clip(p_values, 1e-300, 1.0 - 1e-15)
    statistic = (1.0 / np.tan(np.pi * inside)).mean(axis=0)
    combined = np.arctan2(1.0, statistic) / np.pi
    return np.where((p_values == 1.0).all(axis=0), 1.0, combined)
