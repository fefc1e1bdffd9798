"""Principal components by the covariance route."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg

from stdist.graph import Map, Program, Reduce, one_thread
from stdist.kernels.moments import column_moments, dense_rows, merge_moments
from stdist.methods.data import Data, StoreData, open_data
from stdist.methods.run import run_program
from stdist.preprocess.bound import TileWorkspace, recorded
from stdist.store import InputError, Output

FLOAT = 8


def tile_covariance(rows: tuple[int, int], *, values: Any) -> dict[str, Any]:
    """Mergeable means and products of deviations of a tile."""
    return column_moments(values, covariance=True)


def components(total: Any, *, n_comps: int) -> dict[str, np.ndarray]:
    """Leading eigenvectors of the covariance; the largest loading of each is positive."""
    covariance = total["deviations"] / max(1.0, float(total["n"]) - 1)
    n = len(covariance)
    with one_thread():
        variance, vectors = scipy.linalg.eigh(covariance, subset_by_index=(n - n_comps, n - 1))
    order = np.argsort(-variance, kind="stable")
    vectors = vectors[:, order]
    largest = np.abs(vectors).argmax(axis=0)
    vectors = vectors * np.sign(vectors[largest, np.arange(n_comps)])
    return {
        "mean": total["mean"],
        "components": vectors,
        "variance": variance[order],
        "variance_ratio": variance[order] / np.trace(covariance),
    }


def project_tile(rows: tuple[int, int], *, values: Any, pca: Any) -> dict[str, np.ndarray]:
    """Coordinates of the rows on the components."""
    centred = dense_rows(values) - pca["mean"]
    return {"embedding": (centred @ pca["components"]).astype(np.float32)}


def pca_program(
    data: Data | str, layer: str | None = None, n_comps: int = 50, key_added: str = "X_pca"
) -> Program:
    """Bind the analysis to data.

    Raises
    ------
    InputError
        If there are fewer genes or cells than components.
    """
    data = StoreData(data) if isinstance(data, str) else data
    if not 0 < n_comps <= min(data.n_vars, data.n_obs):
        raise InputError(
            "parameter-range",
            f"n_comps is {n_comps}, not between 1 and {min(data.n_vars, data.n_obs)}",
            place="pca",
            remedy="ask for fewer components",
        )
    reads = {"values": data.matrix(layer)}
    matrix = data.n_vars**2 * FLOAT
    tile = TileWorkspace(3 * data.n_vars * FLOAT, 2 * matrix)
    stages = (
        Reduce(
            "pca",
            tile_covariance,
            reads,
            combine=merge_moments,
            finalize=partial(components, n_comps=n_comps),
            workspace=tile,
            nanoseconds=data.n_vars**2 / 8,
            partial_bytes=matrix,
            on_device=True,
        ),
        Map(
            "project",
            project_tile,
            reads,
            ("pca",),
            workspace=TileWorkspace(3 * data.n_vars * FLOAT, data.n_vars * n_comps * FLOAT),
            nanoseconds=data.n_vars * n_comps / 8,
            on_device=True,
            writes={"embedding": Output(f"obsm/{key_added}", (n_comps,), "float32")},
        ),
    )
    results = partial(_results, key=key_added, layer=layer)
    parameters = recorded(data, layer=layer, n_comps=n_comps, key_added=key_added)
    return Program(
        "pca",
        stages,
        parameters,
        data.path,
        results=results,
        result_keys=_result_keys(key_added),
    )


def _result_keys(key: str) -> tuple[str, str]:
    """scanpy's names for the default, the given name otherwise."""
    return ("varm/PCs", "uns/pca") if key == "X_pca" else (f"varm/{key}", f"uns/{key}")


def _results(values: Any, key: str, layer: str | None) -> dict[str, Any]:
    pca = values["pca"]
    loadings, facts = _result_keys(key)
    return {
        loadings: pca["components"],
        facts: {
            "params": {"layer": layer, "zero_center": True},
            "variance": pca["variance"],
            "variance_ratio": pca["variance_ratio"],
        },
    }


def pca(
    data: Any,
    *,
    layer: str | None = None,
    n_comps: int = 50,
    key_added: str = "X_pca",
    client: Any = None,
    **options: Any,
) -> Path | None:
    """Principal components of the cells, from the exact covariance of the genes.

    Parameters
    ----------
    data
        Path of a store, or an AnnData (changed in place).
    layer
        Layer to analyse (log-normalised or scaled values); default ``X``.
    n_comps
        Number of components.
    key_added
        Entry of ``obsm`` with the float32 coordinates, ``(n_cells, n_comps)``. ``varm["PCs"]``
        holds the components, ``uns["pca"]`` the variances.
    client
        `distributed.Client`; default as in `stdist.tl.crescendo`.
    **options
        ``block_length``, ``overwrite``, ``progress``.

    Returns
    -------
    Path or None
        Folder of the run record, for a store.

    Notes
    -----
    The covariance is summed in float64 in a fixed order; the sign of a component is the one
    that makes its largest loading positive. Memory grows with the square of the number of
    genes: select genes first for whole transcriptomes.

    Examples
    --------
    >>> import anndata
    >>> adata = anndata.AnnData(np.array([[0.0, 0.0], [1.0, 2.0], [2.0, 4.0]]))
    >>> pca(adata, n_comps=1)
    >>> adata.obsm["X_pca"].round(2).ravel().tolist()
    [-2.240000009536743, 0.0, 2.240000009536743]
    """
    opened = open_data(data)
    program = pca_program(opened, layer, n_comps, key_added)
    return run_program(program, opened, client=client, **options)
