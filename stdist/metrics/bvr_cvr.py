"""Batch- and cell-type-variance ratios of a correction, for all genes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from stdist.graph import Each, Program, Reduce, run_in_memory
from stdist.kernels.gaussian_glmm import fit_gaussian_glmm
from stdist.kernels.group_sums import sum_by_group
from stdist.kernels.moments import membership_sums, row_sums
from stdist.kernels.poisson_glmm import VarianceComponents, fit_poisson_glmm
from stdist.kernels.poisson_glmm import bvr_cvr as ratios
from stdist.methods.checks import check_codes, check_counts, check_depth
from stdist.methods.data import open_data
from stdist.metrics.passes import executor_of
from stdist.preprocess.bound import TileWorkspace, tile_workspace
from stdist.store import InputError

PANEL = 64
COMPONENTS = ("celltype", "batch", "interaction", "intercept", "log_likelihood", "converged")
RATIOS = ("bvr", "cvr", "no_batch_variance", "no_celltype_variance", "in_zone")
FAMILIES = ("poisson", "gaussian")
Arrays = dict[str, np.ndarray]


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
) -> Arrays:
    """Sums of counts before and after, and of depth, by (cell type, batch)."""
    check_counts(before, rows)
    check_counts(after, rows)
    group = _groups(rows, batch, labels, n_batches, keys)
    n_groups, shape = n_types * n_batches, (n_types, n_batches)
    if depth is None:
        depth = row_sums(before)
    else:
        depth = depth.astype(np.float64)
        check_depth(depth, before, rows, keys[2])
    return {
        "before": sum_by_group(group, n_groups, before).reshape(*shape, -1),
        "after": sum_by_group(group, n_groups, after).reshape(*shape, -1),
        "depth": membership_sums(group, n_groups, depth).reshape(shape),
    }


def sum_squares(
    rows: tuple[int, int],
    *,
    before: Any,
    after: Any,
    batch: np.ndarray,
    labels: np.ndarray,
    n_batches: int,
    n_types: int,
    keys: tuple[str, str, str],
) -> Arrays:
    """Sums of values and of their squares before and after, and cells, by (type, batch)."""
    group = _groups(rows, batch, labels, n_batches, keys)
    n_groups, shape = n_types * n_batches, (n_types, n_batches)
    total = {"cells": np.bincount(group, minlength=n_groups).reshape(shape)}
    for when, values in (("before", before), ("after", after)):
        sums = sum_by_group(group, n_groups, values)
        if not np.isfinite(sums).all():
            raise InputError(
                "values-nonfinite",
                f"the layer {when} the correction holds values that are not finite",
                place=f"rows {rows[0]}:{rows[1]}",
                remedy="name a layer of finite values",
            )
        total[when] = sums.reshape(*shape, -1)
        squares = sum_by_group(group, n_groups, values, squares=True)
        total[f"{when}_squares"] = squares.reshape(*shape, -1)
    return total


def _groups(
    rows: tuple[int, int], batch: np.ndarray, labels: np.ndarray, n_batches: int, keys: Any
) -> np.ndarray:
    check_codes(batch, rows, keys[0])
    check_codes(labels, rows, keys[1])
    return labels * n_batches + batch


def usable(total: Arrays) -> Arrays:
    """Refuse groups from which the variance components cannot be told apart."""
    none = total["before"][:, :, :0]
    try:
        if "depth" in total:
            fit_poisson_glmm(none, total["depth"])
        else:
            fit_gaussian_glmm(none, none, total["cells"])
    except ValueError as error:
        raise InputError(
            "groups-unusable",
            str(error),
            place="batches and cell types",
            remedy="use labels whose types occur in several batches",
        ) from error
    return total


def fit_panel(item: int, *, groups: Arrays) -> Arrays:
    """Variance components of a panel of genes, before and after."""
    panel = slice(item * PANEL, (item + 1) * PANEL)
    fits, unit = [], np.ones(1)
    for when in ("before", "after"):
        sums = groups[when][:, :, panel]
        if "depth" in groups:
            fits.append(fit_poisson_glmm(sums, groups["depth"]))
            continue
        model = fit_gaussian_glmm(sums, groups[f"{when}_squares"][:, :, panel], groups["cells"])
        fits.append(VarianceComponents(**{name: getattr(model, name) for name in COMPONENTS}))
        if when == "before":
            unit = model.celltype + model.batch + model.interaction + model.residual
    # what is negligible is judged on the log scale, or as a share of the variance before
    measured = ratios(*(_in_units(fit, unit) for fit in fits))
    found = {name: getattr(measured, name) for name in RATIOS}
    for when, fit in zip(("before", "after"), fits, strict=True):
        found |= {f"{when}_{name}": getattr(fit, name) for name in COMPONENTS}
    return found


def _in_units(fit: VarianceComponents, unit: np.ndarray) -> VarianceComponents:
    parts = {name: getattr(fit, name) / unit for name in ("celltype", "batch", "interaction")}
    return replace(fit, **parts)


def join(parts: list[Arrays]) -> Arrays:
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
    family: str = "poisson",
    client: Any = None,
) -> pd.DataFrame:
    """Measure how much batch and cell-type variance a correction left in every gene.

    Parameters
    ----------
    data
        Path of a store, a lazy AnnData of `stdist.io.open`, or an AnnData.
    layer
        Corrected layer.
    batch_key
        Column of ``obs`` with the batch.
    label_key
        Column of ``obs`` with the cell type.
    before
        Layer before correction; default ``X``.
    depth_key
        Column of ``obs`` with the depth (nUMI) of counts; default: total counts of `before`.
    family
        ``"poisson"`` for counts; ``"gaussian"`` for other layers (log-normalised values ...).
    client
        `distributed.Client`; default as in `stdist.tl.crescendo`.

    Returns
    -------
    pandas.DataFrame
        One row per gene: ``bvr`` = B_after / B_before with B = var(batch) + var(type:batch);
        ``cvr`` = C_after / C_before with C = var(type); ``in_zone`` (bvr < 1 and cvr >= 0.5);
        ``no_batch_variance`` (B_before <= 0.001: the ratio is undefined, NaN);
        ``batch_variance_before`` and ``..._after``, ``type_variance_before`` and ``..._after``,
        ``counts_before`` and ``counts_after`` (totals), ``converged``. For the Gaussian family
        0.001 is a share of the total variance before, and the totals are of values.

    Raises
    ------
    InputError
        If keys or the family are unknown, labels are missing, values are wrong, or there are
        fewer than two batches or types.

    Notes
    -----
    Poisson mixed model ``y ~ 1 + (1|type) + (1|batch) + (1|type:batch)`` with the log of the
    depth before correction as offset, Laplace approximation (Millard et al., Genome Biology
    2025; `lme4::glmer`), fitted to sums over (type, batch), which are sufficient: one pass over
    the cells, whatever their number. The Gaussian family is the same model without offset, with
    a residual variance, by REML (`lme4::lmer`), fitted to sums and sums of squares.

    Examples
    --------
    >>> bvr_cvr("cohort.zarr", batch_key="batch", label_key="cell_type")  # doctest: +SKIP
    """
    if family not in FAMILIES or (family == "gaussian" and depth_key is not None):
        raise InputError(
            "parameter-range",
            f"family is {family!r}"
            if family not in FAMILIES
            else "the Gaussian family has no use for depth_key",
            place="family",
            remedy=f"use one of: {', '.join(FAMILIES)}; depth_key only with counts",
        )
    opened = open_data(data)
    batch, labels = opened.labels(batch_key), opened.labels(label_key)
    n_batches, n_types = len(batch.names), len(labels.names)
    if min(n_batches, n_types) < 2:
        raise InputError(
            "groups-too-few",
            f"{n_batches} batches and {n_types} cell types",
            place=opened.place,
            remedy="the variance components need two batches and two cell types",
        )
    reads = {
        "before": opened.matrix(before),
        "after": opened.matrix(layer),
        "batch": batch.codes,
        "labels": labels.codes,
    }
    if depth_key is not None:
        reads["depth"] = opened.column(depth_key)
    counts = family == "poisson"
    size = (16 if counts else 32) * n_batches * n_types * opened.n_vars
    sums = Reduce(
        "groups",
        sum_groups if counts else sum_squares,
        reads,
        options={
            "n_batches": n_batches,
            "n_types": n_types,
            "keys": (batch_key, label_key, depth_key or ""),
        },
        finalize=usable,
        on_device=True,
        workspace=tile_workspace(opened.n_vars, 4),
        nanoseconds=opened.n_vars * (3.0 if counts else 6.0),
        partial_bytes=size,
    )
    fits = Each(
        "fits",
        fit_panel,
        uses=("groups",),
        workspace=TileWorkspace(0, 2 * size),
        nanoseconds=PANEL * 1e7,
        n_items=-(-opened.n_vars // PANEL),
        collect=join,
    )
    program = Program("bvr_cvr", (sums, fits), results=_values)
    with executor_of(opened, client) as executor:
        values = run_in_memory(program, executor)
    return _table(values, opened.var_names)


def _values(values: Any) -> dict[str, Any]:
    groups = values["groups"]
    return values["fits"] | {
        "counts_before": groups["before"].sum(axis=(0, 1)),
        "counts_after": groups["after"].sum(axis=(0, 1)),
    }


def _table(values: Arrays, names: np.ndarray) -> pd.DataFrame:
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
