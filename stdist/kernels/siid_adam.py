"""SIID's published objective with exact gradients, and its optimiser, for comparison.

All parameters are free real numbers: softmax makes rows of P and Q, exp makes sizes and platform
factors. Ratios are taken at non-zeros only, so memory and time follow these; the cells are in
memory at once. Everything is float64. The faster way to the same optimum is
`stdist.kernels.poisson_factors`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import softmax

from stdist.kernels.poisson_factors_rows import (
    EMPTY_SPOT_COUNT,
    SMALLEST,
    Counts,
    Floats,
    padded,
    ratio_sums,
)

_FIRST_DECAY, _SECOND_DECAY, _ADAM_EPSILON = 0.9, 0.999, 1e-8
_EPOCHS_OF_WEIGHT = 100  # the weight of entropy is refreshed so often


class Parameters(NamedTuple):
    """Free parameters, or gradients by them.

    Attributes
    ----------
    logits_p : (n_cells, n_factors) float64
    logits_q : (n_factors, n_genes) float64
    log_n, log_m : (n_cells,) float64
        Sizes of cells on their own slide and on that of the spots.
    log_phi : (n_panel,) float64
        Platform factors.
    """

    logits_p: Floats
    logits_q: Floats
    log_n: Floats
    log_m: Floats
    log_phi: Floats


class Losses(NamedTuple):
    """Parts of the objective; `entropy` with its weight."""

    total: float
    x: float
    v: float
    l2: float
    entropy: float


class AdamState(NamedTuple):
    """Where the optimisation stands: parameters, running moments, and steps done."""

    parameters: Parameters
    first: Parameters
    second: Parameters
    step: int

    @classmethod
    def begin(cls, parameters: Parameters) -> AdamState:
        """State before the first step."""
        zeros = Parameters(*map(np.zeros_like, parameters))
        return cls(parameters, zeros, zeros, 0)


def reference_start(
    n_cells: int, n_factors: int, n_genes: int, n_panel: int, rng: np.random.Generator
) -> Parameters:
    """Draw parameters from the published program's distributions (not with its numbers)."""
    width_p = np.sqrt(6 / (n_cells + n_factors))
    width_q = np.sqrt(6 / (n_factors + n_genes))
    return Parameters(
        rng.uniform(-width_p, width_p, (n_cells, n_factors)),
        rng.uniform(-width_q, width_q, (n_factors, n_genes)),
        np.ones(n_cells),
        np.ones(n_cells),
        rng.standard_normal(n_panel),
    )


@dataclass(frozen=True)
class Objective:
    """The published objective of a pair of slides.

    Attributes
    ----------
    cells : (n_cells, n_panel) csr, counts
    spots : (n_spots, n_genes) csr, counts
        Genes of the panel first.
    spot : (n_cells,) int
        Row in `spots` of each cell's spot, -1 without.
    l2
        Weight of the sum of all squared parameters.
    platform_scaling
        Whether log phi is fitted. If not, phi is 1; log phi keeps its squares.
    compat_loss
        Whether spots without cells add their constant to the loss.
    """

    cells: sparse.csr_array
    spots: sparse.csr_array
    spot: NDArray[np.integer]
    l2: float = 1e-5
    platform_scaling: bool = True
    compat_loss: bool = True

    def probabilities(self, parameters: Parameters) -> tuple[Floats, Floats]:
        """``P (n_cells, n_factors)`` and ``Q (n_factors, n_genes)``."""
        return softmax(parameters.logits_p, axis=1), softmax(parameters.logits_q, axis=1)

    def platform_factors(self, parameters: Parameters) -> Floats:
        """``phi (n_genes,)``, 1 beyond the panel."""
        phi = np.ones(self.spots.shape[1])
        if self.platform_scaling:
            phi[: self.cells.shape[1]] = np.exp(parameters.log_phi)
        return phi

    def evaluate(
        self, parameters: Parameters, entropy_weight: float = 0.0
    ) -> tuple[Losses, Parameters]:
        """Losses and the gradient of their total.

        Parameters
        ----------
        parameters
            Where.
        entropy_weight
            Weight of the mean entropy of the rows of P, in nats.
        """
        n_cells, n_panel = self.cells.shape
        p, q = self.probabilities(parameters)
        n, phi, mapped = np.exp(parameters.log_n), self.platform_factors(parameters), self.spot >= 0
        m = np.where(mapped, np.exp(parameters.log_m), 0.0)

        membership = sparse.csr_array(
            (m[mapped], (self.spot[mapped], np.flatnonzero(mapped))),
            shape=(self.spots.shape[0], n_cells),
        )
        loading = membership @ p
        of_cells, of_genes, log_x = _ratios(self.cells, n[:, None] * p, q[:, :n_panel])
        of_spots, of_scaled, log_v = _ratios(self.spots, loading, q * phi)
        rate_x, rate_v = q[:, :n_panel].sum(axis=1), q @ phi
        mass_x, mass_v = n @ p, loading.sum(axis=0)
        empty = np.bincount(self.spot[mapped], minlength=self.spots.shape[0]) == 0
        if not self.compat_loss:
            log_v += EMPTY_SPOT_COUNT * self.spots.sum(axis=1)[empty].sum()

        # derivatives by P, Q and phi, of means less those of y log(mean)
        gain_x = rate_x - of_cells
        gain_v = np.where(mapped[:, None], (rate_v - of_spots)[self.spot], 0.0)
        by_p = n[:, None] * gain_x + m[:, None] * gain_v
        shifted = p + SMALLEST
        by_p -= entropy_weight / n_cells * (np.log(shifted) + p / shifted)
        by_scaled = mass_v[:, None] - of_scaled
        by_q = phi * by_scaled
        by_q[:, :n_panel] += mass_x[:, None] - of_genes
        by_phi = (q * by_scaled).sum(axis=0)[:n_panel]

        squares = sum(float(np.vdot(value, value)) for value in parameters)
        entropy = -(p * np.log(shifted)).sum() * entropy_weight / n_cells
        x, v = float(mass_x @ rate_x - log_x), float(mass_v @ rate_v - log_v)
        losses = Losses(x + v + self.l2 * squares + entropy, x, v, self.l2 * squares, entropy)
        gradient = Parameters(
            p * (by_p - (by_p * p).sum(axis=1, keepdims=True)),
            q * (by_q - (by_q * q).sum(axis=1, keepdims=True)),
            n * (p * gain_x).sum(axis=1),
            m * (p * gain_v).sum(axis=1),
            phi[:n_panel] * by_phi * self.platform_scaling,
        )
        pairs = zip(gradient, parameters, strict=True)
        return losses, Parameters(*(g + 2 * self.l2 * value for g, value in pairs))


