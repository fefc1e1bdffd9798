"""Profiles of genes that only the spots have: loadings of the spots first, then each gene.

With the factors fixed, the loadings of a spot are a convex Poisson regression of its counts, and
the profile of a gene is one of the gene's counts on these loadings. Neither needs the cells: one
free size for each cell lets the cells of a spot take any composition.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from stdist.graph import Each, Reduce, concatenate
from stdist.kernels.poisson_factor_genes import gene_profiles
from stdist.methods.data import Data
from stdist.methods.siid.impute_model import FittedFactors, WantedGenes
from stdist.methods.siid.pair import read_counts
from stdist.preprocess.bound import TileWorkspace
from stdist.store import TILE_ROWS
from stdist.store.elements import row_entries

Arrays = dict[str, Any]
FLOAT = 8
GENES = 256
"""Genes of one task."""
TOLERANCE = 1e-2
"""Nats of likelihood that may be left to gain for a spot or a gene."""


def load_spots(
    rows: tuple[int, int],
    *,
    counts: Any,
    model: Arrays,
    columns: np.ndarray,
    outside: np.ndarray,
) -> Arrays:
    """Loadings of the spots of a tile in every solution, and their counts of the other genes."""
    known = sparse.csc_array(read_counts(counts, rows, columns, "spots").T.astype(np.float64))
    found = [
        gene_profiles(known, np.ascontiguousarray((profile * platform).T), 0.0, TOLERANCE)[0].T
        for profile, platform in zip(model["profile"], model["platform"], strict=True)
    ]
    other = read_counts(counts, rows, outside, "spots").tocoo()
    return {
        "loadings": np.stack(found, axis=1),
        "spot": other.row.astype(np.int64) + rows[0],
        "gene": other.col.astype(np.int32),
        "count": other.data,
    }


def by_gene(total: Arrays, **values: Arrays) -> Arrays:
    """Counts of one gene after the other."""
    order = np.lexsort((total["spot"], total["gene"]))
    return {
        "loadings": total["loadings"],
        "spot": total["spot"][order],
        "gene": total["gene"][order],
        "count": total["count"][order],
    }


def fit_genes(item: int, *, spots: Arrays, n_genes: int, prior: np.ndarray) -> Arrays:
    """Profiles of some genes in every solution."""
    first, last = item * GENES, min(n_genes, (item + 1) * GENES)
    begin, end = np.searchsorted(spots["gene"], [first, last])
    part = slice(begin, end)
    place = (spots["spot"][part], spots["gene"][part] - first)
    size = (len(spots["loadings"]), last - first)
    counts = sparse.csc_array((spots["count"][part].astype(np.float64), place), shape=size)
    fits = [
        gene_profiles(counts, np.ascontiguousarray(loadings), float(shape), TOLERANCE)
        for loadings, shape in zip(spots["loadings"].transpose(1, 0, 2), prior, strict=True)
    ]
    return {
        "profile": np.stack([profile for profile, _ in fits]),
        "gap": np.stack([gap for _, gap in fits]),
    }


def join_genes(parts: list[Arrays]) -> Arrays:
    """Join the profiles of all genes."""
    return {name: np.concatenate([p[name] for p in parts], axis=-1) for name in parts[0]}


def spot_stages(factors: FittedFactors, wanted: WantedGenes, spots: Data) -> list[Reduce | Each]:
    """Stages `spots`, and `outside` where genes outside the model are wanted."""
    counts = spots.matrix(factors.spots_layer)
    number = {str(name): column for column, name in enumerate(spots.var_names)}
    n_solutions, n_factors, n_genes = factors.profile.shape
    n_outside = len(wanted.outside)
    entries = row_entries(counts) / spots.n_vars  # of a gene
    row = FLOAT * n_solutions * n_factors + int(16 * entries * n_outside)
    stages: list[Reduce | Each] = [
        Reduce(
            "spots",
            load_spots,
            {"counts": counts},
            ("model",),
            {
                "columns": np.array([number[name] for name in factors.genes]),
                "outside": np.array([number[name] for name in wanted.outside], np.int64),
            },
            combine=concatenate,
            gathers=True,
            finalize=by_gene,
            workspace=TileWorkspace(
                int(40 * entries * (n_genes + n_outside)) + row, 2 * factors.profile.nbytes
            ),
            nanoseconds=5e4 * n_solutions + entries * n_genes * n_factors * 200.0,
            partial_bytes=max(TILE_ROWS, spots.n_obs) * row,
        )
    ]
    if n_outside:
        size = spots.n_obs * row
        stages.append(
            Each(
                "outside",
                fit_genes,
                uses=("spots",),
                options={"n_genes": n_outside, "prior": factors.shape},
                workspace=TileWorkspace(0, 2 * size),
                nanoseconds=GENES * entries * spots.n_obs * n_factors * n_solutions * 100.0,
                n_items=-(-n_outside // GENES),
                collect=join_genes,
            )
        )
    return stages
