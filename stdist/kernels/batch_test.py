"""Test whether a gene has a batch effect: scores of batches within clusters.

The residuals of a model without batches, ``r = y - n rate``, are summed by (batch, cluster). Their
variance under that model is ``n rate + phi (n rate)**2``, so a batch that is sequenced deeper
scatters more; it is scaled to what the residuals of each cluster show. No distribution of the
counts is assumed but this ratio of variances, and overdispersed genes are not taken for affected
ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import cho_factor, cho_solve
from scipy.special import chdtrc, xlogy

from stdist.kernels.power_sums import residual_moments

Floats = NDArray[np.float64]

SMALLEST_STRATUM = 4  # cells below which nothing is known of their scatter
_NULL_SHARE = 1e-9  # of the largest eigenvalue: directions in which no batch can be told apart
_JITTER = 1e-10  # of the mean squared weight: keeps clusters without mass solvable
_PANEL = 256  # genes whose covariances are held at once
_CERTAIN = 0.99  # largest p value in a combination: a test that says nothing is no evidence against


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
        One cluster per cell, within which batches are compared: drawn from the weights, as for a
        stratified sample.
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
    cell = batch * n_strata + strata
    of_both = _membership(cell, n_batches * n_strata)
    shape = (n_batches, n_strata, -1)
    means = np.maximum(dense - residuals, 0.0)
    excess = (residuals**2 - means).sum(axis=0)
    phi = _ratio(np.maximum(excess, 0.0), (means**2).sum(axis=0))
    total_depth = np.maximum(of_stratum @ depth, np.finfo(float).tiny)
    share = (of_stratum @ residuals) / total_depth[:, None]
    centred = residuals - depth[:, None] * share[strata]
    squares = centred**2
    return _test(
        Sums(
            np.bincount(cell, minlength=n_batches * n_strata)
            .reshape(n_batches, n_strata)
            .astype(np.float64),
            (of_both @ depth).reshape(n_batches, n_strata),
            (of_both @ dense).reshape(shape),
            (of_both @ means).reshape(shape),
            (of_both @ (means + phi * means**2)).reshape(shape),
            of_stratum @ squares,
            of_stratum @ squares**2,
        )
    )


def compare_strata(
    counts: Floats,
    depth: Floats,
    depth_squares: Floats,
    cells: NDArray[Any],
    powers: Floats,
    depth_powers: Floats,
) -> BatchTest:
    """Test every gene on cells with one label each, through sums over strata.

    Parameters
    ----------
    counts : (n_batches, n_labels, n_genes) float64
        Sums of counts.
    depth, depth_squares : (n_batches, n_labels) float64
        Sums of depths and of their squares.
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
    squares = (rate**2 * depth_squares.sum(axis=0)[:, None]).sum(axis=0)
    excess = second.sum(axis=0) - total.sum(axis=0)
    phi = _ratio(np.maximum(excess, 0.0), squares)
    means = rate * depth[:, :, None]
    variances = means + phi * rate**2 * depth_squares[:, :, None]
    return _test(Sums(cells.astype(np.float64), depth, counts, means, variances, second, fourth))


class Sums(NamedTuple):
    """What the test needs.

    By (batch, stratum): ``cells`` and ``depth``, ``counts``, expected ``means`` and relative
    ``variances`` of residuals without batch effects. By stratum: sums of the residuals' squares
    (``second``) and fourth powers (``fourth``), where the residuals sum to zero.
    """

    cells: Floats
    depth: Floats
    counts: Floats
    means: Floats
    variances: Floats
    second: Floats
    fourth: Floats

    @property
    def share(self) -> Floats:
        """Share of each batch in the depth of a stratum."""
        return _ratio(self.depth, self.depth.sum(axis=0))

    @property
    def deviations(self) -> Floats:
        """Residuals of each batch less its share of those of the stratum."""
        residuals = self.counts - self.means
        return residuals - self.share[:, :, None] * residuals.sum(axis=0)

    def of(self, strata: Any, genes: Any) -> Sums:
        """Return the sums of some strata and genes."""
        by_gene = (values[:, strata][..., genes] for values in self[2:5])
        by_stratum = (values[strata][..., genes] for values in self[5:])
        return Sums(self.cells[:, strata], self.depth[:, strata], *by_gene, *by_stratum)


def _ratio(above: Floats, below: Floats) -> Floats:
    """Quotient, 0 where the divisor is not positive."""
    shape = np.broadcast_shapes(above.shape, below.shape)
    return np.divide(above, below, out=np.zeros(shape), where=below > 0)


def _membership(codes: NDArray[Any], n_codes: int) -> sparse.csr_array:
    cells = np.arange(len(codes))
    return sparse.csr_array((np.ones(len(codes)), (codes, cells)), shape=(n_codes, len(codes)))


def _test(sums: Sums) -> BatchTest:
    cells, n_genes = sums.cells, sums.counts.shape[2]
    testable = ((cells > 0).sum(axis=0) > 1) & (cells.sum(axis=0) >= SMALLEST_STRATUM)
    main, association = np.ones(n_genes), np.ones(n_genes)
    for first in range(0, n_genes, _PANEL) if testable.any() else ():
        panel = slice(first, first + _PANEL)
        main[panel], association[panel] = _test_panel(sums.of(testable, panel))
    p_value = cauchy_combination(np.stack([main, association]))
    return BatchTest(main, association, p_value, _dispersion(sums))