def _ratios(
    counts: sparse.csr_array, weights: Floats, table: Floats
) -> tuple[Floats, Floats, float]:
    """``R table^T`` and ``weights^T R`` of the ratios R, and the sum of ``y log mean``."""
    n_factors = len(table)
    rows, columns = padded(weights), padded(table.T)
    sums, out = np.zeros_like(rows), np.zeros_like(columns)
    log_sum = ratio_sums(Counts.of(counts), rows, columns, sums, out)
    return sums[:, :n_factors], out[:, :n_factors].T, log_sum


def adam_steps(
    objective: Objective,
    state: AdamState,
    n_steps: int,
    *,
    learning_rate: float = 0.05,
    entropy_denominator: float | None = 1000.0,
) -> tuple[AdamState, Floats]:
    """Take steps of the published optimisation: full batch, constant learning rate.

    Parameters
    ----------
    objective
        What to minimise.
    state
        Where to begin; an interrupted run goes on from the state it reached.
    n_steps
        How many steps. The published run has 5001 in all.
    learning_rate
        Of Adam.
    entropy_denominator
        The weight of entropy is ``exp(epoch / denominator)`` at each hundredth epoch, and in
        between that of the last one. None leaves entropy out.

    Returns
    -------
    state
        After the last step.
    losses : (n_steps, 3) float64
        Total, that of cells and that of spots, before each step.

    Raises
    ------
    FloatingPointError
        If a loss is not finite.
    """
    losses = np.empty((n_steps, 3))
    for number in range(n_steps):
        weight = 0.0
        if entropy_denominator is not None:
            epoch = state.step // _EPOCHS_OF_WEIGHT * _EPOCHS_OF_WEIGHT
            weight = float(np.exp(epoch / entropy_denominator))
        loss, gradient = objective.evaluate(state.parameters, weight)
        losses[number] = loss[:3]
        if not np.isfinite(loss.total):
            raise FloatingPointError(f"the loss is {loss.total} at step {state.step}")
        state = _adam_step(state, gradient, learning_rate)
    return state, losses


def _adam_step(state: AdamState, gradient: Parameters, learning_rate: float) -> AdamState:
    step = state.step + 1
    rate = learning_rate / (1 - _FIRST_DECAY**step)
    correction = np.sqrt(1 - _SECOND_DECAY**step)
    values, firsts, seconds = [], [], []
    for value, first, second, slope in zip(*state[:3], gradient, strict=True):
        firsts.append(_FIRST_DECAY * first + (1 - _FIRST_DECAY) * slope)
        seconds.append(_SECOND_DECAY * second + (1 - _SECOND_DECAY) * slope**2)
        scale = np.sqrt(seconds[-1]) / correction + _ADAM_EPSILON
        values.append(value - rate * firsts[-1] / scale)
    return AdamState(Parameters(*values), Parameters(*firsts), Parameters(*seconds), step)
