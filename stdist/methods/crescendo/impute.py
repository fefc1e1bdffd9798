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
from stdist.kernels.neighbor_average import donor_average, nearest_donors
from stdist.kernels.poisson_draw import poisson_draws
from stdist.methods.crescendo.depth import tile_depths
from stdist.methods.crescendo.match import match_block
from stdist.methods.crescendo.tiles import cell_depth
from stdist.preprocess.bound import TileWorkspace
from stdist.store import TILE_ROWS, InputError, Source

Arrays = dict[str, Any]
FLOAT = 8
DONORS = 10_000
"""Cells, about, among which neighbours are looked for."""


def missing_genes(
    genes: np.ndarray, groups: Arrays | None = None, strata: Arrays | None = None
) -> np.ndarray:
    """Which requested genes a batch has no count of, though others have.

    Returns
    -------
    (n_batches, n_genes) bool
    """
    if groups is not None:
        counts, cells = groups["gene_counts"], groups["mass"].sum(axis=1)
    else:
        assert strata is not None
        counts, cells = strata["counts"].sum(axis=1), strata["cells"].sum(axis=1)
    counts = counts[:, genes]
    return (counts == 0) & (counts.sum(axis=0) > 0) & (cells > 0)[:, None]


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
    counts, depth = tile["counts"], tile.get("depth")
    own = cell_depth(counts) if depth is None else depth.astype(np.float64)
    drawn = uniforms(stream_key(seed, "crescendo donor", 0), rows[0], len(own)) < share
    chosen = np.flatnonzero(drawn & (own > 0))
    lacking = missing_genes(tile["genes"], groups, strata).any(axis=0)
    corrected = match_block(rows, **tile)["corrected"][chosen][:, tile["genes"][lacking]]
    dense = corrected.toarray() if sparse.issparse(corrected) else corrected
    _, target = _target_depth(own, tile)
    return {
        "embedding": embedding[chosen].astype(np.float64),
        "batch": tile["batch"][chosen],
        "rates": dense / target[chosen][:, None],
    }


def _target_depth(own: np.ndarray, tile: Arrays) -> tuple[np.ndarray, np.ndarray]:
    column, value = tile.get("target"), tile.get("target_depth")
    if isinstance(column, dict):
        column, value = None, float(column["target"])
    return tile_depths(own, column, value, tile["rule"].source_offset)


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

    The mean of such a count is the average corrected rate of the nearest donors whose batch has
    the gene, times the depth of the cell; without such a donor the matched count stays.
    """
    found = match_block(rows, **tile)
    missing = missing_genes(tile["genes"], groups, strata)
    lacking = np.flatnonzero(missing.any(axis=0))
    if not len(lacking) or not len(donors["batch"]):
        return found
    measured = ~missing[:, lacking][donors["batch"]]
    parts = []
    for first, last in tiles(*rows):
        part = slice(first - rows[0], last - rows[0])
        out, batch, counts = found["corrected"][part], tile["batch"][part], tile["counts"][part]
        depth = tile.get("depth")
        own = cell_depth(counts) if depth is None else depth[part].astype(np.float64)
        column = tile.get("target")
        cut = column if column is None or isinstance(column, dict) else column[part]
        _, target = _target_depth(own, tile | {"target": cut})
        cells = np.flatnonzero(missing.any(axis=1)[batch] & (own > 0))
        if len(cells):
            dense = out.toarray() if sparse.issparse(out) else out.copy()
            near = nearest_donors(embedding[part][cells], donors["embedding"], n_neighbors)
            means = donor_average(near, donors["rates"], measured) * target[cells, None]
            keys = impute_keys[lacking]
            drawn = poisson_draws(np.nan_to_num(means), keys, first + cells)
            wanted = missing[:, lacking][batch[cells]] & ~np.isnan(means)
            place = np.ix_(cells, tile["genes"][lacking])
            dense[place] = np.where(wanted, drawn, dense[place])
            out = sparse.csr_matrix(dense) if sparse.issparse(out) else dense
        parts.append(out)
    join = partial(sparse.vstack, format="csr") if sparse.issparse(parts[0]) else np.concatenate
    return found | {"corrected": join(parts)}


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
