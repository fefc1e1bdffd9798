"""Simulated multi-slide imaging cohort with known truth, generated one block of cells at a time.

Cell i of slide (batch) b at position p, with U uniform and N standard normal numbers that belong
to (seed, purpose, i) and, for counts, to gene g; sigma are the parameters of the same name::

    slide      b = the slide whose rows contain i: consecutive, nearly equal ranges
    position   p = L_b (U, U) um,  L_b = 1000 sqrt(cells of slide b / 2800)
    type       t = uniform over the types for a scattered cell, else the type of the domain d
               whose centre c_d + shift_bd is nearest to (p + boundary_width N) / L_b
    depth      s_i = exp(depth_sigma N - depth_sigma^2 / 2), mean 1
    mean       mu_ig = s_i rate_tg exp(batch_bg + interaction_btg)
    count      y_ig = smallest k with P(Poisson(mu_ig) <= k) >= U_ig

    rate_tg    = a exp(rate_sigma N_g + type_sigma N_tg) * (marker_factor if g marks t else 1)
    batch_bg   ~ batch_sigma N,  interaction_btg ~ batch_type_sigma N,  both sum to 0 over slides

The constant a gives the wanted share of non-zero counts.  Domains are shared by the slides up to
the small shifts: the same anatomy, cut again.  Any split of the rows into blocks gives the same
cells, and the corrected truth is ``s_i rate_tg``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtri

from stdist.kernels.cohort_cells import Cells, CohortModel, FloatArray, cells_of_rows
from stdist.kernels.keyed_random import row_hash, stream_key, uniform_of_hash, uniforms
from stdist.kernels.poisson_quantile import matched_count

__all__ = ["CohortBlock", "CohortModel", "cohort_model", "simulate_block", "true_mean_block"]

MINIMUM_DENSITY, MAXIMUM_DENSITY = 0.05, 0.25
MAXIMUM_COUNT = np.iinfo(np.uint16).max
_DOMAINS_PER_TYPE = 3
_SLIDE_SHIFT = 0.02  # standard deviation, in slide widths
_CALIBRATION_CELLS = 16384


class CohortBlock(NamedTuple):
    """Cells ``start`` to ``stop`` of a cohort, n of them.

    ``counts`` uint16 (n, n_genes); ``batch``, ``cell_type`` int16 (n,); ``spatial`` float32
    (n, 2) in um from the corner of the slide; ``depth`` float32 (n,), mean 1.
    """

    counts: NDArray[np.uint16]
    batch: NDArray[np.int16]
    cell_type: NDArray[np.int16]
    spatial: NDArray[np.float32]
    depth: NDArray[np.float32]


def cohort_model(
    *,
    n_cells: int,
    n_genes: int = 500,
    n_batches: int = 4,
    n_types: int = 12,
    seed: int = 0,
    density: float = 0.09,
    depth_sigma: float = 0.5,
    batch_sigma: float = 0.4,
    batch_type_sigma: float = 0.15,
    rate_sigma: float = 1.2,
    type_sigma: float = 0.3,
    markers_per_type: int | None = None,
    marker_factor: float = 8.0,
    scatter_fraction: float = 0.1,
    boundary_width: float = 40.0,
) -> CohortModel:
    """Draw the truth of a cohort; the module describes the model.

    Parameters
    ----------
    n_cells, n_genes, n_batches, n_types
        Size; slides are as many as batches and share all cell types.
    seed
        Not negative. Same arguments, same cohort.
    density
        Share of non-zero counts, 0.05 to 0.25, met within 10 %.
    depth_sigma, batch_sigma, batch_type_sigma, rate_sigma, type_sigma
        Standard deviations on the natural-log scale.
    markers_per_type
        Genes raised by ``marker_factor`` in each type; a twentieth of the genes by default.
    scatter_fraction
        Share of cells that lie anywhere, whatever their type.
    boundary_width
        Width in um over which neighbouring domains mix.

    Returns
    -------
    CohortModel

    Raises
    ------
    ValueError
        A parameter out of range, or means too large for the stored counts.

    Examples
    --------
    >>> model = cohort_model(n_cells=10_000_000, n_genes=100, seed=7)
    >>> block = simulate_block(model, 4_000_000, 4_000_100)
    >>> block.counts.shape, block.batch[0]
    ((100, 100), np.int16(1))
    """
    if markers_per_type is None:
        markers_per_type = max(1, n_genes // 20)
    checks = {
        "n_batches": (n_batches, 1 <= n_batches < 2**15),
        "n_types": (n_types, 1 <= n_types < 2**15),
        "n_genes": (n_genes, n_genes >= 1),
        "n_cells": (n_cells, n_cells >= n_batches),
        "seed": (seed, 0 <= seed < 2**63),
        "density": (density, MINIMUM_DENSITY <= density <= MAXIMUM_DENSITY),
        "depth_sigma": (depth_sigma, 0 <= depth_sigma < np.inf),
        "batch_sigma": (batch_sigma, 0 <= batch_sigma < np.inf),
        "batch_type_sigma": (batch_type_sigma, 0 <= batch_type_sigma < np.inf),
        "rate_sigma": (rate_sigma, 0 <= rate_sigma < np.inf),
        "type_sigma": (type_sigma, 0 <= type_sigma < np.inf),
        "markers_per_type": (markers_per_type, 0 <= markers_per_type <= n_genes),
        "marker_factor": (marker_factor, 1 <= marker_factor < np.inf),
        "scatter_fraction": (scatter_fraction, 0 <= scatter_fraction <= 1),
        "boundary_width": (boundary_width, 0 <= boundary_width < np.inf),
    }
    wrong = [f"{name}={value}" for name, (value, good) in checks.items() if not good]
    if wrong:
        msg = (
            f"out of range: {', '.join(wrong)}. Sizes must be at least 1, n_cells at least "
            "n_batches, markers_per_type at most n_genes, density between 0.05 and 0.25, "
            "scatter_fraction between 0 and 1, marker_factor at least 1, the rest finite and not "
            "negative"
        )
        raise ValueError(msg)

    def normals(purpose: str, *shape: int) -> FloatArray:
        key = stream_key(seed, f"cohort {purpose}", 0)
        return ndtri(uniforms(key, 0, int(np.prod(shape)))).reshape(shape)

    def contrasts(purpose: str, *shape: int) -> FloatArray:
        """Normals that sum to 0 over slides, at unit variance; a lone slide has no effect."""
        draws = normals(purpose, n_batches, *shape)
        return (draws - draws.mean(axis=0)) * np.sqrt(n_batches / max(n_batches - 1, 1))

    rank = normals("marker", n_types, n_genes).argsort(axis=1).argsort(axis=1)
    marker = rank < markers_per_type
    log_rate = rate_sigma * normals("rate", n_genes) + type_sigma * normals(
        "type", n_types, n_genes
    )
    n_domains = _DOMAINS_PER_TYPE * n_types
    centre_key = stream_key(seed, "cohort domain", 0)
    model = CohortModel(
        seed=int(seed),
        n_cells=int(n_cells),
        depth_sigma=float(depth_sigma),
        scatter_fraction=float(scatter_fraction),
        boundary_width=float(boundary_width),
        type_rate=np.exp(log_rate) * np.where(marker, marker_factor, 1.0),
        marker=marker,
        batch_effect=batch_sigma * contrasts("batch", n_genes),
        batch_type_effect=batch_type_sigma * contrasts("interaction", n_types, n_genes),
        domain_centre=uniforms(centre_key, 0, 2 * n_domains).reshape(n_domains, 2),
        domain_type=(np.arange(n_domains) % n_types).astype(np.int16),
        slide_shift=_SLIDE_SHIFT * normals("shift", n_batches, n_domains, 2),
    )
    model.type_rate[:] *= _rate_for_density(model, density)
    _check_largest_mean(model)
    return model


def simulate_block(model: CohortModel, start: int, stop: int) -> CohortBlock:
    """Simulate cells ``start`` to ``stop`` (exclusive): the same cells in any block.

    Parameters
    ----------
    model
        Of :func:`cohort_model`.
    start, stop
        Rows, ``0 <= start <= stop <= n_cells``.

    Returns
    -------
    CohortBlock

    Raises
    ------
    ValueError
        The rows are not in the cohort.
    """
    rows = _rows(model, start, stop)
    cells = cells_of_rows(model, rows)
    keys = np.array(
        [stream_key(model.seed, "cohort count", gene) for gene in range(model.type_rate.shape[1])]
    )
    counts = np.empty((rows.size, keys.size), np.uint16)
    first, rate = _batch_rates(model, cells, corrected=False)
    _draw_counts(keys, rows, cells.batch - first, cells.cell_type, cells.depth, rate, counts)
    return CohortBlock(counts, *cells)


def true_mean_block(
    model: CohortModel, start: int, stop: int, *, corrected: bool = True
) -> NDArray[np.float32]:
    """Expected counts of cells ``start`` to ``stop``: float32 (stop - start, n_genes).

    Without batch effects if ``corrected`` (what a correction should recover), else the means
    from which :func:`simulate_block` draws.

    Raises
    ------
    ValueError
        The rows are not in the cohort.
    """
    cells = cells_of_rows(model, _rows(model, start, stop))
    first, rate = _batch_rates(model, cells, corrected=corrected)
    return cells.depth[:, None] * rate.astype(np.float32)[cells.batch - first, cells.cell_type]


def _batch_rates(model: CohortModel, cells: Cells, *, corrected: bool) -> tuple[int, FloatArray]:
    """First slide of a block, and the rates (slides of the block, n_types, n_genes)."""
    if not cells.batch.size:
        return 0, np.empty((0, *model.type_rate.shape))
    first, last = int(cells.batch[0]), int(cells.batch[-1])
    if corrected:
        return first, np.repeat(model.type_rate[None], last - first + 1, axis=0)
    here = slice(first, last + 1)
    effect = model.batch_effect[here, None] + model.batch_type_effect[here]
    return first, model.type_rate * np.exp(effect)


def _rows(model: CohortModel, start: int, stop: int) -> NDArray[np.uint64]:
    if not 0 <= start <= stop <= model.n_cells:
        msg = f"rows {start} to {stop} are not within the cohort of {model.n_cells} cells"
        raise ValueError(msg)
    return np.arange(start, stop, dtype=np.uint64)


def _rate_for_density(model: CohortModel, density: float) -> float:
    """Factor of the rates at which the expected share of non-zero counts is ``density``."""
    n_sample = min(model.n_cells, _CALIBRATION_CELLS)
    sample = (np.arange(n_sample) * (model.n_cells / n_sample)).astype(np.uint64)
    batch, cell_type, _, _ = cells_of_rows(model, sample)
    share = np.zeros(model.batch_type_effect.shape[:2])
    np.add.at(share, (batch, cell_type), 1.0 / n_sample / model.type_rate.shape[1])
    log_mean = np.log(model.type_rate) + model.batch_effect[:, None] + model.batch_type_effect
    weights = np.broadcast_to(share[:, :, None], log_mean.shape)
    mass, edges = np.histogram(log_mean, bins=1024, weights=weights)
    nodes, node_weights = np.polynomial.hermite_e.hermegauss(32)
    log_depth = model.depth_sigma * nodes - model.depth_sigma**2 / 2
    mean = np.exp(((edges[1:] + edges[:-1]) / 2)[:, None] + log_depth)
    joint = mass[:, None] * node_weights / node_weights.sum()

    def excess(log_factor: float) -> float:
        return -float((joint * np.expm1(-np.exp(log_factor) * mean)).sum()) - density

    return float(np.exp(brentq(excess, -50.0, 50.0)))


def _check_largest_mean(model: CohortModel) -> None:
    deviate = -ndtri(0.01 / model.n_cells)  # one cohort in a hundred has a deeper cell
    depth = np.exp(deviate * model.depth_sigma - model.depth_sigma**2 / 2)
    effect = model.batch_effect[:, None] + model.batch_type_effect
    largest = depth * float(np.exp((np.log(model.type_rate) + effect).max()))
    if largest > 0.9 * MAXIMUM_COUNT:
        msg = (
            f"mean counts could reach {largest:.3g}, above the {MAXIMUM_COUNT} of the stored "
            "counts: lower rate_sigma, depth_sigma, batch_sigma or marker_factor"
        )
        raise ValueError(msg)


@njit(nogil=True, cache=True)
def _draw_counts(
    keys: NDArray[np.uint64],
    rows: NDArray[np.uint64],
    slide: NDArray[np.int16],
    cell_type: NDArray[np.int16],
    depth: NDArray[np.float32],
    rate: FloatArray,
    counts: NDArray[np.uint16],
) -> None:
    """Poisson quantiles of keyed uniforms; ``rate`` is (slides of the block, n_types, n_genes)."""
    for i in range(rows.size):
        hashed = row_hash(rows[i])
        for gene in range(keys.size):
            u = uniform_of_hash(keys[gene], hashed)
            mean = depth[i] * rate[slide[i], cell_type[i], gene]
            counts[i, gene] = 0
            if u > 1.0 - mean:  # most zeros need no exponential: exp(-mean) >= 1 - mean
                zero = np.exp(-mean)
                if u > zero:
                    # The quantile at u is the transform of a count 0 of mean 0.
                    drawn = matched_count(0.0, 0.0, mean, 1.0, zero, u, False)
                    counts[i, gene] = min(drawn, MAXIMUM_COUNT)
