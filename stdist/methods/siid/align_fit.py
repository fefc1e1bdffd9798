"""The fit of an alignment in memory: factors of the cells, then the move of the spots, by turns."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from stdist.kernels.poisson_factors import Settings, tile_pass
from stdist.kernels.poisson_factors_global import global_step, next_exponent
from stdist.kernels.poisson_factors_rows import Counts
from stdist.kernels.poisson_factors_start import start_factors, start_rows
from stdist.kernels.spot_alignment import (
    Field,
    Profiles,
    composition_field,
    compositions_at,
    log_likelihoods,
    moved,
    platform_factors,
)
from stdist.kernels.spot_alignment_search import (
    block_weights,
    climb,
    coarse_moves,
    lead,
    nearby_moves,
    spatial_blocks,
    spread,
    tabulate,
)
from stdist.methods.siid.sample import unpacked
from stdist.methods.siid.spec import EXPONENT

Arrays = dict[str, Any]
CELL_PASSES = 40
"""Passes of the factors over the sampled cells, of a few E-steps each."""
BLUR, COARSE = 0.25, 0.2
"""Blur of cells into spots, and first step of the search, in pitches of the spots."""
FINE, FINER = (0.06, 5), (0.02, 3)
"""Steps, in pitches, and how many of them are tried around the optimum for its spread."""
BACKGROUNDS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Weights of the mean of all cells in every spot, relative to the cells beneath a usual one."""
BLOCK = 3.0
"""Edge of the blocks of spots that are drawn together, in pitches."""
DRAWS, TURNS = 200, 5
"""Draws of the bootstrap, and most turns of factors and move."""
SETTLED = 1.0
"""um: a smaller move of the spots ends the turns."""
_SYMMETRIES = [
    np.array(matrix, float)
    for matrix in (
        [[-1, 0], [0, -1]], [[-1, 0], [0, 1]], [[1, 0], [0, -1]], [[0, 1], [1, 0]],
        [[0, -1], [1, 0]], [[0, 1], [-1, 0]], [[0, -1], [-1, 0]],
    )
]  # fmt: skip


class Slide(NamedTuple):
    """Spots to be placed, and where they may come to lie."""

    counts: sparse.csr_array
    places: np.ndarray
    window: np.ndarray
    middle: np.ndarray  # (n_windows, 2)
    centre: np.ndarray
    radius: float


