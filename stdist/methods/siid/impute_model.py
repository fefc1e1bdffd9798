"""What a fit of SIID left behind, and which of the wanted genes it knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from stdist.methods.data import Data
from stdist.store import InputError, Source

CELLS, SPOTS = "cells", "spots"
SCORES = ("[held-out]", "[checked]", "[imputation-unscored]", "[control-")
"""Notes of a fit on how well it imputes."""


@dataclass(frozen=True)
class FittedFactors:
    """Factors of every solution of a fit.

    ``profile`` ``(n_solutions, n_factors, n_genes)`` and ``platform`` ``(n_solutions, n_genes)``
    float64; ``genes`` of the model, those of the panel first; ``loadings`` the source of the
    cells' loadings, ``(n_cells, n_solutions * n_factors)``; ``spots_layer`` with the counts;
    ``shape`` ``(n_solutions,)`` of the prior of profiles, 0 for none; ``scores`` the notes that
    tell how well genes held out were imputed, and which control is as good.
    """

    genes: pd.Index
    in_panel: np.ndarray
    profile: np.ndarray
    platform: np.ndarray
    loadings: Source
    spots_layer: str | None
    shape: np.ndarray
    scores: list[str]


def fitted_factors(data: Data, key: str) -> FittedFactors:
    """Read what `stdist.tl.siid` wrote under a key.

    Raises
    ------
    InputError
        If there are none, or the loadings of the cells are not of the same fit.
    """
    found = fit_entry(data, key)
    factors = found["factors"]
    profile = np.asarray(factors["profile"], np.float64)
    loadings = data.embedding(key)
    if loadings.shape != (data.n_obs, profile.shape[0] * profile.shape[1]):
        raise InputError(
            "loadings-shape",
            f"loadings have shape {loadings.shape}, not (n_cells, n_solutions * n_factors) of "
            f"{profile.shape[0]} solutions with {profile.shape[1]} factors",
            place=f"obsm {key!r} of {data.place}",
            remedy="fit again with stdist.tl.siid: loadings and factors belong together",
        )
    layer = found.get("params", {}).get("spots_layer")
    notes = [str(note) for note in np.atleast_1d(found.get("notes", []))]
    return FittedFactors(
        genes=pd.Index(np.asarray(factors["gene"], dtype=object).astype(str), dtype=object),
        in_panel=np.asarray(factors["in_panel"], bool),
        profile=profile,
        platform=np.asarray(factors["platform"], np.float64),
        loadings=loadings,
        spots_layer=None if layer is None else str(layer),
        shape=np.asarray(factors.get("profile_shape", np.zeros(len(profile))), np.float64),
        scores=[note for note in notes if note.startswith(SCORES)],
    )


def fit_entry(data: Data, key: str) -> Mapping[str, Any]:
    """Read the entry of ``uns`` that `stdist.tl.siid` wrote.

    Raises
    ------
    InputError
        If there is none.
    """
    found = data.uns(key)
    if not isinstance(found, Mapping) or "factors" not in found:
        raise InputError(
            "factors-absent",
            f"no factors in uns[{key!r}]",
            place=data.place,
            remedy="fit them with stdist.tl.siid, or name its key_added as key",
        )
    return found


@dataclass(frozen=True)
class WantedGenes:
    """Genes to impute: ``column`` of each in the model, -1 outside; ``outside`` the others."""

    names: list[str]
    column: np.ndarray
    outside: list[str]

    def scales(self, factors: FittedFactors) -> pd.DataFrame:
        """Tell, for each gene, on the scale of which slide its imputation is."""
        measured = (self.column >= 0) & factors.in_panel[self.column]
        scale = pd.Categorical(np.where(measured, CELLS, SPOTS), categories=[CELLS, SPOTS])
        table = {"scale": scale, "in_model": self.column >= 0}
        return pd.DataFrame(table, index=pd.Index(self.names, dtype=object))


def wanted_genes(
    factors: FittedFactors, spots: Data | None, genes: str | Sequence[str] | None
) -> WantedGenes:
    """Find the wanted genes, by default all of the model, in the model or in the spots.

    Raises
    ------
    InputError
        If there is none, one is named twice, or is in neither.
    """
    names = [genes] if isinstance(genes, str) else list(factors.genes if genes is None else genes)
    names = [str(name) for name in names]
    repeated = pd.Index(names)[pd.Index(names).duplicated()]
    if not names or len(repeated):
        raise InputError(
            "genes-repeated" if names else "genes-none",
            f"{repeated[0]!r} is named twice" if names else "no gene is named",
            place="genes",
            remedy="name each gene once; by default all genes of the model are taken",
        )
    column = factors.genes.get_indexer(pd.Index(names, dtype=object))
    outside = [name for name, number in zip(names, column, strict=True) if number < 0]
    if outside and spots is None:
        raise InputError(
            "gene-absent",
            f"{len(outside)} genes are not in the model, first {outside[0]!r}",
            place=f"{len(factors.genes)} genes: {', '.join(factors.genes[:3])}, ...",
            remedy="pass spots= where these genes were counted, or leave them out",
        )
    if spots is not None:
        known = set(map(str, spots.var_names))
        for absent, what, remedy in (
            (
                [name for name in outside if name not in known],
                "are neither in the model nor in the spots",
                "name genes of the spots",
            ),
            (
                [name for name in factors.genes if name not in known],
                "of the model are not in the spots",
                "give the spots that the model was fitted with",
            ),
        ):
            if absent:
                raise InputError(
                    "gene-absent",
                    f"{len(absent)} genes {what}, first {absent[0]!r}",
                    place=spots.place,
                    remedy=remedy,
                )
    return WantedGenes(names, column, outside)
