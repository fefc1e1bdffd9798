"""Launches the CUDA kernels of ``poisson_factors.cuh`` on a tile in device memory (CuPy)."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stdist.kernels.array_module import array_module

HEADER = Path(__file__).with_name("poisson_factors.cuh")
TOTALS = ("loss_x", "loss_v", "entropy", "squares", "rejected", "least", "accepted")
"""Columns of the totals of a group."""

_GROUP_THREADS, _THREADS = 128, 256

Array = Any  # of CuPy


class Matrix(NamedTuple):
    """CSR rows on the device."""

    indptr: Array  # (n_rows + 1,) int64
    genes: Array  # (n_nonzeros,) int32
    values: Array  # (n_nonzeros,) float32


class Groups(NamedTuple):
    """Cells of group g are ``order[starts[g] : starts[g + 1]]``; its spot may be -1."""

    order: Array  # (n_cells,) int64
    starts: Array  # (n_groups + 1,) int64
    spot: Array  # (n_groups,) int64


class Table(NamedTuple):
    """Rows of cells on the device; see `stdist.kernels.poisson_factors_spots.Rows`."""

    p: Array
    n: Array
    m: Array


class Passed(NamedTuple):
    """What `improve` found; ratios and losses are those of the rows before the last round."""

    rows: Table
    of_cells: Array  # (n_panel, n_padded), sums of ratios times n P
    of_spots: Array  # (n_genes, n_padded), sums of ratios times B
    totals: Array  # (n_groups, 7), see `TOTALS`


def source_text() -> str:
    """Text of the translation unit."""
    return f'#include "{HEADER.name}"\n'


@cache
def _module(device: int) -> Any:
    import cupy

    options = ("--fmad=false", f"-I{HEADER.parent}")
    return cupy.RawModule(code=source_text(), options=options)


def launch(name: str, blocks: int, threads: int, arguments: tuple[Any, ...]) -> None:
    """Run a kernel of the header; whole numbers are passed as 64 bits."""
    import cupy

    kernel = _module(cupy.cuda.Device().id).get_function(name)
    kernel((blocks,), (threads,), arguments)


def improve(
    cells: Matrix,
    spots: Matrix,
    groups: Groups,
    rows: Table,
    tables: tuple[Array, Array],
    n_factors: int,
    rounds: int,
    exponent: int,
    penalties: tuple[float, float],
) -> Passed:
    """Improve the rows of all groups; the device's part of `poisson_factors.tile_pass`.

    Parameters
    ----------
    rows
        Padded; overwritten with the rows before the last round.
    tables : (n_panel, n_padded), (n_genes, n_padded) float64
        Transposed ``Q`` and ``Q diag(phi)``, padded.
    penalties
        Weights of the entropy, in nats per cell, and of the squares.
    """
    xp = array_module(rows.p)
    n_cells, width = rows.p.shape
    n_groups = len(groups.spot)
    new = Table(*(values.copy() for values in rows))
    totals = xp.zeros((n_groups, len(TOTALS)))
    loading, ratios = xp.zeros((n_groups, width)), [xp.zeros(len(m.values)) for m in (cells, spots)]
    if n_groups:
        arguments = (
            np.int64(n_groups), *groups, *cells, *spots, *rows, *new, *tables,
            tables[0].sum(axis=0), tables[1].sum(axis=0), np.int64(width), np.int64(n_factors),
            np.int64(rounds), np.int64(exponent), xp.asarray(np.array(penalties)),
            xp.zeros((n_cells, width)), xp.zeros((n_cells, width)), xp.zeros((n_cells, 3)),
            loading, xp.zeros((n_groups, width)), totals, *ratios,
        )  # fmt: skip
        launch("improve_rows", n_groups, _GROUP_THREADS, arguments)
    of_spot = xp.zeros((len(spots.indptr) - 1, width))
    mapped = groups.spot >= 0
    of_spot[groups.spot[mapped]] = loading[mapped]
    scaled = rows.n[:, None] * rows.p
    return Passed(
        new,
        _gene_sums(cells, ratios[0], scaled, len(tables[0])),
        _gene_sums(spots, ratios[1], of_spot, len(tables[1])),
        totals,
    )


def _gene_sums(counts: Matrix, ratios: Array, weights: Array, n_genes: int) -> Array:
    """Sums over the rows, gene by gene, in the order of the rows: the same in every run."""
    xp = array_module(weights)
    entries = xp.argsort(counts.genes, kind="stable").astype(np.int64)
    starts = xp.searchsorted(counts.genes[entries], xp.arange(n_genes + 1)).astype(np.int64)
    numbers = xp.arange(len(counts.values))
    row = (xp.searchsorted(counts.indptr, numbers, side="right") - 1).astype(np.int64)
    out = xp.zeros((n_genes, weights.shape[1]))
    if out.size:
        arguments = (
            np.int64(n_genes), np.int64(out.shape[1]), starts, entries, row, ratios, weights, out
        )  # fmt: skip
        launch("sum_genes", -(-out.size // _THREADS), _THREADS, arguments)
    return out
