"""k-means labels of an embedding: Lloyd's iterations over blocks."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from stdist.graph import Loop, Map, Program, Reduce, concatenate, one_thread
from stdist.kernels.array_module import array_module
from stdist.kernels.keyed_random import stream_key, uniforms
from stdist.kernels.kmeans import kmeans as fit
from stdist.methods.data import Data, StoreData, open_data
from stdist.methods.run import run_program
from stdist.preprocess.bound import TileWorkspace, recorded
from stdist.store import InputError, Output

SAMPLE = 20_000
TOLERANCE = 1e-4


def sample_tile(
    rows: tuple[int, int], *, values: np.ndarray, share: float, seed: int
) -> dict[str, np.ndarray]:
    """Rows drawn by key, for the initial centres."""
    drawn = uniforms(stream_key(seed, "kmeans sample", 0), rows[0], len(values)) < share
    return {"rows": values[drawn].astype(np.float64)}


def initial_centres(total: Any, *, n_clusters: int, seed: int) -> dict[str, np.ndarray]:
    """k-means++ and Lloyd on the sample, best of ten."""
    seeds = [int(stream_key(seed, "kmeans start", number)) for number in range(10)]
    with one_thread():
        fits = [fit(total["rows"], n_clusters, seed=s, max_iterations=300) for s in seeds]
    centres, _ = min(fits, key=lambda found: found[1])
    return {"centres": centres}


def squared_distances(values: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Squared distance of each row to each centre, up to a constant per row."""
    return (centres * centres).sum(axis=1) - 2.0 * values.astype(np.float64) @ centres.T


def assign_tile(
    rows: tuple[int, int], *, values: np.ndarray, centres: Any
) -> dict[str, np.ndarray]:
    """Sums of the rows nearest to each centre."""
    nearest = squared_distances(values, centres["centres"]).argmin(axis=1)
    clusters = array_module(values).arange(len(centres["centres"]))
    member = (nearest[:, None] == clusters).astype(np.float64)
    return {"sums": member.T @ values.astype(np.float64), "cells": member.sum(axis=0)}


def move_centres(total: Any, *, centres: Any) -> dict[str, np.ndarray]:
    """Means of the rows of each centre; a centre without rows stays."""
    cells = total["cells"][:, None]
    mean = np.divide(total["sums"], cells, out=centres["centres"].copy(), where=cells > 0)
    return {"centres": mean}


def settled(previous: Any, current: Any) -> bool:
    """Tell whether no centre moved by more than a small share of their spread."""
    moved = np.linalg.norm(current["centres"] - previous["centres"], axis=1).max()
    return bool(moved <= TOLERANCE * max(1e-300, current["centres"].std()))


def label_tile(rows: tuple[int, int], *, values: np.ndarray, centres: Any) -> dict[str, np.ndarray]:
    """Nearest centre of each row."""
    return {"label": squared_distances(values, centres["centres"]).argmin(axis=1).astype(np.int16)}


def kmeans_program(
    data: Data | str,
    n_clusters: int,
    use_rep: str = "X_pca",
    key_added: str = "kmeans",
    rng: int = 0,
    max_iterations: int = 50,
) -> Program:
    """Bind k-means to data.

    Raises
    ------
    InputError
        If there are fewer cells than clusters.
    """
    data = StoreData(data) if isinstance(data, str) else data
    if not 1 < n_clusters <= min(data.n_obs, 2**15):
        raise InputError(
            "parameter-range",
            f"n_clusters is {n_clusters}, not between 2 and the number of cells ({data.n_obs})",
            place="kmeans",
            remedy="ask for fewer clusters",
        )
    values = data.embedding(use_rep)
    reads = {"values": values}
    n_columns = values.shape[1]
    share = min(1.0, max(SAMPLE, 20 * n_clusters) / data.n_obs)
    names = tuple(str(k) for k in range(n_clusters))
    tile = TileWorkspace(8 * (2 * n_columns + 3 * n_clusters))
    size = 8 * n_clusters * (n_columns + 1)
    stages = (
        Reduce(
            "start",
            sample_tile,
            reads,
            options={"share": share, "seed": rng},
            combine=concatenate,
            gathers=True,
            finalize=partial(initial_centres, n_clusters=n_clusters, seed=rng),
            partial_bytes=int(2 * share * data.n_obs) * n_columns * 8,
        ),
        Loop(
            "centres",
            (
                Reduce(
                    "assign",
                    assign_tile,
                    reads,
                    ("centres",),
                    finalize=move_centres,
                    workspace=tile,
                    nanoseconds=n_clusters * n_columns / 4,
                    partial_bytes=size,
                    on_device=True,
                ),
            ),
            "start",
            settled,
            max_iterations,
        ),
        Map(
            "label",
            label_tile,
            reads,
            ("centres",),
            workspace=tile,
            on_device=True,
            writes={
                "label": Output(
                    f"obs/{key_added}", (), "int16", kind="categorical", categories=names
                )
            },
        ),
    )
    parameters = recorded(
        data,
        n_clusters=n_clusters,
        use_rep=use_rep,
        key_added=key_added,
        rng=rng,
        max_iterations=max_iterations,
    )
    results = partial(_results, key=key_added)
    return Program(
        "kmeans",
        stages,
        parameters,
        data.path,
        results=results,
        result_keys=(f"uns/{key_added}",),
    )


def _results(values: Any, key: str) -> dict[str, Any]:
    state = values["centres"]
    facts = {"centres": state["centres"], "n_iterations": int(state["n_iterations"])}
    return {f"uns/{key}": facts}


def kmeans(
    data: Any,
    *,
    n_clusters: int,
    use_rep: str = "X_pca",
    key_added: str = "kmeans",
    rng: int = 0,
    max_iterations: int = 50,
    client: Any = None,
    **options: Any,
) -> Path | None:
    """Cluster the cells of an embedding by k-means.

    Parameters
    ----------
    data
        Path of a store, or an AnnData (changed in place).
    n_clusters
        Number of clusters.
    use_rep
        Entry of ``obsm``, ``(n_cells, n_dims)``.
    key_added
        Categorical column of ``obs`` with the labels; ``uns[key_added]`` holds the centres.
    rng
        Seed. Labels do not depend on blocks or workers.
    max_iterations
        Largest number of Lloyd's iterations over all cells, after k-means++ on a sample of
        20,000 cells.
    client
        `distributed.Client`; default as in `stdist.tl.crescendo`.
    **options
        ``block_length``, ``overwrite``, ``progress``.

    Returns
    -------
    Path or None
        Folder of the run record, for a store.

    Examples
    --------
    >>> import anndata
    >>> adata = anndata.AnnData(np.zeros((4, 1)))
    >>> adata.obsm["X_pca"] = np.array([[0.0], [0.1], [5.0], [5.1]])
    >>> kmeans(adata, n_clusters=2)
    >>> adata.obs["kmeans"].nunique()
    2
    """
    opened = open_data(data)
    program = kmeans_program(opened, n_clusters, use_rep, key_added, rng, max_iterations)
    return run_program(program, opened, client=client, **options)
