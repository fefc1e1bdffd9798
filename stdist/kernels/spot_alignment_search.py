"""The rigid move of spots that their likelihood is largest for, and whether that can be trusted.

Moves are vectors ``(dx, dy, radius * angle)`` in um of `stdist.kernels.spot_alignment.moved`. A
table holds the gain of every spot for every move, so that what another draw of tissue would have
found is a weighted sum away: blocks of neighbouring spots get random weights (the Bayesian
bootstrap), because spots next to each other see the same structure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stdist.kernels.keyed_random import stream_key, uniforms
from stdist.kernels.poisson_factors_rows import Floats

Gains = Callable[[Floats], Floats]
"""From moves ``(n_moves, 3)`` to gains ``(n_moves, n_spots, 3)``, of all genes and of halves."""

FINEST = 0.5
"""Last step of the search, um."""
_AT_ONCE = 64  # moves
_NEIGHBOURS = np.stack(np.meshgrid([-1, 0, 1], [-1, 0, 1], [-1, 0, 1]), axis=-1).reshape(-1, 3)


class Table(NamedTuple):
    """Gains of moves: ``spots (n_moves, n_spots)``, ``halves (n_moves, 2)`` of the genes."""

    spots: Floats
    halves: Floats


class Spread(NamedTuple):
    """How far the optimum moves with the draw of spots and of genes.

    ``standard_error``: root mean square distance from the optimum over the draws, um; ``share``:
    of draws within the tolerance; ``halves``: distance between the optima of two halves of the
    genes, um.
    """

    standard_error: float
    share: float
    halves: float


def coarse_moves(max_shift: float, max_turn: float, step: float) -> Floats:
    """All moves on a grid within a largest shift, each turned by angles up to the largest.

    Parameters
    ----------
    max_shift, max_turn
        Largest shift, and largest ``radius * angle``, um.
    step
        Distance of the nodes, um; that of the angles is at most this.

    Examples
    --------
    >>> len(coarse_moves(20.0, 0.0, 10.0)), len(coarse_moves(20.0, 15.0, 10.0))
    (13, 65)
    """
    n, n_turns = int(max_shift // step), int(np.ceil(max_turn / step))
    nodes = step * np.arange(-n, n + 1)
    x, y, turn = np.meshgrid(nodes, nodes, np.linspace(-max_turn, max_turn, 2 * n_turns + 1))
    within = np.hypot(x, y) <= max_shift
    return np.column_stack([x[within], y[within], turn[within]])


def allowed(moves: Floats, max_shift: float, max_turn: float) -> NDArray[np.bool_]:
    """Tell which moves are within the largest shift and the largest ``radius * angle``."""
    return (np.hypot(*moves[:, :2].T) <= max_shift) & (np.abs(moves[:, 2]) <= max_turn)


def tabulate(gains: Gains, moves: Floats) -> Table:
    """Gains of many moves, some at a time."""
    spots, halves = [], []
    for at in range(0, len(moves), _AT_ONCE):
        found = gains(moves[at : at + _AT_ONCE])
        spots.append(found[:, :, 0].copy())
        halves.append(found[:, :, 1:].sum(axis=1))
    return Table(np.concatenate(spots), np.concatenate(halves))


def climb(gains: Gains, start: Floats, step: float, max_shift: float, max_turn: float) -> Floats:
    """Go to the best neighbour as long as one is better, then halve the step, down to `FINEST`.

    Parameters
    ----------
    gains
        Of moves.
    start : (3,) float64
    step
        The first, um.
    max_shift, max_turn
        As of `allowed`.

    Returns
    -------
    (3,) float64
    """
    best = np.asarray(start, np.float64)
    level = gains(best[None])[0, :, 0].sum()
    while step >= FINEST:
        moves = best + step * _NEIGHBOURS
        moves = moves[allowed(moves, max_shift, max_turn)]
        total = gains(moves)[:, :, 0].sum(axis=1)
        if total.max() > level:
            best, level = moves[total.argmax()], total.max()
        else:
            step /= 2
    return best


def nearby_moves(best: Floats, step: float, n: int, max_shift: float, max_turn: float) -> Floats:
    """Moves on a grid within n steps of the best."""
    grid = np.stack(np.meshgrid(*3 * [np.arange(-n, n + 1)]), axis=-1).reshape(-1, 3)
    moves = best + step * grid[np.linalg.norm(grid, axis=1) <= n]
    return moves[allowed(moves, max_shift, max_turn)]


def spatial_blocks(points: Floats, edge: float) -> NDArray[np.int64]:
    """Number of the square block of each point, from 0."""
    cell = np.floor((points - points.min(axis=0)) / edge).astype(np.int64)
    return np.unique(cell, axis=0, return_inverse=True)[1].reshape(-1)


def block_weights(blocks: NDArray[np.int64], n_draws: int, seed: int) -> Floats:
    """Exponential weights of the blocks for each draw, ``(n_draws, n_spots)``."""
    n = int(blocks.max()) + 1
    drawn = [uniforms(stream_key(seed, "alignment bootstrap", at), 0, n) for at in range(n_draws)]
    return -np.log(np.array(drawn))[:, blocks]


def spread(moves: Floats, table: Table, best: Floats, weights: Floats, tolerance: float) -> Spread:
    """Tell where the optimum lies for other draws of spots and for half of the genes.

    Parameters
    ----------
    moves : (n_moves, 3) float64
    table
        Of `tabulate`.
    best : (3,) float64
    weights : (n_draws, n_spots) float64
    tolerance
        um.
    """
    chosen = moves[(weights @ table.spots.T).argmax(axis=1)]
    distance = np.linalg.norm(chosen - best, axis=1)
    one, other = moves[table.halves.argmax(axis=0)]
    return Spread(
        float(np.sqrt((distance**2).mean())),
        float((distance <= tolerance).mean()),
        float(np.linalg.norm(one - other)),
    )


def lead(best: Floats, rival: Floats, blocks: NDArray[np.int64]) -> float:
    """By how many standard errors over blocks the gains of spots exceed those of a rival.

    Parameters
    ----------
    best, rival : (n_spots,) float64
    blocks : (n_spots,) int64
    """
    by_block = np.bincount(blocks, best - rival)
    error = np.sqrt(((by_block - by_block.mean()) ** 2).sum())
    return float(by_block.sum() / max(error, np.finfo(float).tiny))
