"""Laplace likelihood of the two-way Poisson mixed model, and its exact gradient.

Model of one gene, for the total count y of a group (cell type c, batch b) with exposure e::

    y_cb ~ Poisson(e_cb exp(b0 + s1 x_c + s2 z_b + s3 w_cb)),    x, z, w ~ Normal(0, 1)

With u = (x, z, w) at the mode of the joint density and mu the Poisson means there::

    log L = -h(u) - log det(H) / 2,     h = sum(mu - y log mu + log y!) + |u|^2 / 2
    H = I + sum_g mu_g a_g a_g',        a_g = s1 e_c + s2 e_b + s3 e_cb

The w block of H is diagonal, and so is the x block of what remains once w is eliminated: one
small dense matrix over the batches is left.

The linear predictor is kept relative to the data, ``r = log(mu / reference)`` with ``reference =
max(y, 1)`` and ``offset = log(e / reference)``, and means as residuals ``mu - y = y expm1(r)``: no
digits are lost however large the counts.  A group without cells has reference 0, hence mean 0,
and drops out of every sum; so does a type or batch with no group.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Effects = tuple[FloatArray, FloatArray, FloatArray]
Factors = tuple[FloatArray, FloatArray, FloatArray, float]

_MAXIMUM_STEPS = 200
_SMALLEST_STEP = 1e-12


@njit(nogil=True, cache=True)
def negative_log_joint(
    theta: FloatArray,
    counts: FloatArray,
    offset: FloatArray,
    reference: FloatArray,
    mode: Effects,
    residual: FloatArray,
) -> float:
    """h(u) relative to the saturated model; writes mu - y to ``residual``."""
    x, z, w = mode
    total = 0.5 * ((x * x).sum() + (z * z).sum() + (w * w).sum())
    for c in range(counts.shape[0]):
        for b in range(counts.shape[1]):
            log_ratio = offset[c, b] + theta[3]
            log_ratio += theta[0] * x[c] + theta[1] * z[b] + theta[2] * w[c, b]
            if counts[c, b] > 0.0:
                residual[c, b] = counts[c, b] * np.expm1(log_ratio)
                total += residual[c, b] - counts[c, b] * log_ratio
            else:
                residual[c, b] = reference[c, b] * np.exp(log_ratio)
                total += residual[c, b]
    return total


@njit(nogil=True, cache=True)
def factorise(theta: FloatArray, mu: FloatArray) -> Factors:
    """Eliminate w, then x, from H.

    Returns the diagonal of x (n_types,), its coupling to z (n_types, n_batches), the inverse of
    the matrix left for z (n_batches, n_batches) and log det(H).
    """
    n_types, n_batches = mu.shape
    diagonal, coupling = np.ones(n_types), np.empty((n_types, n_batches))
    inverse = np.eye(n_batches)
    log_det = 0.0
    for c in range(n_types):
        for b in range(n_batches):
            pivot = 1.0 + theta[2] ** 2 * mu[c, b]
            weight = mu[c, b] / pivot
            log_det += np.log(pivot)
            diagonal[c] += theta[0] ** 2 * weight
            coupling[c, b] = theta[0] * theta[1] * weight
            inverse[b, b] += theta[1] ** 2 * weight
        log_det += np.log(diagonal[c])
        for a in range(n_batches):
            factor = coupling[c, a] / diagonal[c]
            for b in range(n_batches):
                inverse[a, b] -= factor * coupling[c, b]
    for k in range(n_batches):  # Gauss-Jordan: positive definite, so no pivoting is needed
        pivot = inverse[k, k]
        log_det += np.log(pivot)
        inverse[k, k] = 1.0
        for b in range(n_batches):
            inverse[k, b] /= pivot
        for a in range(n_batches):
            if a != k:
                factor = inverse[a, k]
                inverse[a, k] = 0.0
                for b in range(n_batches):
                    inverse[a, b] -= factor * inverse[k, b]
    return diagonal, coupling, inverse, log_det


@njit(nogil=True, cache=True)
def solve(theta: FloatArray, mu: FloatArray, factors: Factors, right: Effects) -> Effects:
    """Effects v = (x, z, w) with H v = right."""
    diagonal, coupling, inverse, _ = factors
    x, z, w = right[0].copy(), right[1].copy(), right[2].copy()
    n_types, n_batches = mu.shape
    for c in range(n_types):
        for b in range(n_batches):
            moved = theta[2] * mu[c, b] / (1.0 + theta[2] ** 2 * mu[c, b]) * w[c, b]
            x[c] -= theta[0] * moved
            z[b] -= theta[1] * moved
    reduced = z.copy()
    for c in range(n_types):
        for b in range(n_batches):
            reduced[b] -= coupling[c, b] * x[c] / diagonal[c]
    for a in range(n_batches):
        z[a] = 0.0
        for b in range(n_batches):
            z[a] += inverse[a, b] * reduced[b]
    for c in range(n_types):
        for b in range(n_batches):
            x[c] -= coupling[c, b] * z[b]
        x[c] /= diagonal[c]
        for b in range(n_batches):
            main = theta[0] * x[c] + theta[1] * z[b]
            w[c, b] = (w[c, b] - theta[2] * mu[c, b] * main) / (1.0 + theta[2] ** 2 * mu[c, b])
    return x, z, w


@njit(nogil=True, cache=True)
def find_mode(
    theta: FloatArray,
    counts: FloatArray,
    offset: FloatArray,
    reference: FloatArray,
    mode: Effects,
) -> tuple[float, Effects, FloatArray]:
    """Damped Newton from ``mode`` to the minimum of the convex h: value, mode and mu - y."""
    residual, trial_residual = np.empty_like(counts), np.empty_like(counts)
    value = negative_log_joint(theta, counts, offset, reference, mode, residual)
    origin = (np.zeros_like(mode[0]), np.zeros_like(mode[1]), np.zeros_like(mode[2]))
    origin_value = negative_log_joint(theta, counts, offset, reference, origin, trial_residual)
    if not value < origin_value:
        mode, value, residual[:] = origin, origin_value, trial_residual
    for _ in range(_MAXIMUM_STEPS):
        x, z, w = mode
        downhill = (
            -x - theta[0] * residual.sum(axis=1),
            -z - theta[1] * residual.sum(axis=0),
            -w - theta[2] * residual,
        )
        mu = counts + residual
        dx, dz, dw = solve(theta, mu, factorise(theta, mu), downhill)
        decrement = (downhill[0] * dx).sum() + (downhill[1] * dz).sum() + (downhill[2] * dw).sum()
        step = 1.0
        while step > _SMALLEST_STEP:
            trial = (x + step * dx, z + step * dz, w + step * dw)
            trial_value = negative_log_joint(
                theta, counts, offset, reference, trial, trial_residual
            )
            # Close to the minimum the gain drowns in rounding, and the full step is right.
            if trial_value <= value - 1e-4 * step * decrement or decrement < 1e-8:
                break
            step *= 0.5
        if not step > _SMALLEST_STEP:
            break
        mode, value, residual[:] = trial, trial_value, trial_residual
        if decrement < 1e-13:
            break
    return value, mode, residual


@njit(nogil=True, cache=True)
def laplace(
    theta: FloatArray,
    counts: FloatArray,
    offset: FloatArray,
    reference: FloatArray,
    mode: Effects,
) -> tuple[float, FloatArray, Effects]:
    """Negative log-likelihood of one gene relative to the saturated model, and its gradient.

    Parameters
    ----------
    theta
        (4,): standard deviations s1 (types), s2 (batches), s3 (interaction) of either sign, and
        the intercept b0.
    counts, offset, reference
        (n_types, n_batches), as the module describes.
    mode
        Where to start looking for the mode: x (n_types,), z (n_batches,), w (n_types, n_batches).

    Returns
    -------
    tuple
        sum(y log y - y - log y!) - log L, its gradient (4,), and the mode.
    """
    value, mode, residual = find_mode(theta, counts, offset, reference, mode)
    x, z, w = mode
    mu = counts + residual
    factors = factorise(theta, mu)
    diagonal, coupling, inverse, log_det = factors
    n_types, n_batches = mu.shape
    gradient = np.zeros(4)
    leverage = np.zeros((n_types, n_batches))  # mu_g a_g' H^-1 a_g
    projected = np.empty(n_batches)
    for c in range(n_types):
        inverse_cc = 1.0
        for a in range(n_batches):
            projected[a] = 0.0
            for b in range(n_batches):
                projected[a] += inverse[a, b] * coupling[c, b] / diagonal[c]
            inverse_cc += projected[a] * coupling[c, a]
        inverse_cc /= diagonal[c]
        for b in range(n_batches):
            pivot = 1.0 + theta[2] ** 2 * mu[c, b]
            along_x = theta[0] * inverse_cc - theta[1] * projected[b]
            along_z = theta[1] * inverse[b, b] - theta[0] * projected[b]
            main = theta[0] * along_x + theta[1] * along_z
            along_x, along_z = along_x / pivot, along_z / pivot
            along_w = theta[2] / pivot * (1.0 - mu[c, b] * main / pivot)
            gradient[0] += mu[c, b] * along_x
            gradient[1] += mu[c, b] * along_z
            gradient[2] += mu[c, b] * along_w
            leverage[c, b] = mu[c, b] * (
                theta[0] * along_x + theta[1] * along_z + theta[2] * along_w
            )
    # log det(H) also moves with the mode: du/dtheta = -H^-1 d2h/(du dtheta), taken adjoint.
    vx, vz, vw = solve(
        theta,
        mu,
        factors,
        (theta[0] * leverage.sum(axis=1), theta[1] * leverage.sum(axis=0), theta[2] * leverage),
    )
    for c in range(n_types):
        for b in range(n_batches):
            shift = theta[0] * vx[c] + theta[1] * vz[b] + theta[2] * vw[c, b]
            slope = residual[c, b] + 0.5 * (leverage[c, b] - mu[c, b] * shift)
            gradient[0] += slope * x[c] - 0.5 * residual[c, b] * vx[c]
            gradient[1] += slope * z[b] - 0.5 * residual[c, b] * vz[b]
            gradient[2] += slope * w[c, b] - 0.5 * residual[c, b] * vw[c, b]
            gradient[3] += slope
    return value + 0.5 * log_det, gradient, mode