def cell_factors(
    cells: sparse.csr_array, origin: np.ndarray, n_factors: int, seed: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Profiles ``(n_factors, n_panel)``, loadings of cells, and loss, from cells alone.

    What cells are must not depend on the spots that they lie under as given.
    """
    n_panel = cells.shape[1]
    none, nowhere = sparse.csr_array((1, n_panel), dtype=np.float32), np.full(cells.shape[0], -1)
    profile = np.asarray(cells.sum(axis=0), np.float64).ravel()
    Q, phi, gauge = start_factors(profile, n_factors, seed), np.ones(n_panel), None
    rows = start_rows(cells, none, nowhere, origin, n_factors, seed)
    exponent, loss = 1.0, np.inf
    for _ in range(CELL_PASSES):
        rows, total = tile_pass(cells, none, nowhere, rows, Q, phi, Settings(), gauge)
        previous, loss = loss, float(total["loss_x"])
        exponent = next_exponent(exponent, loss, previous, EXPONENT)
        Q, _, gauge = global_step(total, Q, phi, n_panel, exponent=exponent, platform_scaling=False)
    return Q, rows.n[:, None] * rows.p * gauge, loss


def align(
    item: int,
    *,
    cells: Arrays,
    spots: Arrays,
    n_panel: int,
    n_factors: int,
    places: np.ndarray,
    window: np.ndarray,
    middle: np.ndarray,
    pitch: float,
    max_shift: float,
    max_angle: float,
    tolerance: float,
    seed: int,
) -> Arrays:
    """Find the move of the spots from one start of the factors, and what speaks for it."""
    counts = unpacked("spots", spots, n_panel)
    centre = places.mean(axis=0)
    radius = float(np.sqrt(((places - centre) ** 2).sum(axis=1).mean())) or 1.0
    slide = Slide(counts, places, window, middle, centre, radius)
    mine = unpacked("cells", cells, n_panel)
    Q, loadings, loss = cell_factors(mine, cells["origin"], n_factors, seed + item)
    limits = max_shift, float(np.deg2rad(max_angle)) * radius
    field = _field(cells["points"], loadings, slide, max_angle, max_shift, pitch)
    coarse = coarse_moves(*limits, COARSE * pitch)
    best = np.zeros(3)
    for turn in range(TURNS):
        gains, background = _gains_at(best, slide, field, loadings.mean(axis=0), Q)
        before = best
        if turn < 2:  # once more everywhere, with what was fitted near the first optimum
            best = coarse[tabulate(gains, coarse).spots.sum(axis=1).argmax()]
        best = climb(gains, best, COARSE * pitch / 2, *limits)
        if turn and np.linalg.norm(best - before) < SETTLED:
            break
    near = [nearby_moves(best, step * pitch, n, *limits) for step, n in (FINE, FINER)]
    moves = np.concatenate([coarse, *near, best[None], np.zeros((1, 3))])
    table = tabulate(gains, moves)
    blocks = spatial_blocks(places, BLOCK * pitch)
    found = spread(moves, table, best, block_weights(blocks, DRAWS, seed), tolerance)
    own, as_given = table.spots[-2:]
    rivals = _rivals(slide, gains, coarse[coarse[:, 2] == 0])
    facts = {
        **found._asdict(),
        "gain": own.sum() / counts.sum(),
        "gain_as_given": as_given.sum() / counts.sum(),
        "gain_mirrored": max(rival.sum() for rival in rivals) / counts.sum(),
        "lead": min(lead(own, rival, blocks) for rival in rivals),
        "background": background,
        "cell_loss": loss,
        "radius": radius,
        "max_turn": limits[1],
        "n_spots": len(places),
        "n_blocks": blocks.max() + 1,
    }
    return {"move": best, "centre": centre, **{k: np.float64(v) for k, v in facts.items()}}


def join_starts(found: list[Arrays]) -> Arrays:
    """Take the start whose factors explain the cells best; how far the others disagree counts."""
    best = min(found, key=lambda one: float(one["cell_loss"]))
    apart = np.mean([((one["move"] - best["move"]) ** 2).sum() for one in found])
    error = np.sqrt(best["standard_error"] ** 2 + apart)
    return best | {
        "standard_error": np.float64(error),
        "starts": np.float64(np.sqrt(apart)),
        "share": np.min([one["share"] for one in found]),
        "lead": np.min([one["lead"] for one in found]),
        "halves": np.max([one["halves"] for one in found]),
    }


def _field(
    points: np.ndarray, loadings: np.ndarray, slide: Slide, max_angle: float, max_shift: float,
    pitch: float,
) -> Field:  # fmt: skip
    """Blurred loadings wherever a spot, or its mirror image in its window, may come to lie."""
    far = np.linalg.norm(slide.places - slide.centre, axis=1).max()
    within = max(
        np.abs(slide.places[slide.window == w] - middle).max(initial=0.0)
        for w, middle in enumerate(slide.middle)
    )
    edge = within + max_shift + np.deg2rad(max_angle) * far + pitch
    sigma = BLUR * pitch
    return composition_field(
        points, loadings, slide.middle - edge, slide.middle + edge, sigma / 2, sigma
    )


def _halves(of_gene: np.ndarray) -> np.ndarray:
    """Genes by turns to either half, in the order of their counts."""
    half = np.empty(len(of_gene), np.int64)
    half[np.argsort(of_gene, kind="stable")] = np.arange(len(of_gene)) % 2
    return half


def _gains_at(
    move: np.ndarray, slide: Slide, field: Field, mean: np.ndarray, Q: np.ndarray
) -> tuple[Any, float]:
    """Gains as a function of moves, with platform factors and background refitted at one."""
    counts = Counts.of(slide.counts)
    of_gene = np.asarray(slide.counts.sum(axis=0), np.float64).ravel()
    of_spot = np.asarray(slide.counts.sum(axis=1), np.float64).ravel()
    half = _halves(of_gene)
    (there,) = moved(slide.places, move[None], slide.centre, slide.radius)
    beneath = compositions_at(field, slide.window, there)
    usual = float(np.median(beneath.sum(axis=1)) / mean.sum()) or 1.0
    tried = []
    for weight in BACKGROUNDS:
        loadings = beneath + weight * usual * mean
        phi = platform_factors(of_gene, of_spot, loadings, Q)
        profiles = Profiles.of(Q, phi, half)
        tried.append((log_likelihoods(counts, loadings, profiles)[:, 0].sum(), weight, profiles))
    _, weight, profiles = max(tried, key=lambda one: one[0])
    background = weight * usual * mean
    return partial(_gains, slide, counts, field, background, profiles), weight


def _gains(
    slide: Slide, counts: Counts, field: Field, background: np.ndarray, profiles: Profiles,
    moves: np.ndarray, places: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """Gains of log likelihood over the mean of all cells, ``(n_moves, n_spots, 3)``."""
    nothing = log_likelihoods(counts, np.tile(background, (len(slide.places), 1)), profiles)
    points = slide.places if places is None else places
    gains = np.empty((len(moves), *nothing.shape))
    for at, move in enumerate(moves):
        (there,) = moved(points, move[None], slide.centre, slide.radius)
        loadings = compositions_at(field, slide.window, there) + background
        gains[at] = log_likelihoods(counts, loadings, profiles) - nothing
    return gains


def _rivals(slide: Slide, gains: Any, moves: np.ndarray) -> list[np.ndarray]:
    """Gains of spots at their best place after each window is turned or turned over.

    The mirror images have the structure of the tissue, but lie where nothing belongs to them.
    """
    rivals, middle = [], slide.middle[slide.window]
    for matrix in _SYMMETRIES:
        turned = (slide.places - middle) @ matrix.T + middle
        table = tabulate(partial(gains, places=turned), moves).spots
        rivals.append(table[table.sum(axis=1).argmax()])
    return rivals
