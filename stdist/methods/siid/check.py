"""What a fit of all genes imputes, told by a smaller one that some genes are held out of."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from stdist.graph import Program, scoped
from stdist.methods.siid.held_out import answered_genes
from stdist.methods.siid.holdout_folds import chosen_folds
from stdist.methods.siid.pair import Pair
from stdist.methods.siid.program import Bound
from stdist.methods.siid.results import CHECK

SHARE = 10
"""One gene of so many is held out: those of fold 0 of `siid_holdout`."""
FEWEST = 2
"""Genes held out of a small panel, where a tenth would be fewer."""
SOLUTIONS = 2
"""Of the fit without them: their mean is what is scored, and their range what seeds differ by."""


def checked(program: Program, pair: Pair, bound: type[Bound]) -> Program:
    """Add the fit without some genes, its controls and its scores.

    There is none where the user holds out genes, which are scored already, or has but one.
    """
    spec = pair.spec
    if not spec.controls or answered_genes(pair) or pair.n_panel < 2:
        return program
    panel = pair.like(held_out=None)
    n_folds = max(2, min(SHARE, panel.n_panel // FEWEST))
    (genes,) = chosen_folds(panel, n_folds, [0], None, spec.rng).values()
    n_solutions = min(SOLUTIONS, spec.n_restarts)
    smaller = pair.like(
        held_out=[*genes, *spec.held],
        n_factors=min(spec.n_factors, pair.n_panel - len(genes)),
        n_solutions=n_solutions,
        # every run of Adam sees all cells; those of EM start on a sample
        n_restarts=n_solutions if spec.solver == "adam" else spec.n_restarts,
        deconvolve=False,
    )
    other = bound(smaller).program()
    _, *stages, _ = other.stages  # places are the same, and rows of cells are not written
    own, states = scoped(CHECK, stages, other.state)
    *before, write = program.stages
    assert isinstance(program.results, partial)
    return replace(
        program,
        stages=(*before, *own, write),
        results=partial(program.results, checked=genes, checking=smaller.spec),
        state={**program.state, **states},
    )
