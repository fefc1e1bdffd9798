"""Restarts on a sample: some tiles, in memory, from which the best starts for all cells come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import sparse

from stdist.kernels.poisson_factors import Settings, tile_pass
from stdist.kernels.poisson_factors_dispersion import dispersion_step
from stdist.kernels.poisson_factors_global import (
    global_step,
    next_exponent,
    profile_prior,
    total_loss,
)
from stdist.kernels.poisson_factors_spots import Rows
from stdist.kernels.poisson_factors_start import clustered_factors, start_rows
from stdist.methods.siid.spec import EXPONENT
from stdist.store import TILE_ROWS

Arrays = dict[str, Any]
SHORT_ROUNDS, LONG_ROUNDS, LONG_STARTS = 15, 150, 2
"""E-steps of every restart, and of the best of them before one is chosen: they start from clusters
of cells, and the order of their losses hardly changes later."""
SEARCHED, SWAPS = 2, 5
"""Restarts whose clusters are searched for longer, and swaps of clusters in each. One of them leads
to a good optimum nearly always; more would make the solutions alike."""
DISPERSION = 0.1
"""Of every gene at the start."""


def tile_of(
    cells: Any, spots: Any, spot: np.ndarray, origin: np.ndarray, spot_origin: np.ndarray
) -> tuple[Any, Any, np.ndarray]:
    """Rows of a tile without padding: counts of cells and of spots, and the spot of each cell."""
    n_cells, n_spots = int((origin > 0).sum()), int((spot_origin > 0).sum())
    return cells[:n_cells], spots[:n_spots], spot[:n_cells].astype(np.int64) - 1


def sample_tile(
    rows: tuple[int, int],
    *,
    cells: Any,
    spots: Any,
    spot: np.ndarray,
    origin: np.ndarray,
    spot_origin: np.ndarray,
    every: int,
) -> Arrays:
    """Cells and spots of every so many tiles, to be appended; and the counts of all spots."""
    mine, above, place = tile_of(cells, spots, spot, origin, spot_origin)
    profile = np.asarray(above.sum(axis=0), np.float64).ravel()
    if rows[0] // TILE_ROWS % every:
        mine, above, place = mine[:0], above[:0], place[:0]
    return {
        "profile": profile,
        "n_spots": np.array([above.shape[0]]),
        "n_cells": np.array([mine.shape[0]]),
        "spot": place,
        "origin": origin[: mine.shape[0]] - 1,
        **packed("cells", mine),
        **packed("spots", above),
    }


def packed(name: str, matrix: Any) -> Arrays:
    """CSR rows as arrays that can be appended."""
    return {
        f"{name}_data": matrix.data,
        f"{name}_genes": matrix.indices,
        f"{name}_lengths": np.diff(matrix.indptr),
    }


def unpacked(name: str, sample: Arrays, n_genes: int) -> sparse.csr_array:
    """Put appended rows together again."""
    lengths = sample[f"{name}_lengths"]
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    arrays = sample[f"{name}_data"], sample[f"{name}_genes"], indptr
    return sparse.csr_array(arrays, shape=(len(lengths), n_genes))


def append(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Combine sampled rows."""
    return np.concatenate([left, right])


def number_spots(total: Arrays) -> Arrays:
    """Spots of the sample numbered over its tiles, in place of their numbers in each."""
    first = np.repeat(np.cumsum(total["n_spots"]) - total["n_spots"], total["n_cells"])
    spot = total["spot"]
    return total | {"spot": np.where(spot >= 0, spot + first, -1)}


def restart(
    item: int,
    *,
    sample: Arrays,
    n_panel: int,
    n_factors: int,
    seed: int,
    settings: Settings,
    platform_scaling: bool,
    overdispersed: bool,
) -> Arrays:
    """Fit the sample from clusters of its own."""
    profile, cells = sample["profile"], unpacked("cells", sample, n_panel)
    n_swaps = SWAPS if item < SEARCHED else 0
    factors = {
        "Q": clustered_factors(cells, profile, n_factors, seed + item, n_swaps),
        "phi": np.ones(len(profile)),
    }
    if overdispersed:
        factors["dispersion"] = np.full(len(profile), DISPERSION)
    return _fit(sample, factors, n_panel, seed + item, settings, SHORT_ROUNDS, platform_scaling)


def go_on(
    item: int, *, sample: Arrays, restarts: Arrays, n_panel: int, seed: int, settings: Settings,
    platform_scaling: bool,
) -> Arrays:  # fmt: skip
    """Continue one of the best restarts."""
    factors = ranked(restarts, item)
    return _fit(sample, factors, n_panel, seed + item, settings, LONG_ROUNDS, platform_scaling)


def ranked(starts: Arrays, number: int) -> Arrays:
    """Factors of the restart with the lowest loss (0), the next (1), ..."""
    best = int(np.argsort(starts["loss"], kind="stable")[number])
    return {name: values[best] for name, values in starts.items() if name != "loss"}


def _fit(*arguments: Any) -> Arrays:
    _, factors, loss = fit_sample(*arguments)
    return factors | {"loss": np.float64(loss)}


def fit_sample(
    sample: Arrays,
    factors: Arrays,
    n_panel: int,
    seed: int,
    settings: Settings,
    n_rounds: int,
    platform_scaling: bool,
) -> tuple[Rows, Arrays, float]:
    """Rows of the sample's cells, the factors that belong to them, and the loss before these."""
    n_factors, n_genes = factors["Q"].shape
    cells, spots = unpacked("cells", sample, n_panel), unpacked("spots", sample, n_genes)
    slides = cells, spots, sample["spot"]
    rows = start_rows(*slides, sample["origin"], n_factors, seed)
    exponent, loss = 1.0, np.inf
    for _ in range(-(-n_rounds // settings.rounds)):
        rows, total = improved(slides, rows, factors, settings)
        previous, loss = loss, total_loss(total, factors["Q"], factors["phi"], settings)
        exponent = next_exponent(exponent, loss, previous, EXPONENT)
        factors = moved(total, factors, n_panel, settings, exponent, platform_scaling)
    rows = rows._replace(p=rows.p * factors.pop("gauge"))
    return rows, factors, loss


def improved(
    slides: tuple[Any, ...], rows: Rows, now: Mapping[str, Any], settings: Settings
) -> tuple[Rows, Arrays]:
    """Rows after a pass with the present factors, and its statistics."""
    return tile_pass(
        *slides, rows, now["Q"], now["phi"], settings, now.get("gauge"), now.get("dispersion")
    )


def moved(
    total: Mapping[str, Any],
    now: Mapping[str, Any],
    n_panel: int,
    settings: Settings,
    exponent: float,
    platform_scaling: bool,
) -> Arrays:
    """Factors of the next pass: ``Q, phi, gauge``; ``shape`` and ``dispersion`` where fitted."""
    Q, phi = np.asarray(now["Q"]), np.asarray(now["phi"])
    prior = None
    if settings.shrink:
        prior = profile_prior(Q, total["cell_mass"], total["spot_mass"], n_panel)
    step = global_step(
        total, Q, phi, n_panel, exponent=exponent, l2=settings.l2,
        platform_scaling=platform_scaling, prior=prior,
    )  # fmt: skip
    found = step._asdict()
    if prior is not None:
        found["shape"] = prior[0].max()
    if "dispersion" in now:
        found["dispersion"] = dispersion_step(total, np.asarray(now["dispersion"]), exponent)
    return found


def stack(parts: list[Arrays]) -> Arrays:
    """Join restarts."""
    return {name: np.stack([part[name] for part in parts]) for name in parts[0]}
