"""Which genes have a batch effect, from their p values: two bounds on false discoveries."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

BEST_POWERED = 0.25  # share of the genes that the share without effect is estimated from
LEAST_GENES = 50


def share_without_effect(p_values: ArrayLike, threshold: float = 0.5) -> float:
    """Estimate the share of true null hypotheses (Storey 2002, with one more to be safe).

    Parameters
    ----------
    p_values : (n,) float
    threshold : float
        P values above it are taken to be of true null hypotheses.

    Examples
    --------
    >>> share_without_effect([0.01, 0.02, 0.03, 0.04, 0.1, 0.2, 0.6, 0.7])
    0.75
    """
    p_values = np.asarray(p_values, dtype=np.float64)
    above = int((p_values > threshold).sum()) + 1
    return min(1.0, above / (len(p_values) * (1.0 - threshold)))


def affected_genes(
    p_values: ArrayLike, counts: ArrayLike, *, level: float = 0.05, false_share: float = 0.6
) -> NDArray[np.bool_]:
    """Genes to correct: in data with batch effects, those of which enough are real.

    Parameters
    ----------
    p_values : (n_genes,) float
        Of :mod:`stdist.kernels.batch_test`, for all genes of the data; NaN where not tested.
    counts : (n_genes,) float
        Total counts: the more, the better an effect is seen.
    level : float
        Nothing is corrected unless some gene has an effect with the false discovery rate
        controlled at this level (Benjamini and Hochberg 1995): the bound on correcting anything
        in data without batch effects.
    false_share : float
        In data with batch effects, the largest share of unaffected genes among the corrected.

    Returns
    -------
    (n_genes,) bool

    Notes
    -----
    An unaffected gene that is corrected loses little, because its fitted effects are small; an
    affected gene that is left alone keeps its whole effect. Hence two levels. The share of
    unaffected genes is estimated from the quarter with most counts: weak effects of sparse genes
    have large p values, but a gene's effect has nothing to do with its counts.

    Examples
    --------
    >>> p = np.linspace(0.001, 0.999, 100)
    >>> int(affected_genes(p, np.ones(100)).sum()), int(affected_genes(p**4, np.ones(100)).sum())
    (0, 100)
    """
    p_values = np.asarray(p_values, dtype=np.float64)
    counts = np.asarray(counts, dtype=np.float64)
    found = np.zeros(len(p_values), dtype=bool)
    tested = np.flatnonzero(np.isfinite(p_values))
    if not len(tested):
        return found
    from scipy.stats import false_discovery_control  # 25 MiB that no worker needs

    adjusted = false_discovery_control(p_values[tested])
    if adjusted.min() > level:
        return found
    n_best = max(int(BEST_POWERED * len(tested)), min(len(tested), LEAST_GENES))
    best = tested[np.argsort(-counts[tested], kind="stable")[:n_best]]
    found[tested] = adjusted * share_without_effect(p_values[best]) <= false_share
    return found
