"""Batch- and cell-type-variance ratios of a correction, for all genes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from stdist.cluster import executor_for
from stdist.graph import Each, InProcess, Program, Reduce, run_in_memory
from stdist.kernels.poisson_glmm import bvr_cvr as ratios
from stdist.kernels.poisson_glmm import fit_poisson_glmm
from stdist.methods.checks import check_codes, check_counts, check_depth
from stdist.methods.crescendo.tiles import cell_depth, sum_by
from stdist.methods.data import AnnDataData, open_data
from stdist.preprocess.bound import TileWorkspace, tile_workspace
from stdist.store import InputError

PANEL = 64
COMPONENTS = ("celltype", "batch", "interaction", "intercept", "log_likelihood", "converged")


def sum_groups(
    rows: tuple[int, int],
    *,
    before: Any,
    after: Any,
    batch: np.ndarray,
    labels: np.ndarray,
    depth: np.ndarray | None = None,
    n_batches: int,
    n_types: int,
    keys: tuple[str, str, str],
) -> dict[str, np.ndarray]:
    """Sums of counts before and after, and of depth, by (cell type, batch)."""
    check_counts(before, rows)
    check_counts(after, rows)
    check_codes(batch, rows, keys[0])
    check_codes(labels, rows, keys[1])
    group, shape = labels * n_batches + batch, (n_types, n_batches)
    n_groups = n_types * n_batches
    if depth is None:
        depth = cell_depth(before)
    else:
        depth = depth.astype(np.float64)
        check_depth(depth, before, rows, keys[2])
    return {
        "before": sum_by(group, n_groups, before).reshape(*shape, -1),
        "after": sum_by(group, n_groups, after).reshape(*shape, -1),
        "depth": np.bincount(group, depth, n_groups).reshape(shape),
    }


def usable(total: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Refuse groups from which the variance components cannot be told apart."""
    try:
        fit_poisson_glmm(total["before"][:, :, :0], total["depth"])
    except ValueError as error:
        raise InputError(
            "groups-unusable",
            str(error),
            place="batches and cell types",
            remedy="use labels whose types occur in several batches",
        ) from error
    return total


def fit_panel(item: int, *, groups: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Variance components of a panel of genes, before and after."""
    panel = slice(item * PANEL, (item + 1) * PANEL)
    found: dict[str, np.ndarray] = {}
    for when in ("before", "after"):
        model = fit_poisson_glmm(groups[when][:, :, panel], groups["depth"])
        found |= {f"{when}_{name}": getattr(model, name) for name in COMPONENTS}
    measured = ratios(*(_components(found, when) for when in ("before", "after")))
    return found | {name: getattr(measured, name) for name in RATIOS}


RATIOS = ("bvr", "cvr", "no_batch_variance", "no_celltype_variance", "in_zone")


def _components(found: dict[str, np.ndarray], when: str) -> Any:
    from stdist.kernels.poisson_glmm import VarianceComponents

    return VarianceComponents(**{name: found[f"{when}_{name}"] for name in COMPONENTS})


def join(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Join panels of genes."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def bvr_cvr(
    data: Any,
    *,
    layer: str = "crescendo",
    batch_key: str,
    label_key: str,
    before: str | None = None,
    depth_key: str | None = None,
    client: Any = None,
) -> pd.DataFrame:
    """Measure how much batch and cell-type variance a correction left in every gene.

    Parameters
    ----------
    data
        Path of a store, a lazy AnnData of `stdist.io.open`, or an AnnData.
    layer
        Corrected counts.
    batch_key
        Column of ``obs`` with the batch.
    label_key
        Column of ``obs`` with the cell type.
    before
        Layer with the counts before correction; default ``X``.
    depth_key
        Column of ``obs`` with the depth (nUMI); default: total counts of `before`.
    client
        `distributed.Client`; default as in `stdist.tl.crescendo`.

    Returns
    -------
    pandas.DataFrame
        One row per gene: ``bvr`` = B_after / B_before with B = var(batch) + var(type:batch);
        ``cvr`` = C_after / C_before with C = var(type); ``in_zone`` (bvr < 1 and cvr >= 0.5);
        ``no_batch_variance`` (B_before <= 0.001: the ratio is undefined);
        ``batch_variance_before`` and ``..._after``, ``type_variance_before`` and ``..._after``,
        ``counts_before`` and ``counts_after`` (totals), ``converged``.

    Raises
    ------
    InputError
        If keys are unknown, labels are missing, or there are fewer than two batches or types.

    Notes
    -----
    Poisson mixed model ``y ~ 1 + (1|type) + (1|batch) + (1|type:batch)`` with the log of the
    depth before correction as offset, Laplace approximation (Millard et al., Genome Biology
    2025; `lme4::glmer`), fitted to sums over (type, batch), which are sufficient: one pass over
    the cells, whatever their number.

    Examples
    --------
    >>> bvr_cvr("cohort.zarr", batch_key="batch", label_key="cell_type")  # doctest: +SKIP
    """
    opened = open_data(data)
    batch, labels = opened.labels(batch_key), opened.labels(label_key)
    if min(len(batch.names), len(labels.names)) < 2:
        raise InputError(
            "groups-too-few",
            f"{len(batch.names)} batches and {len(labels.names)} cell types",
            place=opened.place,
            remedy="the variance components need two batches and two cell types",
        )
    size = 16 * len(batch.names) * len(labels.names) * opened.n_vars
    reads = {
        "before": opened.matrix(before),
        "after": opened.matrix(layer),
        "batch": batch.codes,
        "labels": labels.codes,
    }
    if depth_key is not None:
        reads["depth"] = opened.column(depth_key)
    sums = Reduce(
        "groups",
        sum_groups,
        reads,
        options={
            "n_batches": len(batch.names),
            "n_types": len(labels.names),
            "keys": (batch_key, label_key, depth_key or ""),
        },
        finalize=usable,
        workspace=tile_workspace(opened.n_vars, 4),
        nanoseconds=opened.n_vars * 4.0,
        partial_bytes=size,
    )
    fits = Each(
        "fits",
        fit_panel,
        uses=("groups",),
        workspace=TileWorkspace(0, 2 * size),
        n_items=-(-opened.n_vars // PANEL),
        collect=join,
    )
    program = Program("bvr_cvr", (sums, fits), results=_values)
    if isinstance(opened, AnnDataData):
        values = run_in_memory(program, InProcess())
    else:
        with executor_for(client, opened.n_obs) as executor:
            values = run_in_memory(program, executor)
    return _table(values, opened.var_names)


def _values(values: Any) -> dict[str, Any]:
    groups = values["groups"]
    return values["fits"] | {
        "counts_before": groups["before"].sum(axis=(0, 1)),
        "counts_after": groups["after"].sum(axis=(0, 1)),
    }


def _table(values: dict[str, np.ndarray], names: np.ndarray) -> pd.DataFrame:
    columns = {
        "bvr": values["bvr"],
        "cvr": values["cvr"],
        "in_zone": values["in_zone"],
        "no_batch_variance": values["no_batch_variance"],
        "batch_variance_before": values["before_batch"] + values["before_interaction"],
        "batch_variance_after": values["after_batch"] + values["after_interaction"],
        "type_variance_before": values["before_celltype"],
        "type_variance_after": values["after_celltype"],
        "counts_before": values["counts_before"],
        "counts_after": values["counts_after"],
        "converged": values["before_converged"] & values["after_converged"],
    }
    return pd.DataFrame(columns, index=pd.Index(names, name="gene"))
