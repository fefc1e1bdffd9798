"""Compiled rounds of the Poisson factorisation of a spot with its cells, factors fixed.

Given the factors, a spot and the cells under it are a small problem of their own, and so is a
cell without a spot. Its rounds run while it is in the cache, and its own loss tells whether
over-relaxation went too far: no result depends on which other spots are near.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from stdist.kernels.array_module import array_module
from stdist.kernels.poisson_factors_dispersion import expected_logs, explain_overdispersed
from stdist.kernels.poisson_factors_rows import (
    SMALLEST,
    Counts,
    Floats,
    explain,
    normalise,
    padded,
    penalised_row,
    scatter,
    shrunken_log,
)

SMALLEST_SIZE = 1e-6
"""Least size of a cell, and that of a cell without counts."""
_NOISE = 1e-11  # relative rise of a loss that is rounding


class Rows(NamedTuple):
    """Parameters of cells: probabilities of factors, and sizes on either slide."""

    p: Floats  # (n_cells, n_padded)
    n: Floats  # (n_cells,)
    m: Floats  # (n_cells,)


def begin_rows(rows: Rows, gauge: Floats | None) -> Rows:
    """A copy of the rows, padded; with a gauge their factors scaled, and rows normalised again.

    Arrays are NumPy's or CuPy's.
    """
    n_factors = rows.p.shape[1]
    p, n, m = padded(rows.p), rows.n.astype(np.float64), rows.m.astype(np.float64)
    if gauge is not None:
        own = rows.p * gauge
        scale = own.sum(axis=1)
        p[:, :n_factors] = array_module(p).maximum(own / scale[:, None], SMALLEST)
        n, m = n * scale, m * scale
    return Rows(p, n, m)


class Factors(NamedTuple):
    """Factors as tables of genes, columns padded, and their sums over genes."""

    cells: Floats  # (n_panel, n_padded), transposed Q
    spots: Floats  # (n_genes, n_padded), transposed Q diag(phi)
    rate_cells: Floats  # (n_padded,)
    rate_spots: Floats  # (n_padded,)
    dispersion: Floats  # (n_genes,) of the negative binomial, or empty


class Options(NamedTuple):
    """How often and how far rows move, and what is added to their loss."""

    n_factors: int
    rounds: int
    exponent: int
    entropy: float
    l2: float
    tied: bool


class Sums(NamedTuple):
    """What a pass adds up for the update of the factors."""

    cells: Floats  # (n_panel, n_padded), (Y / L)^T diag(n) P
    spots: Floats  # (n_genes, n_padded), (Y / L)^T B
    mass_cells: Floats  # (n_padded,), sum of n P
    mass_spots: Floats  # (1 or n_genes, n_padded), sum of B, times the weights of a gene
    log_gamma: Floats  # (n_genes or 0,), of the negative binomial
    scalars: Floats  # (5,), losses of cells and of spots, entropy, squares, rejected rounds


class Work(NamedTuple):
    """Working space."""

    sums: Floats  # (n_cells, n_padded), of `explain`
    loading: Floats  # (n_padded,), size times probabilities of a cell
    spot: Floats  # (n_padded,), B of the spot
    spot_sums: Floats  # (n_padded,)
    spot_rate: Floats  # (n_padded,)
    ratios: Floats  # (n_nonzeros,), of the group
    means: Floats  # (n_genes or 0,)
    weights: Floats  # (n_genes or 0,)


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
def _dot(left: Floats, right: Floats) -> float:
    # nothing is stored in a loop that may be reordered: whether it is in vectors would else depend
    # on the addresses of the arrays, and with it the last bit of the sum
    total = 0.0
    for k in range(left.size):
        total += left[k] * right[k]
    return total


@njit(nogil=True, cache=True)
def _explain(
    cells: Counts,
    spots: Counts,
    members: NDArray[np.int64],
    spot: int,
    rows: Rows,
    factors: Factors,
    work: Work,
) -> tuple[float, float]:
    """Ratios and their sums at the present rows; returns the losses of cells and spot."""
    work.spot[:] = 0.0
    at, loss = 0, 0.0
    for i in members:
        for k in range(work.spot.size):
            work.loading[k] = rows.n[i] * rows.p[i, k]
            work.spot[k] += rows.m[i] * rows.p[i, k]
        loss += _dot(work.loading, factors.rate_cells) - explain(
            cells, i, work.loading, factors.cells, work.sums[i], work.ratios[at:]
        )
        at += cells.indptr[i + 1] - cells.indptr[i]
    work.spot_rate[:] = factors.rate_spots
    if spot < 0:
        return loss, 0.0
    ratios = work.ratios[at:]
    log_sum = explain(spots, spot, work.spot, factors.spots, work.spot_sums, ratios)
    if work.weights.size:
        return loss, explain_overdispersed(
            spots, spot, work.spot, factors.spots, factors.dispersion, log_sum,
            work.means, work.weights, work.spot_rate,
        )  # fmt: skip
    return loss, _dot(work.spot, factors.rate_spots) - log_sum


@njit(nogil=True, cache=True)
def _penalties(
    members: NDArray[np.int64], spot: int, rows: Rows, options: Options
) -> tuple[float, float]:
    """Entropy of the rows, and squares of their logits and log sizes; 0 where without weight."""
    entropy = squares = 0.0
    if options.entropy == 0.0 and options.l2 == 0.0:
        return entropy, squares
    for i in members:
        total = square = 0.0
        for k in range(options.n_factors):
            log_p = math.log(rows.p[i, k])
            total += log_p
            square += log_p * log_p
            entropy -= rows.p[i, k] * math.log(rows.p[i, k] + SMALLEST)
        squares += square - total * total / options.n_factors + math.log(rows.n[i]) ** 2
        squares += math.log(rows.m[i]) ** 2 if spot >= 0 else 0.0
    return entropy, squares


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "nsz"})
def _size(count: float, rate: float, l2: float) -> float:
    if l2 > 0.0:
        return max(math.exp(shrunken_log(count, rate, 0.0, l2)), SMALLEST_SIZE)
    return max(count / rate, SMALLEST_SIZE)


@njit(nogil=True, cache=True, error_model="numpy")
def _tie(members: NDArray[np.int64], rows: Rows) -> None:
    """Give the cells of a spot one ratio of their sizes, that of the sums."""
    n = m = 0.0
    for i in members:
        n += rows.n[i]
        m += rows.m[i]
    scale = max(m / n, SMALLEST_SIZE)
    for i in members:
        rows.m[i] = scale * rows.n[i]


@njit(nogil=True, cache=True, error_model="numpy")
def _tied_size(counts: float, rate: float, scale: float, l2: float) -> float:
    """Size n of a cell whose size on the other slide is ``scale * n``."""
    if l2 > 0.0:  # of log n and of log(scale n): twice that around the mean of their roots
        u = shrunken_log(counts, rate, -0.5 * math.log(scale), 2.0 * l2)
        return max(math.exp(u), SMALLEST_SIZE)
    return max(counts / rate, SMALLEST_SIZE)


@njit(nogil=True, cache=True, error_model="numpy")
def _rescale(
    members: NDArray[np.int64], explained: float, rate: float, l2: float, new: Rows
) -> None:
    """Set the sizes m by the scale of their spot, given their sizes n."""
    if l2 > 0.0:
        centre = 0.0
        for i in members:
            centre -= math.log(new.n[i]) / members.size
        scale = math.exp(shrunken_log(explained, rate, centre, members.size * l2))
    else:
        scale = explained / rate
    for i in members:
        new.m[i] = max(scale, SMALLEST_SIZE) * new.n[i]


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "nsz"})
def _update(
    members: NDArray[np.int64],
    spot: int,
    rows: Rows,
    factors: Factors,
    work: Work,
    options: Options,
    new: Rows,
) -> None:
    """One EM step of the rows, from the ratios at them."""
    h = options.n_factors
    counts, rates = np.empty(h), np.empty(h)
    tied, explained, rate = options.tied and spot >= 0, 0.0, 0.0
    for i in members:
        n, p, out = rows.n[i], rows.p[i], new.p[i]
        m = rows.m[i] if spot >= 0 else 0.0
        of_cell = n * _dot(p, work.sums[i])
        of_spot = m * _dot(p, work.spot_sums) if spot >= 0 else 0.0
        for k in range(h):
            counts[k] = n * p[k] * work.sums[i, k]
            counts[k] += m * p[k] * work.spot_sums[k] if spot >= 0 else 0.0
            rates[k] = n * factors.rate_cells[k] + m * work.spot_rate[k]
        if of_cell + of_spot <= 0.0:
            out[:] = p
        elif options.entropy == 0.0 and options.l2 == 0.0:
            for k in range(h):
                out[k] = counts[k] / rates[k]
            normalise(out[:h])  # the scale is that of the sizes
        else:
            penalised_row(counts, rates, p[:h], options.entropy, options.l2, out[:h])
        rate_cell, rate_spot = _dot(out, factors.rate_cells), _dot(out, work.spot_rate)
        if tied:
            both = rate_cell + m / n * rate_spot
            new.n[i] = _tied_size(of_cell + of_spot, both, m / n, options.l2)
            explained += of_spot
            rate += new.n[i] * rate_spot
            continue
        new.n[i] = _size(of_cell, rate_cell, options.l2)
        new.m[i] = _size(of_spot, rate_spot, options.l2) if spot >= 0 else rows.m[i]
    if tied:
        _rescale(members, explained, rate, options.l2, new)


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "nsz"})
def _extrapolate(members: NDArray[np.int64], rows: Rows, plain: Rows, options: Options) -> None:
    """Take the plain step several times over, in logarithms."""
    for i in members:
        in_cell, in_spot = plain.n[i] / rows.n[i], plain.m[i] / rows.m[i]
        row = rows.p[i, : options.n_factors]
        for _ in range(options.exponent):
            rows.n[i] *= in_cell
            rows.m[i] *= in_spot
        for k in range(options.n_factors):
            p = row[k]
            ratio = plain.p[i, k] / p
            for _ in range(options.exponent):
                p *= ratio
            row[k] = p
        normalise(row)


@njit(nogil=True, cache=True)
def _copy(members: NDArray[np.int64], source: Rows, target: Rows) -> None:
    for i in members:
        target.p[i] = source.p[i]
        target.n[i] = source.n[i]
        target.m[i] = source.m[i]


@njit(nogil=True, cache=True)
def _collect(
    cells: Counts,
    spots: Counts,
    members: NDArray[np.int64],
    spot: int,
    rows: Rows,
    plain: Rows,
    factors: Factors,
    work: Work,
    sums: Sums,
) -> None:
    """Add the ratios at the present rows, and the masses after the plain step."""
    at = 0
    for i in members:
        for k in range(work.loading.size):
            work.loading[k] = rows.n[i] * rows.p[i, k]
            sums.mass_cells[k] += plain.n[i] * plain.p[i, k]
        scatter(cells, i, work.loading, work.ratios[at:], sums.cells)
        at += cells.indptr[i + 1] - cells.indptr[i]
    if spot < 0:
        return
    scatter(spots, spot, work.spot, work.ratios[at:], sums.spots)
    if work.weights.size:
        expected_logs(spots, spot, factors.dispersion, work.means, work.weights, sums.log_gamma)
    work.spot[:] = 0.0
    for i in members:
        for k in range(work.spot.size):
            work.spot[k] += plain.m[i] * plain.p[i, k]
    for g in range(sums.mass_spots.shape[0]):
        weight = work.weights[g] if work.weights.size else 1.0
        for k in range(work.spot.size):
            sums.mass_spots[g, k] += weight * work.spot[k]


@njit(nogil=True, cache=True)
def improve_rows(
    cells: Counts,
    spots: Counts,
    order: NDArray[np.int64],
    starts: NDArray[np.int64],
    spot_of_group: NDArray[np.int64],
    rows: Rows,
    plain: Rows,
    factors: Factors,
    options: Options,
    work: Work,
    sums: Sums,
) -> None:
    """Improve the rows of all groups, and add up the statistics of the last round.

    Parameters
    ----------
    order, starts, spot_of_group
        Cells of group g are ``order[starts[g] : starts[g + 1]]``; its spot may be -1.
    rows
        Improved in place.
    plain
        Working space of the shapes of `rows`.
    """
    for g in range(spot_of_group.size):
        members, spot = order[starts[g] : starts[g + 1]], spot_of_group[g]
        least = math.inf
        if options.tied and spot >= 0:
            _tie(members, rows)
        for number in range(options.rounds):
            for attempt in range(2):
                x, v = _explain(cells, spots, members, spot, rows, factors, work)
                entropy, squares = _penalties(members, spot, rows, options)
                loss = x + v + options.entropy * entropy + options.l2 * squares
                if attempt == 1 or loss <= least + _NOISE * abs(least):
                    break
                _copy(members, plain, rows)
                sums.scalars[4] += 1.0
            least = loss
            _update(members, spot, rows, factors, work, options, plain)
            if number == options.rounds - 1:
                _collect(cells, spots, members, spot, rows, plain, factors, work, sums)
                _copy(members, plain, rows)
            elif options.exponent == 1:
                _copy(members, plain, rows)
            else:
                _extrapolate(members, rows, plain, options)
        for which, value in enumerate((x, v, entropy, squares)):
            sums.scalars[which] += value
