"""Counts of genes that a batch lacks, from the nearest cells of the batches that have them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from scipy import sparse

from stdist.graph import Map, Reduce, concatenate
from stdist.graph.blocks import tiles
from stdist.kernels.keyed_random import stream_key, uniforms
from stdist.kernels.match_checks import EntryError, check_range
from stdist.kernels.neighbor_average import donor_average, nearest_donors
from stdist.kernels.poisson_draw import poisson_draws
from stdist.methods.crescendo.depth import tile_depths
from stdist.methods.crescendo.marginal import absent_genes
from stdist.methods.crescendo.match import match_block, unmatched
from stdist.methods.crescendo.tiles import cell_depth
from stdist.preprocess.bound import TileWorkspace
from stdist.store import TILE_ROWS, InputError, Source

Arrays = dict[str, Any]
FLOAT = 8
DONORS = 10_000
"""Cells, about, among which neighbours are looked for."""


def without_donors(missing: np.ndarray, donor_batch: np.ndarray) -> np.ndarray:
    """Which missing genes no donor's batch has, so that they cannot be imputed.

    Parameters
    ----------
    missing : (n_batches, n_genes) bool
    donor_batch : (n_donors,) int

    Returns
    -------
    (n_genes,) bool
    """
    return missing.any(axis=0) & missing[donor_batch].all(axis=0)


def take_donors(
    rows: tuple[int, int],
    *,
    embedding: np.ndarray,
    share: float,
    seed: int,
    groups: Arrays | None = None,
    strata: Arrays | None = None,
    **tile: Any,
) -> Arrays:
    """Corrected rates, of the genes that some batch lacks, of cells drawn by key."""
    lacking = _missing(groups, strata, tile["genes"]).any(axis=0)
    counts, depth = tile["counts"], tile.get("depth")
    own = cell_depth(counts) if depth is None else depth.astype(np.float64)
    drawn = uniforms(stream_key(seed, "crescendo donor", 0), rows[0], len(own)) < share
    chosen = np.flatnonzero(drawn & (own > 0))
    only = tile["fit"] | {"corrected": tile["fit"]["corrected"] & lacking}
    corrected = match_block(rows, **tile | {"fit": only})["corrected"][chosen]
    corrected = corrected[:, tile["genes"][lacking]]
    dense = corrected.toarray() if sparse.issparse(corrected) else corrected
    return {
        "embedding": embedding[chosen].astype(np.float64),
        "batch": tile["batch"][chosen],
        "rates": dense / _depths(own, tile)[chosen][:, lacking],
    }


def _missing(groups: Arrays | None, strata: Arrays | None, genes: np.ndarray) -> np.ndarray:
    return absent_genes({"groups": groups} if strata is None else {"strata": strata}, genes)


def _depths(own: np.ndarray, tile: Arrays) -> np.ndarray:
    """Depth of what `match_block` gives for each cell and gene: of the target where it changes."""
    column, value = tile.get("target"), tile.get("target_depth")
    if isinstance(column, dict):
        column, value = None, float(column["target"])
    _, target = tile_depths(own, column, value, tile["rule"].source_offset)
    changed = tile["fit"]["corrected"] & (tile["rule"].source_offset == "observed")
    return np.where(changed, target[:, None], own[:, None])


def match_and_impute(
    rows: tuple[int, int],
    *,
    embedding: np.ndarray,
    donors: Arrays,
    n_neighbors: int,
    impute_keys: np.ndarray,
    groups: Arrays | None = None,
    strata: Arrays | None = None,
    **tile: Any,
) -> Arrays:
    """Match a block, and draw the counts of genes that the batch of a cell lacks.

    The mean of such a count is the average corrected rate of the nearest donors among those whose
    batch has the gene, times the depth of the cell; zero if there is no such donor.
    """
    found = match_block(rows, **tile)
    missing = _missing(groups, strata, tile["genes"])
    lacking = np.flatnonzero(missing.any(axis=0))
    if not len(lacking):
        return found
    patterns, which = np.unique(missing[:, lacking], axis=1, return_inverse=True)
    parts = []
    for first, last in tiles(*rows):
        part = slice(first - rows[0], last - rows[0])
        out, batch, counts = found["corrected"][part], tile["batch"][part], tile["counts"][part]
        depth, column = tile.get("depth"), tile.get("target")
        own = cell_depth(counts) if depth is None else depth[part].astype(np.float64)
        cut = column if column is None or isinstance(column, dict) else column[part]
        depths = _depths(own, tile | {"target": cut})
        dense = out.toarray() if sparse.issparse(out) else out.copy()
        for number, lack in enumerate(patterns.T):
            cells = np.flatnonzero(lack[batch] & (own > 0))
            same = np.flatnonzero(which.ravel() == number)
            genes, columns = lacking[same], tile["genes"][lacking[same]]
            rates = _average(embedding[part][cells], donors, ~lack, n_neighbors)[:, same]
            means = rates * depths[np.ix_(cells, genes)]
            drawn = poisson_draws(means, impute_keys[genes], first + cells)
            try:
                check_range(drawn, dense.dtype, first + cells)
            except EntryError as error:
                raise unmatched(error, tile["var_names"][columns[error.gene]]) from error
            dense[np.ix_(cells, columns)] = drawn
        parts.append(sparse.csr_matrix(dense) if sparse.issparse(out) else dense)
    join = partial(sparse.vstack, format="csr") if sparse.issparse(parts[0]) else np.concatenate
    return found | {"corrected": join(parts)}


def _average(
    points: np.ndarray, donors: Arrays, measured: np.ndarray, n_neighbors: int
) -> np.ndarray:
    """Mean rates of the nearest donors of some batches; zero if there are none."""
    known = np.flatnonzero(measured[donors["batch"]])
    rates = donors["rates"][known]
    if not len(points) or not len(known):
        return np.zeros((len(points), rates.shape[1]))
    return donor_average(nearest_donors(points, donors["embedding"][known], n_neighbors), rates)


def imputing(
    match: Map, embedding: Source, seed: int, n_neighbors: int, names: Any
) -> tuple[Reduce, Map]:
    """Return the stage that gathers donors, and the matching stage that imputes from them.

    `names` are those of the requested genes.
    """
    n_cells, n_dims = embedding.shape
    sums = "groups" if "weights" in match.reads else "strata"
    n_genes = len(names)
    uses = (*match.uses, sums)
    size = 2 * DONORS * (n_dims + n_genes + 1) * FLOAT
    reads = {**match.reads, "embedding": embedding}
    donors = Reduce(
        "donors",
        take_donors,
        reads,
        uses,
        {**match.options, "share": min(1.0, DONORS / max(1, n_cells)), "seed": seed},
        combine=concatenate,
        gathers=True,
        workspace=match.workspace,
        nanoseconds=match.nanoseconds,
        partial_bytes=size,
    )
    keys = np.array([stream_key(seed, "crescendo impute", str(name)) for name in names])
    search = 3 * TILE_ROWS * DONORS * FLOAT
    row_bytes = match.workspace(1) - match.workspace(0)
    return donors, replace(
        match,
        kernel=match_and_impute,
        reads=reads,
        uses=(*uses, "donors"),
        options={**match.options, "n_neighbors": n_neighbors, "impute_keys": keys},
        workspace=TileWorkspace(row_bytes, match.workspace(0) + search + size),
        on_device=False,
    )


def check_embedding(embedding: Source, key: str, n_obs: int) -> Source:
    """Refuse an embedding that is no table of coordinates.

    Raises
    ------
    InputError
        If it has not one row per cell.
    """
    if len(embedding.shape) != 2 or embedding.shape[0] != n_obs:
        raise InputError(
            "embedding-shape",
            f"the embedding has shape {embedding.shape}, not (n_cells, n_dims)",
            place=f"obsm {key!r}",
            remedy="give one row per cell: the output of stdist.pp.harmony",
        )
    return embedding
