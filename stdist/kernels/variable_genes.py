"""Highly variable genes from means and variances: the Seurat flavour of scanpy."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

N_BINS = 20


def normalized_dispersions(mean: ArrayLike, variance: ArrayLike, n_bins: int = N_BINS) -> Floats:
    """Log dispersion of each gene, standardised among genes of similar mean.

    Parameters
    ----------
    mean, variance
        Of the normalised values (before the logarithm), ``(n_genes,)``; variance with divisor
        n - 1.
    n_bins
        Bins of equal width of ``log1p(mean)``.

    Returns
    -------
    ndarray
        ``(n_genes,)`` float64; 1 for a gene alone in its bin, NaN for one that does not vary.

    References
    ----------
    Satija et al. 2015, Nat Biotechnol 33; ``scanpy.pp.highly_variable_genes(flavor="seurat")``.

    Examples
    --------
    >>> normalized_dispersions([1.0, 1.1, 9.0], [2.0, 5.0, 99.0], 2).round(3)
    array([-0.707,  0.707,  1.   ])
    """
    average = np.asarray(mean, np.float64)
    average = np.where(average == 0, 1e-12, average)
    dispersion = np.asarray(variance, np.float64) / average
    with np.errstate(divide="ignore"):
        logged = pd.Series(np.where(dispersion > 0, np.log(dispersion), np.nan))
    by_bin = logged.groupby(pd.cut(pd.Series(np.log1p(average)), n_bins), observed=True)
    centre, spread = by_bin.transform("mean"), by_bin.transform("std")
    alone = spread.isna()
    standardised = (logged - centre.where(~alone, 0.0)) / spread.where(~alone, centre)
    return standardised.to_numpy(np.float64)


def most_variable(dispersions: ArrayLike, n_top: int) -> Mask:
    """Genes whose normalised dispersion is among the `n_top` largest; ties are all in.

    Examples
    --------
    >>> most_variable([0.5, np.nan, 2.0, 1.0], 2)
    array([False, False,  True,  True])
    """
    values = np.asarray(dispersions, np.float64)
    known = np.sort(values[~np.isnan(values)])[::-1]
    if not len(known):
        return np.zeros(len(values), np.bool_)
    return np.nan_to_num(values, nan=-np.inf) >= known[min(n_top, len(known)) - 1]