def _dispersion(sums: Sums) -> Floats:
    """Residual variance within batch and stratum over the mean, at least 1."""
    within = sums.deviations**2 / np.maximum(sums.cells, 1.0)[:, :, None]
    freedom = max(sums.cells.sum() - (sums.cells > 0).sum(), 1.0)
    variance = (sums.second.sum(axis=0) - within.sum(axis=(0, 1))) / freedom
    mean = sums.counts.sum(axis=(0, 1)) / max(sums.cells.sum(), 1.0)
    dispersion = np.divide(variance, mean, out=np.ones_like(mean), where=mean > 0)
    return np.maximum(dispersion, 1.0)


def _test_panel(sums: Sums) -> tuple[Floats, Floats]:
    """P values of a shift common to all strata, and of any differences."""
    n = sums.cells.sum(axis=0)
    scatter = sums.second * (n / (n - 1.0))[:, None]
    variances = sums.variances * _ratio(scatter, sums.variances.sum(axis=0))
    share, deviations = sums.share, sums.deviations
    inverse = _ratio(np.ones_like(sums.depth), sums.depth)
    n_batches, _, n_genes = deviations.shape
    covariance = np.zeros((n_genes, n_batches, n_batches))
    mean, variance = np.zeros(n_genes), np.zeros(n_genes)
    for stratum in range(len(n)):
        p, w = share[:, stratum], inverse[:, stratum]
        one = _covariance(p, variances[:, stratum])
        covariance += one
        mean += np.einsum("gaa,a->g", one, w)
        variance += 2.0 * np.einsum("gab,a,b->g", one**2, w, w)
        # fourth cumulants: the fourth powers of a batch by its share of the variance
        spread, c = variances[:, stratum], np.maximum(sums.cells[:, stratum], 1.0)
        fourth = _ratio(spread, spread.sum(axis=0)) * sums.fourth[stratum]
        leverage = np.where(w > 0, w - 1.0 / sums.depth[:, stratum].sum(), 0.0) ** 2
        variance += leverage @ (fourth - 3.0 * spread**2 / c[:, None])
    statistic = (deviations**2 * inverse[:, :, None]).sum(axis=(0, 1))
    tested = variance > 0
    scale = np.divide(variance, 2.0 * mean, out=np.ones_like(mean), where=tested)
    freedom = np.divide(mean, scale, out=np.ones_like(mean), where=tested)
    association = np.where(tested, chdtrc(freedom, statistic / scale), 1.0)
    return _main_effect(covariance, deviations.sum(axis=1), sums), association


def _covariance(share: Floats, variances: Floats) -> Floats:
    """Covariances ``(n_genes, n_batches, n_batches)`` of the deviations of a stratum.

    A deviation is the batch's sum of independent residuals less its share of the total.
    """
    crossed = share[None, :, None] * variances.T[:, None, :]
    total = variances.sum(axis=0)[:, None, None]
    found = share[:, None] * share * total - crossed - crossed.transpose(0, 2, 1)
    diagonal = np.arange(len(share))
    found[:, diagonal, diagonal] += variances.T
    return found


def _main_effect(covariance: Floats, totals: Floats, sums: Sums) -> Floats:
    """P values of the deviations ``(n_batches, n_genes)``, summed over strata."""
    values, axes = np.linalg.eigh(covariance)
    projected = np.einsum("gab,ag->gb", axes, totals)
    known = values > _NULL_SHARE * values[:, -1:]
    score = np.divide(projected**2, values, out=np.zeros_like(values), where=known).sum(axis=1)
    freedom = known.sum(axis=1)
    # few counts are skewed: the likelihood ratio of Poisson totals has the right tails
    expected = sums.means.sum(axis=1)
    counts = np.maximum(expected + totals, 0.0)
    squares = _ratio(totals**2, expected).sum(axis=0)
    ratio = 2.0 * (xlogy(counts, _ratio(counts, expected)) - totals).sum(axis=0)
    score *= np.divide(ratio, squares, out=np.ones_like(score), where=squares > 1e-3)
    return np.where(freedom > 0, chdtrc(np.maximum(freedom, 1), np.maximum(score, 0.0)), 1.0)


def cauchy_combination(p_values: Floats) -> Floats:
    """Combine p values of dependent tests along the first axis (Liu and Xie 2020, JASA 115:393).

    Examples
    --------
    >>> cauchy_combination(np.array([[0.3, 1e-20], [0.3, 0.9]])).round(22)
    array([3.e-01, 2.e-20])
    """
    inside = np.clip(p_values, 1e-300, _CERTAIN)
    statistic = (1.0 / np.tan(np.pi * inside)).mean(axis=0)
    combined = np.arctan2(1.0, statistic) / np.pi
    return np.where((p_values == 1.0).all(axis=0), 1.0, combined)
