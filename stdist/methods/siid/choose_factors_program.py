"""The choice of the number of factors as a program: split counts, fit one part, judge on the rest.

Molecules of the sampled cells and spots are given to one of two parts at random, which makes two
independent Poisson counts. What fits the first and is no noise also explains the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from stdist.graph import Each, Program, Reduce, by_name
from stdist.kernels.count_thinning import split_counts
from stdist.kernels.keyed_random import stream_key
from stdist.kernels.poisson_deviance import poisson_deviances
from stdist.kernels.poisson_factors import Settings, spot_loadings
from stdist.kernels.poisson_factors_start import start_factors
from stdist.methods.siid.pair import Pair
from stdist.methods.siid.program import CLUSTERS, Bound
from stdist.methods.siid.sample import (
    SHORT_ROUNDS,
    append,
    fit_sample,
    packed,
    sample_tile,
    tile_of,
    unpacked,
)
from stdist.store import TILE_ROWS

Arrays = dict[str, Any]
SHARE = 0.8
"""Of the molecules, for the fit."""
ROUNDS = 150
"""E-steps of every fit."""
SLIDES = ("cells", "spots")


class ChoiceProgram(Bound):
    """Numbers of factors to be compared on a pair of slides.

    Parameters
    ----------
    pair
        Cells and spots; its `n_factors` is the largest candidate.
    candidates
        Numbers of factors, ascending.
    """

    def __init__(self, pair: Pair, candidates: list[int]) -> None:
        super().__init__(pair)
        self.fitted, self.candidates = (), candidates

    def program(self) -> Program:
        """Return the program."""
        spec, pair, key = self.spec, self.pair, self.spec.key_added
        sample, restarts, *_ = self._restarts()
        return Program(
            "siid_choose_factors",
            (*self.lay_out(), self._split(sample), self._fits(restarts)),
            {
                "data": str(pair.cells.path),
                "spots": str(pair.spots.path),
                **spec.to_parameters(),
                "n_factors": self.candidates,
            },
            pair.cells.path,
            results=partial(_results, candidates=self.candidates, key=key, notes=pair.notes),
            result_keys=(f"uns/{key}",),
            state=self.states(),
        )

    def _split(self, sample: Reduce) -> Reduce:
        """The sample of the restarts in two parts."""
        genes = [str(name) for name in self.pair.genes]
        keys = {
            f"{slide}_keys": np.array([stream_key(self.spec.rng, f"siid {slide} split", name)
                                       for name in names])
            for slide, names in zip(SLIDES, (genes[: self.pair.n_panel], genes), strict=True)
        }  # fmt: skip
        parts = ("data", "genes", "lengths")
        appended = [
            f"{slide}{at}_{part}" for slide in SLIDES for at in ("", "_rest") for part in parts
        ]
        rules = dict.fromkeys((*appended, "spot", "origin", "n_spots", "n_cells"), append)
        return replace(
            sample,
            kernel=split_tile,
            options={**sample.options, **keys},
            combine=by_name(**rules),
            partial_bytes=2 * sample.partial_bytes,
        )

    def _fits(self, restarts: Each) -> Each:
        """Every candidate from every start."""
        spec = self.spec
        return replace(
            restarts,
            name="fits",
            kernel=fit_candidate,
            options={
                **restarts.options,
                "candidates": self.candidates,
                "n_starts": spec.n_restarts,
            },
            nanoseconds=restarts.nanoseconds * ROUNDS / (CLUSTERS + SHORT_ROUNDS),
            n_items=len(self.candidates) * spec.n_restarts,
            collect=partial(compare, candidates=self.candidates),
        )


def split_tile(
    rows: tuple[int, int],
    *,
    every: int,
    cells_keys: np.ndarray,
    spots_keys: np.ndarray,
    **tile: Any,
) -> Arrays:
    """What `sample_tile` takes of the molecules for the fit, and the rest of them."""
    mine, above, _ = tile_of(**tile)
    rest = {"cells": mine[:0], "spots": above[:0]}
    if rows[0] // TILE_ROWS % every == 0:
        for slide, counts, origin, keys in (
            ("cells", mine, tile["origin"], cells_keys),
            ("spots", above, tile["spot_origin"], spots_keys),
        ):
            numbers = origin[: counts.shape[0]] - 1
            tile[slide], rest[slide] = split_counts(counts, numbers, keys, SHARE)
    return {
        **sample_tile(rows, every=every, **tile),
        **packed("cells_rest", rest["cells"]),
        **packed("spots_rest", rest["spots"]),
    }


def fit_candidate(
    item: int,
    *,
    sample: Arrays,
    candidates: list[int],
    n_starts: int,
    n_panel: int,
    seed: int,
    settings: Settings,
    platform_scaling: bool,
    **_: Any,
) -> Arrays:
    """Fit one part of the sample from a start, and return deviances of the other part's rows.

    A spot without cells has no mean, and no part.
    """
    candidate, start = divmod(item, n_starts)
    profile = sample["profile"]
    Q = start_factors(profile, candidates[candidate], seed + start)
    rows, factors, loss = fit_sample(
        sample, {"Q": Q, "phi": np.ones(len(profile))}, n_panel, seed + start, settings,
        ROUNDS, platform_scaling,
    )  # fmt: skip
    Q, phi = factors["Q"], factors["phi"]
    cells, spots = (
        unpacked("cells_rest", sample, n_panel),
        unpacked("spots_rest", sample, len(profile)),
    )
    loadings = spot_loadings(rows, sample["spot"], spots.shape[0])
    known = loadings.sum(axis=1) > 0
    odds = (1.0 - SHARE) / SHARE
    deviance = [
        poisson_deviances(cells, odds * rows.n[:, None] * rows.p, Q[:, :n_panel]),
        poisson_deviances(spots[known], odds * loadings[known], Q * phi),
    ]
    return {"loss": np.float64(loss), "deviance": np.concatenate(deviance)}


def compare(fits: list[Arrays], *, candidates: list[int]) -> Arrays:
    """Held-out deviance of each candidate's fit of least loss, beside that of the best candidate.

    The standard error is that of the difference between two sums over the same rows.
    """
    loss = np.array([fit["loss"] for fit in fits]).reshape(len(candidates), -1)
    chosen = loss.argmin(axis=1) + np.arange(len(candidates)) * loss.shape[1]
    deviance = np.stack([fits[at]["deviance"] for at in chosen])
    total = deviance.sum(axis=1)
    above = deviance - deviance[total.argmin()]
    return {
        "deviance": total,
        "above_best": above.sum(axis=1),
        "standard_error": above.std(axis=1) * np.sqrt(above.shape[1]),
        "loss": loss.min(axis=1),
    }


def _results(values: Any, candidates: list[int], key: str, notes: list[str]) -> dict[str, Any]:
    """Name the candidate of the least held-out deviance."""
    fits = values["fits"]
    best = int(fits["deviance"].argmin())
    within = int(np.flatnonzero(fits["above_best"] <= fits["standard_error"])[0])
    found = [*notes, *choice_notes("factors", candidates, best, within)]
    table = pd.DataFrame({name: np.asarray(column) for name, column in fits.items()})
    table.insert(0, "n_factors", candidates)
    return {f"uns/{key}": {"n_factors": candidates[best], "table": table, "notes": found or None}}


def choice_notes(what: str, candidates: Sequence[int], best: int, within: int) -> list[str]:
    """Say where the best candidate is at the edge, and which smaller one is as good.

    `best` and `within` are the places of the best candidate and of the first one that is within
    one standard error of it.
    """
    notes = []
    first, last = best == 0 and candidates[0] > 1, best == len(candidates) - 1
    if (first or last) and len(candidates) > 1:
        notes.append(
            f"[choice-at-edge] {candidates[best]} is the {'last' if best else 'first'} number of "
            f"{what} that was tried: the best may lie beyond"
        )
    if within < best:
        notes.append(
            f"[fewer-{what}] {candidates[within]} {what} are within one standard error of "
            f"{candidates[best]}"
        )
    return notes
