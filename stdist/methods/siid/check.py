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
SOLUTIONS = 2
"""Of the fit without them: their mean is what is scored, and their range what seeds differ by."""


def checked(program: Program, pair: Pair, bound: type[Bound]) -> Program:
    """Add the fit without some genes, its controls and its scores, where they say something.

    Genes that the user holds out are scored already, few genes tell nothing, and a run of Adam
    costs as much as all else.
    """
    spec = pair.spec
    if (
        not spec.controls
        or answered_genes(pair)
        or spec.solver == "adam"
        or pair.n_panel < 2 * SHARE
    ):
        return program
    (genes,) = chosen_folds(pair, SHARE, [0], None, spec.rng).values()
    if pair.n_panel - len(genes) < spec.n_factors:
        return program
    n_solutions, held = min(SOLUTIONS, spec.n_restarts), [*genes, *spec.held]
    smaller = pair.like(held_out=held, n_solutions=n_solutions, deconvolve=False)
    other = bound(smaller).program()
    _, *stages, _ = other.stages  # places are the same, and rows of cells are not written
    own, states = scoped(CHECK, stages, other.state)
    *before, write = program.stages
    assert isinstance(program.results, partial)
    return replace(
        program,
        stages=(*before, *own, write),
        results=partial(program.results, checked=genes, n_checking=n_solutions),
        state={**program.state, **states},
    )
