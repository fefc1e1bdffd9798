"""Crescendo's fit to all cells: passes over the data, from where the fit to the sample ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np

from stdist.graph import Each, Loop, Reduce, add_by_group, concatenate
from stdist.graph.stage import AnyStage
from stdist.kernels.array_module import array_module, host_array
from stdist.kernels.poisson_newton import Ridges
from stdist.kernels.poisson_passes import Passes, Sample, advance, pass_moments
from stdist.kernels.poisson_ridge import RidgeFit
from stdist.methods.crescendo.bound import FLOAT, Bound
from stdist.methods.crescendo.design import columns
from stdist.methods.crescendo.fit import (
    dispersion_of,
    estimate_sample,
    finished,
)
from stdist.methods.crescendo.marginal import measured_genes
from stdist.methods.crescendo.panels import PANEL, by_batches
from stdist.methods.crescendo.rows import rows_of_sample
from stdist.methods.crescendo.sample import trim_sample
from stdist.methods.crescendo.spec import CrescendoSpec
from stdist.methods.crescendo.tiles import cell_depth, sample_cells
from stdist.preprocess.bound import TileWorkspace

Arrays = dict[str, Any]
SUMS = ("group", "count_sums", "depth_sums")
SAMPLE_CELLS = 20_000
"""Cells, about, whose Hessian stands for that of all."""
MAX_PASSES = 60


def sample_and_sum(
    rows: tuple[int, int], *, groups: Arrays, seed: int, interactions: bool, **tile: Any
) -> Arrays:
    """Sample cells, and sum ``X^T y`` of all; the depth of every cell stays with its block."""
    counts, depth = tile["counts"], tile.get("depth")
    depth = cell_depth(counts) if depth is None else np.asarray(depth, dtype=np.float64)
    design = _design(tile["weights"], tile.get("kept"), groups, interactions)
    design = np.column_stack([np.ones(len(design)), design])
    present = np.unique(tile["batch"])
    sums, depths = [], []
    for b in present:
        own = np.flatnonzero(tile["batch"] == b)
        sums.append(np.asarray(counts[own].T @ design[own]).T)
        depths.append(depth[own].sum())
    return {
        **sample_cells(rows, groups=groups, seed=seed, **tile),
        "group": present,
        "count_sums": np.stack(sums),
        "depth_sums": np.stack(depths),
        "cell_depth": depth[:, None],
    }


def combine_sample_and_sums(left: Mapping[str, Any], right: Mapping[str, Any]) -> Arrays:
    """Append the sampled cells, add the sums."""

    def part(values: Mapping[str, Any], *, sums: bool) -> Arrays:
        return {name: array for name, array in values.items() if (name in SUMS) == sums}

    return concatenate(part(left, sums=False), part(right, sums=False)) | add_by_group(
        part(left, sums=True), part(right, sums=True)
    )


def trim_and_place(total: Arrays, *, groups: Arrays) -> Arrays:
    """Trim the sample, and give the sums of every batch their place."""
    sums = np.zeros((len(groups["mass"]), *total["count_sums"].shape[1:]))
    sums[total["group"]] = total["count_sums"]
    depth = total["depth_sums"].sum()
    return trim_sample(total, groups=groups) | {"count_sums": sums, "total_depth": depth}


def _design(weights: Any, kept: Any, groups: Arrays, interactions: bool) -> Any:
    merged = weights.astype(np.float64) @ groups["membership"]
    return columns(merged, kept, interactions)


def sum_means(
    rows: tuple[int, int],
    *,
    weights: Any,
    batch: Any,
    cell_depth: Any,
    groups: Arrays,
    passes: Arrays,
    kept: Any = None,
    interactions: bool,
) -> Arrays:
    """Sums of fitted means of one tile, for the genes that have not converged."""
    xp = array_module(weights)
    n_batches = len(passes["coefficients"]) - 1
    # a device waits longer for launches than for the zeros of batches that a tile lacks
    present = np.unique(batch) if xp is np else xp.arange(n_batches)
    going = xp.flatnonzero(~passes["converged"])
    chosen = xp.concatenate([xp.zeros(1, present.dtype), present + 1])
    design = _design(weights, kept, groups, interactions)
    coefficients = passes["coefficients"][chosen][:, :, going]
    local = xp.searchsorted(present, batch)
    return {
        "group": present,
        "moments": pass_moments(design, local, cell_depth[:, 0], coefficients),
    }


def fill(total: Arrays, *, passes: Arrays, groups: Arrays) -> Arrays:
    """Give the sums of every batch and gene their place; zero for genes that have converged."""
    moments = np.zeros((len(groups["mass"]), *passes["coefficients"].shape[1:]))
    going = np.flatnonzero(~passes["converged"])
    moments[np.ix_(total["group"], np.arange(moments.shape[1]), going)] = total["moments"]
    return {"moments": moments}


def estimate_panel(
    item: int,
    *,
    sample: Arrays,
    groups: Arrays,
    genes: np.ndarray,
    spec: CrescendoSpec,
    effects: Arrays | None = None,
) -> Arrays:
    """Fit a panel of genes to the sampled cells, and start the passes there."""
    counts, depth = (host_array(sample[name]) for name in ("count_sums", "total_depth"))

    def begin(result: RidgeFit, lam: object, rows: object, chosen: np.ndarray) -> Arrays:
        return Passes.begin(result, counts[:, 0, chosen].sum(axis=0) / depth).arrays()

    return estimate_sample(item, sample, groups, genes, spec, effects, begin)


def advance_panel(
    item: int,
    *,
    sample: Arrays,
    groups: Arrays,
    passes: Arrays,
    moments: Arrays,
    genes: np.ndarray,
    spec: CrescendoSpec,
    effects: Arrays | None = None,
) -> Arrays:
    """Move a panel of genes by the sums of a pass."""
    own = slice(item * PANEL, (item + 1) * PANEL)
    now = _panel(passes, own)
    if now.converged.all():
        return now.arrays()
    rows = rows_of_sample(sample, groups, genes[own], spec)
    cells = Sample(rows.weights, rows.batch, rows.depth, rows.n_batches, rows.n_clusters)
    fitted = measured_genes({"groups": groups}, genes[own], spec)[:, None]
    sums = sample["count_sums"][:, :, genes[own]]
    penalty = rows.random_effects(spec.prior_sd, spec.cluster_penalty)
    ridges = Ridges.of(penalty, dispersion_of(effects, genes[own], spec))
    return advance(now, moments["moments"][..., own] * fitted, sums, cells, ridges).arrays()


def finish_panel(
    item: int,
    *,
    sample: Arrays,
    groups: Arrays,
    passes: Arrays,
    genes: np.ndarray,
    spec: CrescendoSpec,
    var_names: np.ndarray,
    effects: Arrays | None = None,
) -> Arrays:
    """Turn the result of the passes into what matching needs."""
    own = slice(item * PANEL, (item + 1) * PANEL)
    point, panel = _panel(passes, own), genes[own]

    def solve(places: np.ndarray, batches: np.ndarray) -> Arrays:
        coefficients = point.coefficients[..., places]
        result = RidgeFit(
            intercept=coefficients[0, 0],
            cluster=coefficients[0, 1:],
            batch=coefficients[1:, 0],
            interaction=coefficients[1:, 1:],
            converged=point.converged[places],
            iterations=np.full(len(places), int(passes["n_iterations"])),
            gradient_norm=np.full(len(places), np.nan),
        )
        rows = rows_of_sample(sample, groups, panel[places], spec).of_batches(batches)
        return finished(result, None, rows, groups, panel[places], var_names, spec, effects)

    return by_batches(measured_genes({"groups": groups}, panel, spec), solve)


def _panel(passes: Arrays, own: slice) -> Passes:
    return Passes.of({field.name: passes[field.name][..., own] for field in fields(Passes)})


def all_converged(previous: Arrays, current: Arrays) -> bool:
    """Tell whether every gene has converged."""
    return bool(current["converged"].all())


def fit_to_all_cells(
    bound: Bound,
    groups: Reduce,
    sample: Reduce,
    effects: tuple[Each, ...],
    n_columns: int,
    size: int,
    nanoseconds: float,
) -> tuple[AnyStage, ...]:
    """Return the stages of the fit: sums and a sample, passes until all genes converge, the end.

    `size` is the memory of the sample in a fitting task, `nanoseconds` the time of one gene.
    """
    n_genes, n_batches = len(bound.genes), bound.n_batches
    one = (n_columns + 1) * n_genes * FLOAT
    interactions = {"interactions": bound.spec.keep_interactions}
    sampled = replace(
        sample,
        kernel=sample_and_sum,
        combine=combine_sample_and_sums,
        finalize=trim_and_place,
        options={**sample.options, **interactions},
        partial_bytes=sample.partial_bytes + n_batches * (n_columns + 1) * bound.n_genes * FLOAT,
        updates=("cell_depth",),
    )
    reads = {name: s for name, s in sample.reads.items() if name in ("weights", "batch", "kept")}
    moments = Reduce(
        "moments",
        sum_means,
        reads,
        ("groups", "passes"),
        interactions,
        finalize=fill,
        combine=add_by_group,
        workspace=TileWorkspace((3 * n_columns + 2 * n_genes) * FLOAT, 9 * (n_batches + 1) * one),
        nanoseconds=n_genes * (2.0 + n_columns / 5),
        partial_bytes=n_batches * one,
        recalls=("cell_depth",),
        on_device=not bound.kept,
    )
    # a state of the passes holds nine arrays of coefficients
    size += 18 * (n_batches + 1) * one
    tested = tuple(stage.name for stage in effects)
    uses = ("sample", "groups", "passes", *tested)
    start = ("sample", "groups", *tested)
    return (
        groups,
        sampled,
        *effects,
        bound.fit("start", estimate_panel, start, size, nanoseconds, on_device=True),
        Loop(
            "passes",
            (moments, bound.fit("advance", advance_panel, (*uses, "moments"), size, nanoseconds)),
            "start",
            all_converged,
            MAX_PASSES,
        ),
        bound.fit("fit", finish_panel, uses, size, 1e6),
    )
