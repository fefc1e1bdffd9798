"""Panels of genes, the work of one task: their parts, and how they are joined."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Arrays = dict[str, Any]
PANEL = 8
"""Genes of one fitting task."""


def join_panels(parts: list[Arrays]) -> Arrays:
    """Join the panels along genes, the last axis of every array."""
    return {name: np.concatenate([part[name] for part in parts], axis=-1) for name in parts[0]}


def by_batches(measured: np.ndarray, solve: Callable[[np.ndarray, np.ndarray], Arrays]) -> Arrays:
    """Solve together the genes of a panel that the same batches measured.

    Parameters
    ----------
    measured : (n_batches, n_genes) bool
    solve : callable
        From places in the panel and the mask of their batches to arrays with genes last.

    Returns
    -------
    dict of arrays
        Genes in the order of the panel.

    Examples
    --------
    >>> measured = np.array([[True, True, True], [True, False, True]])
    >>> by_batches(measured, lambda genes, batches: {"n": 0 * genes + batches.sum()})["n"]
    array([2, 1, 2])
    """
    patterns, which = np.unique(measured, axis=1, return_inverse=True)
    places = [np.flatnonzero(which.ravel() == p) for p in range(patterns.shape[1])]
    joined = join_panels([solve(place, patterns[:, p]) for p, place in enumerate(places)])
    order = np.argsort(np.concatenate(places))
    return {name: values[..., order] for name, values in joined.items()}
