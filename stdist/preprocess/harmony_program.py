"""Harmony as a program: which stages, outputs and results a request means."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import numpy as np

from stdist.graph import Map, Program
from stdist.kernels.harmony_settings import Strata
from stdist.methods.data import Data, StoreData
from stdist.preprocess.bound import TileWorkspace, is_csr, recorded
from stdist.preprocess.harmony_blocks import sequential_stages
from stdist.preprocess.harmony_rounds import Stages, check_finite
from stdist.preprocess.harmony_spec import HarmonySpec
from stdist.preprocess.harmony_strata import read_strata
from stdist.store import InputError, Output, Source, StdistWarning


def build_harmony(data: str, **parameters: Any) -> Program:
    """Build the program on a store from its recorded parameters."""
    return bind_harmony(StoreData(data), HarmonySpec(**parameters))


def bind_harmony(data: Data, spec: HarmonySpec) -> Program:
    """Bind Harmony to data.

    Raises
    ------
    InputError
        If a key or the shape of the embedding is wrong, there are more clusters than cells, or
        cells have no label.
    """
    n_clusters = spec.cluster_number(data.n_obs)
    values = _embedding(data, spec.use_rep)
    codes, strata, levels = read_strata(data, spec.keys)
    settings = spec.settings(strata, n_clusters)
    writes = {"corrected": Output(f"obsm/{spec.key_added}", (values.shape[1],), "float32")}
    if spec.keep_clusters is not None:
        key = f"obsm/{spec.keep_clusters}"
        writes["clusters"] = Output(key, (n_clusters,), spec.clusters_dtype)
    stages: tuple[Any, ...]
    bound = Stages(values, codes, spec.use_rep, settings, n_clusters, spec, writes)
    states: dict[str, Any] = {}
    if len(strata.cells) < 2:
        stages = (_copy(values, spec, n_clusters, writes),)
    elif spec.update == "blocks":
        stages = sequential_stages(bound)
    else:
        stages, states = bound.all(), bound.states
    return Program(
        "harmony",
        stages,
        recorded(data, **spec.to_parameters()),
        data.path,
        results=partial(_results, spec=spec, strata=strata, levels=levels),
        result_keys=(f"uns/{spec.key_added}",),
        state=states,
    )


def _embedding(data: Data, key: str) -> Source:
    values = data.embedding(key)
    if is_csr(values) or len(values.shape) != 2 or values.shape[0] != data.n_obs:
        raise InputError(
            "embedding-shape",
            f"the embedding is not a dense matrix of {data.n_obs} rows",
            place=f"obsm {key!r}",
            remedy="name an entry of obsm such as X_pca, of shape (n_cells, n_dims)",
        )
    return values


def copy_rows(
    rows: tuple[int, int], *, values: np.ndarray, key: str, n_clusters: int
) -> dict[str, np.ndarray]:
    """Rows as they are, in no cluster more than in another."""
    kept = check_finite(values, rows, key)
    return {
        "corrected": kept,
        "clusters": np.full((len(kept), n_clusters), 1 / n_clusters, np.float32),
    }


def _copy(values: Source, spec: HarmonySpec, n_clusters: int, writes: dict[str, Output]) -> Map:
    """Return the stage for data with one batch."""
    warnings.warn(
        f"[one-batch] all cells have the same {' and '.join(spec.keys)!r}: there is nothing to "
        f"correct, {writes['corrected'].key!r} is a copy of {spec.use_rep!r}",
        StdistWarning,
        stacklevel=5,
    )
    return Map(
        "copy",
        copy_rows,
        {"values": values},
        options={"key": spec.use_rep, "n_clusters": n_clusters},
        workspace=TileWorkspace(4 * n_clusters),
        writes=writes,
    )


def _results(values: Any, spec: HarmonySpec, strata: Strata, levels: list[str]) -> dict[str, Any]:
    """Parameters, tables and convergence."""
    parameters = {name: x for name, x in spec.to_parameters().items() if x is not None}
    facts: dict[str, Any] = {"params": parameters, "levels": levels}
    found = values.get("harmony")
    if found is None:
        return {f"uns/{spec.key_added}": facts | {"notes": ["[one-batch] a copy"]}}
    names = ("centroids", "objective", "inner_objective", "rounds")
    facts |= {name: np.asarray(found[name]) for name in names}
    facts |= {
        "observed": strata.by_level(found["observed"]),
        "expected": strata.expected(found["observed"]),
        "converged": bool(found["converged"]),
    }
    return {f"uns/{spec.key_added}": facts}
