"""Which genes are held out together."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any

import numpy as np

from stdist.kernels.keyed_random import stream_key, uniforms
from stdist.methods.checks import wrong_parameter
from stdist.methods.siid.pair import Pair
from stdist.store import InputError


def chosen_folds(
    pair: Pair,
    n_folds: int,
    folds: Any,
    fold_of_gene: Mapping[str, int] | None,
    rng: int,
    program: str = "siid_holdout",
) -> dict[int, list[str]]:
    """Genes of the folds to run, in the order of the panel."""
    shared = [str(name) for name in pair.genes]
    if fold_of_gene is None:
        if not isinstance(n_folds, Integral) or not 2 <= n_folds <= len(shared):
            remedy = f"2 to {len(shared)}, the number of genes"
            raise wrong_parameter(program, "n_folds", n_folds, remedy)
        drawn = np.argsort(uniforms(stream_key(rng, "siid folds", 0), 0, len(shared)))
        parts = np.array_split(drawn, n_folds)
        fold_of_gene = {shared[at]: fold for fold, part in enumerate(parts) for at in part}
    absent = sorted(set(map(str, fold_of_gene)) - set(shared))
    if absent:
        raise InputError(
            "gene-absent",
            f"{len(absent)} genes with a fold are not in both slides, first {absent[0]!r}",
            place="fold_of_gene",
            remedy="give folds of genes that cells and spots share",
        )
    fold_of = {str(name): int(fold) for name, fold in fold_of_gene.items()}
    known = sorted(set(fold_of.values()))
    wanted = known if folds is None else whole_numbers(folds)
    if not wanted or not set(wanted) <= set(known):
        raise wrong_parameter(program, "folds", folds, f"some of {known}")
    return {fold: [name for name in shared if fold_of.get(name) == fold] for fold in wanted}


def whole_numbers(given: Any) -> list[int]:
    """Whole numbers as given in a call, or as text on the command line; none where they are not."""
    try:
        listed = [] if isinstance(given, str) else list(given)
        whole = all(isinstance(value, (Integral, str)) for value in listed)
        return [int(value) for value in listed] if whole else []
    except (TypeError, ValueError):
        return []
