"""What a fit of all genes imputes, told by a second one that some genes are held out of."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from stdist.graph import Program, scoped
from stdist.methods.siid.held_out import answered_genes
from stdist.methods.siid.holdout_folds import chosen_folds
from stdist.methods.siid.pair import Pair
from stdist.methods.siid.program import Bound
from stdist.methods.siid.results import CHECK

SHARE = 10
"""One gene of so many is held out: of 20 or more those of fold 0 of `siid_holdout`, if they can
be spared."""
FEWEST = 2
"""Genes held out of a small panel, where a tenth would be fewer."""


def checked(program: Program, pair: Pair, bound: type[Bound]) -> Program:
    """Add the fit without some genes, its controls and its scores.

    There is none where the user holds out genes, which are scored already.
    """
    spec = pair.spec
    genes = [] if not spec.controls or answered_genes(pair) else genes_to_hold_out(pair)
    if not genes:
        return program
    second = pair.like(
        held_out=[*genes, *spec.held],
        n_factors=min(spec.n_factors, pair.n_panel - len(genes)),
        deconvolve=False,
    )
    other = bound(second).program()
    _, *stages, _ = other.stages  # places are the same, and rows of cells are not written
    own, states = scoped(CHECK, stages, other.state)
    *before, write = program.stages
    assert isinstance(program.results, partial)
    return replace(
        program,
        stages=(*before, *own, write),
        results=partial(program.results, checked=genes, checking=second.spec),
        state={**program.state, **states},
    )


def genes_to_hold_out(pair: Pair) -> list[str]:
    """A tenth of the panel, two or three genes of a small one; none where none can be spared.

    The first cells and spots have counts of the genes that are left, so the fit without the others
    is not refused when that of all is done.
    """
    if pair.n_panel < 2:
        return []
    panel = pair.like(held_out=None)
    n_folds = max(2, min(SHARE, pair.n_panel // FEWEST))
    counted = panel.first_counts()
    for genes in chosen_folds(panel, n_folds, None, None, pair.spec.rng).values():
        if counted[:, ~np.isin(panel.genes.astype(str), genes)].any(axis=1).all():
            return genes
    return []
