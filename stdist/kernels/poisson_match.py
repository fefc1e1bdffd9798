"""Batch correction of counts: every count of a tile is moved to its target distribution.

Implements the matching step of Crescendo (Millard et al., Genome Biology 2025, Eq. 5) as an exact
randomised probability integral transform (:mod:`stdist.kernels.poisson_quantile`).  The type of
the counts chooses the processor: NumPy arrays run in Numba, CuPy arrays in CUDA.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stdist.kernels.array_module import array_module
from stdist.kernels.match_checks import (
    NO_PROBLEM,
    check_array,
    check_codes,
    check_depth,
    check_tile,
    raise_problem,
)
from stdist.kernels.portable_math import exps


def _backend(counts: Any) -> tuple[Any, Any]:
    """Array library of the counts and the module with its kernels."""
    if type(counts).__module__.partition(".")[0] == "cupy":
        return import_module("cupy"), import_module("stdist.kernels.poisson_match_cuda")
    return np, import_module("stdist.kernels.poisson_match_numba")


def rates(intercept: ArrayLike, coefficients: ArrayLike) -> NDArray[np.float64]:
    """Rates per label from log-linear coefficients, with the bits that :func:`match_soft` computes.

    Parameters
    ----------
    intercept
        Log rate per unit of depth, shape (..., n_genes).
    coefficients
        Log effect of each label, shape (..., n_labels, n_genes).

    Returns
    -------
    ndarray of float64, shape (..., n_labels, n_genes)
        ``exp(intercept + coefficients)``. With these :func:`match_labels` gives bit for bit the
        result of :func:`match_soft` with weights that are 1 at the label and 0 elsewhere.

    Examples
    --------
    >>> rates(np.zeros(2), np.zeros((3, 2))).shape
    (3, 2)
    """
    xp = array_module(intercept)
    if xp is not np:  # small tables, and only the host has the exponential that matching uses
        on_host: Any = (intercept, coefficients)
        return xp.asarray(rates(*(values.get() for values in on_host)))
    return exps(np.asarray(intercept)[..., None, :] + np.asarray(coefficients))


def match_soft(
    counts: Any,
    weights: Any,
    batch: Any,
    depth: Any,
    source_intercept: Any,
    source_coefficients: Any,
    target_intercept: Any,
    target_coefficients: Any,
    gene_keys: Any,
    row_start: int,
    *,
    target_depth: Any = None,
    out: Any = None,
    cap: bool = True,
) -> Any:
    """Match the counts of a tile, with means from soft cluster assignments.

    The source mean of cell i, batch b and gene g is ``depth[i] * exp(source_intercept[b, g] +
    sum_k weights[i, k] * source_coefficients[b, k, g])``; the target mean has no batch.

    Parameters
    ----------
    counts
        Observed counts, any integer type, shape (n_cells, n_genes); NumPy or CuPy.
    weights
        Soft cluster assignments, float32 or float64, shape (n_cells, n_clusters).
    batch
        Batch codes, shape (n_cells,).
    depth
        Total counts (UMIs) of the cells, positive, shape (n_cells,).
    source_intercept, source_coefficients
        Log rates per unit of depth, float64, shapes (n_batches, n_genes) and
        (n_batches, n_clusters, n_genes); the coefficients finite.
    target_intercept, target_coefficients
        The same without batches, shapes (n_genes,) and (n_clusters, n_genes).
    gene_keys
        :func:`stdist.kernels.keyed_random.stream_key` of every gene, uint64, shape (n_genes,).
    row_start
        Global index of the tile's first cell.
    target_depth
        Depth of the output, shape (n_cells,); ``depth`` if not given.
    out
        Array for the result, any integer type, shape (n_cells, n_genes), not overlapping
        ``counts``; by default a new array of the type of the counts.
    cap
        Whether results are at most ``max(count, Q + 1)``, where Q is the smallest whole number
        whose distribution function under the target mean reaches 0.99999.

    Returns
    -------
    ndarray of integers, shape (n_cells, n_genes)
        ``out``. Genes and cells do not influence one another, and a result depends on its key,
        global row, count and means only.

    Raises
    ------
    ValueError
        If a shape, type or code does not fit, a depth is not positive, a count is negative, or
        a mean is not in [0, 2**31]; the last two name the row and the gene.
    OverflowError
        If a result exceeds the type of ``out``; names the row and the gene.

    Examples
    --------
    >>> counts = np.array([[0, 2], [1, 0]], np.uint16)
    >>> none = np.zeros((1, 1, 2))
    >>> match_soft(counts, np.ones((2, 1)), [0, 0], [50.0, 60.0], np.full((1, 2), -4.0), none,
    ...            np.full(2, -4.0), none[0], np.array([1, 2], np.uint64), 0)
    array([[0, 2],
           [1, 0]], dtype=uint16)
    """
    xp, kernels = _backend(counts)
    counts, out = check_tile(xp, counts, out, row_start)
    n, g = counts.shape
    weights = xp.ascontiguousarray(weights)
    if weights.ndim != 2 or weights.dtype not in (np.float32, np.float64):
        message = f"weights must be a float32 or float64 matrix, not {weights.dtype}"
        raise ValueError(message)
    k = weights.shape[1]
    n_batches = len(source_intercept)
    depth = check_depth(xp, depth, n, "depth")
    status = xp.full(3, NO_PROBLEM, dtype=np.int64)
    kernels.soft(
        counts,
        check_array(xp, weights, weights.dtype, (n, k), "weights"),
        check_codes(xp, batch, n, n_batches, "batch"),
        depth,
        depth if target_depth is None else check_depth(xp, target_depth, n, "target_depth"),
        check_array(xp, source_intercept, np.float64, (n_batches, g), "source_intercept"),
        check_array(xp, source_coefficients, np.float64, (n_batches, k, g), "source_coefficients"),
        check_array(xp, target_intercept, np.float64, (g,), "target_intercept"),
        check_array(xp, target_coefficients, np.float64, (k, g), "target_coefficients"),
        check_array(xp, gene_keys, np.uint64, (g,), "gene_keys"),
        row_start,
        cap,
        out,
        status,
    )
    raise_problem(status, g, row_start, out.dtype)
    return out


def match_labels(
    counts: Any,
    labels: Any,
    batch: Any,
    depth: Any,
    source_rate: Any,
    target_rate: Any,
    gene_keys: Any,
    row_start: int,
    *,
    target_depth: Any = None,
    out: Any = None,
    cap: bool = True,
) -> Any:
    """Match the counts of a tile, with means from one label per cell.

    The source mean of cell i and gene g is ``depth[i] * source_rate[batch[i], labels[i], g]``,
    the target mean ``target_depth[i] * target_rate[labels[i], g]``.

    Parameters
    ----------
    counts, batch, depth, gene_keys, row_start, target_depth, out, cap
        As for :func:`match_soft`.
    labels
        Label codes, shape (n_cells,).
    source_rate, target_rate
        Rates per unit of depth, for example of :func:`rates`, float64, shapes
        (n_batches, n_labels, n_genes) and (n_labels, n_genes).

    Returns
    -------
    ndarray of integers, shape (n_cells, n_genes)
        ``out``.

    Raises
    ------
    ValueError, OverflowError
        As for :func:`match_soft`.

    Examples
    --------
    >>> counts = np.array([[0, 2], [1, 0]], np.uint16)
    >>> rate = np.full((1, 1, 2), 0.02)
    >>> match_labels(counts, [0, 0], [0, 0], [50.0, 60.0], rate, 0 * rate[0],
    ...              np.array([1, 2], np.uint64), 0)
    array([[0, 0],
           [0, 0]], dtype=uint16)
    """
    xp, kernels = _backend(counts)
    counts, out = check_tile(xp, counts, out, row_start)
    n, g = counts.shape
    n_batches, n_labels = np.shape(source_rate)[:2]
    depth = check_depth(xp, depth, n, "depth")
    status = xp.full(3, NO_PROBLEM, dtype=np.int64)
    kernels.labelled(
        counts,
        check_codes(xp, labels, n, n_labels, "labels"),
        check_codes(xp, batch, n, n_batches, "batch"),
        depth,
        depth if target_depth is None else check_depth(xp, target_depth, n, "target_depth"),
        check_array(xp, source_rate, np.float64, (n_batches, n_labels, g), "source_rate"),
        check_array(xp, target_rate, np.float64, (n_labels, g), "target_rate"),
        check_array(xp, gene_keys, np.uint64, (g,), "gene_keys"),
        row_start,
        cap,
        out,
        status,
    )
    raise_problem(status, g, row_start, out.dtype)
    return out
