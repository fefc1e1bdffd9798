"""How well imputed means agree with counts, gene by gene, and estimated with true proportions.

Scores of genes come from statistics of tiles of cells, which merge (Chan, Golub and LeVeque
1983): `score_sums` of each tile, `merge_score_sums` of neighbours, `gene_scores` at the end. The
Jensen-Shannon divergence needs the totals of the genes first, hence a second pass whose sums add
(`jensen_shannon_sums`), and the precision of the non-zeros needs whole columns.

Definitions are those of the SIID release, with natural signs: it negates the errors and the
divergences so that larger is better, and calls the symmetrised Kullback-Leibler divergence "js".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment
from scipy.special import rel_entr

from stdist.kernels.moments import dense_rows

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
ScoreSums = dict[str, Any]

CONSTANT = 1e-5
"""Standard deviation below which a gene counts as constant."""
_PSEUDOCOUNT = 1e-10
_LUMINANCE, _CONTRAST = 0.01**2, 0.03**2  # stabilisers of the structural similarity


def score_sums(observed: Any, estimated: Any) -> ScoreSums:
    """Statistics of one tile of cells, from which `gene_scores` follow.

    Parameters
    ----------
    observed, estimated
        Counts and imputed means, ``(n_cells, n_genes)``, dense or CSR, not negative.

    Returns
    -------
    dict
        float64: ``n``; for both, observed first, ``mean``, ``maximum`` and ``divergence``
        ``(2, n_genes)``; ``products`` ``(3, n_genes)`` of the deviations: squares of either and
        the mixed one.

    Examples
    --------
    >>> score_sums(np.array([[0.0], [2.0]]), np.array([[1.0], [3.0]]))["products"]
    array([[2.],
           [2.],
           [2.]])
    """
    both = np.stack([dense_rows(observed), dense_rows(estimated)])
    mean = both.mean(axis=1)
    x, y = both - mean[:, None]
    counts, means = both + _PSEUDOCOUNT
    log_ratio = np.log(counts) - np.log(means)
    return {
        "n": np.float64(both.shape[1]),
        "mean": mean,
        "products": np.stack([(x * x).sum(axis=0), (y * y).sum(axis=0), (x * y).sum(axis=0)]),
        "maximum": both.max(axis=1),
        "divergence": np.stack([counts * log_ratio, -means * log_ratio]).sum(axis=1),
    }


def merge_score_sums(left: Mapping[str, Any], right: Mapping[str, Any]) -> ScoreSums:
    """Statistics of two neighbours together.

    Examples
    --------
    >>> tiles = [score_sums(np.array([[x]]), np.array([[2 * x]])) for x in (1.0, 3.0)]
    >>> merge_score_sums(*tiles)["products"].ravel()
    array([2., 8., 4.])
    """
    n = left["n"] + right["n"]
    x, y = shift = right["mean"] - left["mean"]
    between = np.stack([x * x, y * y, x * y]) * (left["n"] * right["n"] / n)
    return {
        "n": n,
        "mean": left["mean"] + shift * (right["n"] / n),
        "products": left["products"] + right["products"] + between,
        "maximum": np.maximum(left["maximum"], right["maximum"]),
        "divergence": left["divergence"] + right["divergence"],
    }


def gene_scores(sums: Mapping[str, Any]) -> dict[str, Floats]:
    """Scores of every gene from the statistics of all cells.

    Parameters
    ----------
    sums
        Of `score_sums` and `merge_score_sums`.

    Returns
    -------
    dict
        float64 ``(n_genes,)`` each. ``pearson``, ``r2`` (its square) and ``ssim`` (structural
        similarity after division by the maxima): 0 where counts or means are constant, that is
        have a standard deviation below 1e-5. ``rmse`` between z-scores, those of a constant being
        0. ``symmetrised_kl``: mean of the two Kullback-Leibler divergences (nat) between counts
        and means as distributions over the cells, after adding 1e-10; NaN without counts.

    Examples
    --------
    >>> x = np.array([[0.0], [1.0], [2.0]])
    >>> scores = gene_scores(score_sums(x, 3 * x))
    >>> scores["r2"], scores["rmse"]
    (array([1.]), array([0.]))
    """
    n, mean, products = sums["n"], sums["mean"], sums["products"]
    constant = np.sqrt(products[:2] / n) < CONSTANT
    either = constant.any(axis=0)
    scale = np.where(either, 1.0, np.sqrt(products[0] * products[1]))
    pearson = np.where(either, 0.0, products[2] / scale).clip(-1.0, 1.0)
    total = n * (mean + _PSEUDOCOUNT)
    symmetrised = 0.5 * (sums["divergence"] / total).sum(axis=0)
    return {
        "r2": pearson**2,
        "pearson": pearson,
        "ssim": np.where(either, 0.0, _similarity(sums, either)),
        "rmse": np.sqrt((~constant).sum(axis=0) - 2.0 * pearson),
        "symmetrised_kl": np.where(mean[0] > 0, symmetrised, np.nan),
    }


def _similarity(sums: Mapping[str, Any], constant: NDArray[np.bool_]) -> Floats:
    """Structural similarity; as released, the covariance alone has n - 1 for its divisor."""
    n = sums["n"]
    maximum = np.where(constant, 1.0, sums["maximum"])
    mean, variance = sums["mean"] / maximum, sums["products"][:2] / n / maximum**2
    covariance = sums["products"][2] / max(n - 1, 1.0) / maximum.prod(axis=0)
    luminance = (2 * mean.prod(axis=0) + _LUMINANCE) / ((mean**2).sum(axis=0) + _LUMINANCE)
    structure = (2 * covariance + _CONTRAST) / (variance.sum(axis=0) + _CONTRAST)
    return luminance * structure


def jensen_shannon_sums(
    observed: Any, estimated: Any, observed_total: Floats, estimated_total: Floats
) -> Floats:
    """Contribution of one tile of cells to the Jensen-Shannon divergence of every gene.

    Counts and means are taken as distributions over all cells; the contributions of the tiles add
    up to the divergence, between 0 and ln 2.

    Parameters
    ----------
    observed, estimated
        As in `score_sums`.
    observed_total, estimated_total
        Sums over all cells, ``(n_genes,)``: ``n * mean`` of the merged `score_sums`.

    Returns
    -------
    ndarray
        float64 ``(n_genes,)``, nat; NaN where a total is 0.

    Examples
    --------
    >>> x, y = np.array([[1.0], [0.0]]), np.array([[0.0], [5.0]])
    >>> bool(np.isclose(jensen_shannon_sums(x, y, x.sum(axis=0), y.sum(axis=0)), np.log(2)))
    True
    """
    with np.errstate(invalid="ignore"):
        p, q = dense_rows(observed) / observed_total, dense_rows(estimated) / estimated_total
    return _jensen_shannon(p, q, axis=0)


def nonzero_precision(observed: ArrayLike, estimated: ArrayLike) -> Floats:
    """Share of cells with a count among the highest imputed, as many as cells have a count.

    Parameters
    ----------
    observed, estimated
        Counts and imputed means of all cells, ``(n_cells, n_genes)``, dense.

    Returns
    -------
    ndarray
        float64 ``(n_genes,)``; 0 without counts. Of equal means the last cells are taken.

    Examples
    --------
    >>> nonzero_precision([[1], [0], [2], [0]], [[0.5], [0.7], [0.9], [0.1]])
    array([0.5])
    """
    present = np.asarray(observed) > 0
    rank = np.argsort(np.asarray(estimated), axis=0, kind="stable")
    n_present = present.sum(axis=0)
    top = np.arange(len(present))[:, None] >= len(present) - n_present
    hits = (np.take_along_axis(present, rank, axis=0) & top).sum(axis=0)
    return hits / np.maximum(n_present, 1)


def matched_js(true: ArrayLike, estimated: ArrayLike) -> tuple[Floats, Ints]:
    """Jensen-Shannon divergence of every spot after matching factors to cell types.

    Columns are matched one to one by the Hungarian algorithm at the least sum of squared
    differences over the spots. Where one side has more columns, what is left meets zeros.

    Parameters
    ----------
    true, estimated
        Proportions, ``(n_spots, n_types)`` and ``(n_spots, n_factors)``, not negative; rows are
        scaled to sum 1. Spots with a row of zeros or NaN on either side have no divergence and no
        part in the matching.

    Returns
    -------
    tuple
        float64 ``(n_spots,)``, nat, between 0 and ln 2, NaN without proportions; and int64
        ``(n_factors,)``, the type of each factor, -1 if it has none.

    Examples
    --------
    >>> divergence, type_of_factor = matched_js([[1, 0], [0, 1]], [[0, 2], [3, 0]])
    >>> divergence, type_of_factor
    (array([0., 0.]), array([1, 0]))
    """
    p, q = np.asarray(true, np.float64), np.asarray(estimated, np.float64)
    n_types, n_factors = p.shape[1], q.shape[1]
    width = max(n_types, n_factors)
    p, q = (np.pad(x, ((0, 0), (0, width - x.shape[1]))) for x in (p, q))
    known = (p.sum(axis=1) > 0) & (q.sum(axis=1) > 0)
    p, q = (x[known] / x[known].sum(axis=1, keepdims=True) for x in (p, q))
    cost = (p**2).sum(axis=0)[:, None] - 2 * p.T @ q + (q**2).sum(axis=0)
    types, factors = linear_sum_assignment(cost)
    divergence = np.full(len(known), np.nan)
    divergence[known] = _jensen_shannon(p, q[:, factors], axis=1).clip(0.0)
    type_of_factor = np.empty(width, np.int64)
    type_of_factor[factors] = np.where(types < n_types, types, -1)
    return divergence, type_of_factor[:n_factors]


def _jensen_shannon(p: Floats, q: Floats, axis: int) -> Floats:
    middle = (p + q) / 2
    return 0.5 * (rel_entr(p, middle) + rel_entr(q, middle)).sum(axis=axis)
