"""Genes to mean zero and unit variance."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stdist.graph import Map, Program, Reduce
from stdist.kernels.moments import column_moments, dense_rows, merge_moments
from stdist.methods.data import Data, StoreData, open_data
from stdist.methods.run import run_program
from stdist.preprocess.bound import layer_like, recorded, tile_workspace


def tile_moments(rows: tuple[int, int], *, values: Any) -> dict[str, Any]:
    """Mergeable means and variances of a tile."""
    return column_moments(values)


def mean_and_deviation(total: Any) -> dict[str, np.ndarray]:
    """Mean and standard deviation of each gene, divisor ``n - 1``; constant genes get 1."""
    deviation = np.sqrt(total["deviations"] / max(1.0, float(total["n"]) - 1))
    return {"mean": total["mean"], "std": np.where(deviation == 0, 1.0, deviation)}


def scale_tile(
    rows: tuple[int, int], *, values: Any, moments: Any, zero_center: bool, max_value: float | None
) -> dict[str, np.ndarray]:
    """Standardise a tile and clip it."""
    dense = dense_rows(values)
    scaled = (dense - moments["mean"] if zero_center else dense) / moments["std"]
    if max_value is not None:
        scaled = np.clip(scaled, -max_value if zero_center else None, max_value)
    return {"scaled": scaled.astype(np.float32)}


def scale_program(
    data: Data | str,
    layer: str | None = None,
    zero_center: bool = True,
    max_value: float | None = None,
    key_added: str = "scaled",
) -> Program:
    """Bind the scaling to data."""
    data = StoreData(data) if isinstance(data, str) else data
    values = data.matrix(layer)
    reads = {"values": values}
    parameters = recorded(
        data, layer=layer, zero_center=zero_center, max_value=max_value, key_added=key_added
    )
    stages = (
        Reduce(
            "moments",
            tile_moments,
            reads,
            combine=merge_moments,
            finalize=mean_and_deviation,
            workspace=tile_workspace(data.n_vars),
            partial_bytes=16 * data.n_vars,
            on_device=True,
        ),
        Map(
            "scale",
            scale_tile,
            reads,
            ("moments",),
            {"zero_center": zero_center, "max_value": max_value},
            workspace=tile_workspace(data.n_vars),
            on_device=True,
            writes={"scaled": layer_like(values, key_added, data.n_vars, sparse=False)},
        ),
    )
    return Program(
        "scale",
        stages,
        parameters,
        data.path,
        results=partial(_results, names=data.var_names, key=key_added),
        result_keys=tuple(f"var/{key_added}_{name}" for name in ("mean", "std")),
    )


def _results(values: Any, names: np.ndarray, key: str) -> dict[str, Any]:
    moments = values["moments"]
    return {f"var/{key}_{name}": pd.Series(moments[name], index=names) for name in ("mean", "std")}


def scale(
    data: Any,
    *,
    layer: str | None = None,
    zero_center: bool = True,
    max_value: float | None = None,
    key_added: str = "scaled",
    client: Any = None,
    **options: Any,
) -> Path | None:
    """Standardise every gene into a new dense float32 layer, as `scanpy.pp.scale` does.

    Parameters
    ----------
    data
        Path of a store, or an AnnData (changed in place).
    layer
        Layer to scale; default ``X``.
    zero_center
        Subtract the mean.
    max_value
        Clip to ``[-max_value, max_value]`` after scaling.
    key_added
        Name of the new layer. ``var`` gains ``<key_added>_mean`` and ``_std``.
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
    >>> adata = anndata.AnnData(np.array([[1.0], [3.0]]))
    >>> scale(adata)
    >>> adata.layers["scaled"].round(3).tolist()
    [[-0.7070000171661377], [0.7070000171661377]]
    """
    opened = open_data(data)
    program = scale_program(opened, layer, zero_center, max_value, key_added)
    return run_program(program, opened, client=client, **options)
