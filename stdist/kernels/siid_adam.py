"""SIID's published optimiser: full-batch Adam from its start, with its schedule of entropy.

The faster way to the same optimum is `stdist.kernels.poisson_factors`. Draws of the start are
keyed, from the distributions of the published program; they are not its numbers.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from stdist.kernels.keyed_random import stream_key, uniforms
from stdist.kernels.poisson_factors_rows import Floats
from stdist.kernels.poisson_factors_start import keyed_draws

_FIRST_DECAY, _SECOND_DECAY, _EPSILON = 0.9, 0.999, 1e-8
_EPOCHS_OF_WEIGHT = 100


def start_cells(numbers: NDArray[np.int64], n_cells: int, n_factors: int, seed: int) -> Floats:
    """Draw parameters of cells as `stdist.kernels.siid_gradient.tile_gradient` takes them.

    Parameters
    ----------
    numbers : (n,) int64
        Global rows of the cells.
    n_cells
        Number of all cells.
    n_factors
        Number of factors.
    seed
        Of the draws.

    Returns
    -------
    (n, n_factors + 2) float64
        Logits are uniform, within Glorot's bound; logarithms of sizes are 1.
    """
    keys = [stream_key(seed, "siid logits of cells", k) for k in range(n_factors)]
    bound = math.sqrt(6 / (n_cells + n_factors))
    logits = bound * (2 * keyed_draws(np.array(keys), numbers) - 1)
    return np.column_stack([logits, np.ones((len(numbers), 2))])


def start_factors(
    n_factors: int, n_genes: int, n_panel: int, seed: int
) -> tuple[Floats, Floats]:  # fmt: skip
    """Draw logits of Q, uniform within Glorot's bound, and standard normal log phi."""
    bound = math.sqrt(6 / (n_factors + n_genes))
    draws = [
        uniforms(stream_key(seed, "siid logits of factors", k), 0, n_genes)
        for k in range(n_factors)
    ]
    normal: Floats = ndtri(uniforms(stream_key(seed, "siid log platform factors", 0), 0, n_panel))
    return bound * (2 * np.array(draws) - 1), normal


def entropy_weight(epoch: int, schedule: float) -> float:
    """Weight of the cells' mean entropy: ``exp(epoch / schedule)`` of the last hundredth epoch.

    Examples
    --------
    >>> entropy_weight(99, 1000.0), round(entropy_weight(250, 1000.0), 4)
    (1.0, 1.2214)
    """
    return math.exp(epoch // _EPOCHS_OF_WEIGHT * _EPOCHS_OF_WEIGHT / schedule)


def adam_step(moving: Floats, slope: Floats, epoch: int, learning_rate: float) -> Floats:
    """Take a step of Adam (Kingma and Ba 2015).

    Parameters
    ----------
    moving : (3, ...) float64
        Parameters, and the running means of their gradients and of these squared.
    slope : (...) float64
        Gradient.
    epoch
        Steps taken before, 0 for the first one.
    learning_rate
        Constant.

    Returns
    -------
    (3, ...) float64
    """
    value, first, second = moving
    first = _FIRST_DECAY * first + (1 - _FIRST_DECAY) * slope
    second = _SECOND_DECAY * second + (1 - _SECOND_DECAY) * slope**2
    rate = learning_rate / (1 - _FIRST_DECAY ** (epoch + 1))
    scale = np.sqrt(second) / math.sqrt(1 - _SECOND_DECAY ** (epoch + 1)) + _EPSILON
    return np.stack([value - rate * first / scale, first, second])


def begin_adam(parameters: Floats) -> Floats:
    """Return parameters with their running means, before the first `adam_step`."""
    zeros = np.zeros_like(parameters)
    return np.stack([parameters, zeros, zeros])
