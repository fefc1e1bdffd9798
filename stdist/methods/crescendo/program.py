"""Crescendo as a program: sum, (sample), fit, (median depth), match."""

from __future__ import annotations

import warnings
from functools import partial

import numpy as np

from stdist.graph import Map, Program, Reduce, State, by_name, concatenate
from stdist.methods.crescendo.bound import FLOAT, Bound
from stdist.methods.crescendo.design import CombinedCodes, KeptColumns, OneHot, level_columns
from stdist.methods.crescendo.effects import PANEL as EFFECTS_PANEL
from stdist.methods.crescendo.effects import compare_all_strata, compare_panel_of_sample
from stdist.methods.crescendo.fit import (
    fit_panel_of_sample,
    fit_panel_of_strata,
)
from stdist.methods.crescendo.passes import SAMPLE_CELLS, fit_to_all_cells
from stdist.methods.crescendo.results import copy_results
from stdist.methods.crescendo.rows import stratum_columns
from stdist.methods.crescendo.sample import group_clusters, trim_sample
from stdist.methods.crescendo.spec import CrescendoSpec
from stdist.methods.crescendo.tiles import copy_counts, sample_cells, sum_clusters, sum_strata
from stdist.methods.data import Data, Labels, present_labels
from stdist.preprocess.bound import is_csr
from stdist.store import InputError, Source, StdistWarning


def crescendo_program(data: Data, spec: CrescendoSpec) -> Program:
    """Bind Crescendo to data.

    Raises
    ------
    InputError
        If keys, genes or shapes are wrong; found before any block is read.
    """
    bound = Bound(data, spec)
    if len(present_labels(bound.batch)) < 2:
        return _copy(bound)
    if spec.clusters not in data.obs_keys():
        return _soft(bound, data.embedding(spec.clusters))
    labels = data.labels(spec.clusters)
    if all(kept.levels for kept in bound.kept):
        return _labelled(bound, labels)
    return _soft(bound, OneHot(labels), labels.names)


def _copy(bound: Bound) -> Program:
    """Return the program of data with one batch: the new layer is a copy."""
    spec, writes = bound.spec, bound.writes
    output = writes["corrected"]
    warnings.warn(
        f"[one-batch] all cells have the same {spec.batch_key!r}: there is nothing to correct, "
        f"{output.key!r} is a copy of the counts",
        StdistWarning,
        stacklevel=4,
    )
    stage = Map(
        "copy",
        copy_counts,
        {name: bound.reads[name] for name in ("counts", "batch")},
        options={"dtype": output.dtype, "key": spec.batch_key, "outputs": tuple(writes)},
        writes=writes,
    )
    names = bound.data.var_names
    return bound.program_with((stage,), partial(copy_results, spec=spec, names=names))


def _labelled(bound: Bound, labels: Labels) -> Program:
    """Return the program of labels: the fit is to all cells, through sums."""
    spec, n_genes, codes, keys = bound.spec, bound.n_genes, labels.codes, bound.keys
    n_strata, levels, columns = len(labels.names), None, None
    if bound.kept:
        levels = level_columns(bound.kept)
        sizes = [n_strata, *(len(kept.levels) for kept in bound.kept)]
        codes = CombinedCodes([codes, *(kept.source for kept in bound.kept)], sizes)
        keys = keys._replace(clusters=f"{keys.clusters} and {keys.kept}")
        n_strata *= len(levels)
        columns = stratum_columns(n_strata, levels, spec.keep_interactions)
    reads = bound.reads | {"labels": codes}
    size = bound.n_batches * n_strata * n_genes * FLOAT
    sums = Reduce(
        "strata",
        sum_strata,
        reads,
        options={
            "n_batches": bound.n_batches,
            "n_labels": n_strata,
            "keys": keys,
            "deviance": spec.lam_rule == "reference",
            "dispersion": spec.margin == "negative_binomial",
            "effects": spec.tests_genes,
        },
        combine=by_name(largest_rate=np.maximum),
        workspace=bound.tile_bytes(1),
        nanoseconds=n_genes * 4.0,
        on_device=spec.lam_rule != "reference" and spec.margin == "poisson",
        partial_bytes=(2 if spec.margin == "poisson" else 4) * size,
    )
    effects = bound.effects(compare_all_strata, ("strata",), 12 * size, n_genes * 2e5)
    uses = ("strata", *(stage.name for stage in effects))
    fit = bound.fit("fit", fit_panel_of_strata, uses, 2 * size, 0.6e6, {"levels": levels})
    match = bound.match(reads, n_strata, {"stratum_columns": columns})
    return bound.program((sums, *effects, fit, *match), labels.names)


def _soft(bound: Bound, weights: Source, names: list[str] | None = None) -> Program:
    """Return the program of soft clusters, or of labels (`names`) as such: a sample is fitted."""
    spec, n_obs, n_genes = bound.spec, bound.data.n_obs, bound.n_genes
    _check_soft(weights, spec.clusters, n_obs)
    n_clusters = weights.shape[1]
    n_kept = sum(len(kept.names) for kept in bound.kept)
    n_columns = n_clusters + n_kept * (1 + n_clusters * spec.keep_interactions)
    reads = bound.reads | {"weights": weights}
    if bound.kept:
        reads["kept"] = KeptColumns(bound.kept)
    n_strata = bound.n_batches * n_clusters
    density = getattr(bound.counts, "attributes", {}).get("density", 0.5)
    wanted = int(spec.share * n_obs) if spec.share is not None else spec.fit_cells
    if spec.all_cells:
        wanted = min(n_obs, SAMPLE_CELLS)
    assert wanted is not None
    cells = min(n_obs, 2 * wanted + spec.min_cells * n_strata)
    sampled = int(cells * ((n_clusters + n_kept + 4) * FLOAT + density * n_genes * 12))
    passes = spec.all_cells and n_obs > SAMPLE_CELLS
    groups = Reduce(
        "groups",
        sum_clusters,
        reads,
        options={
            "n_batches": bound.n_batches,
            "seed": spec.rng,
            "keys": bound.keys._replace(labelled=names is not None),
        },
        combine=by_name(largest_rate=np.maximum),
        finalize=partial(
            group_clusters,
            merge_threshold=spec.merge_threshold,
            fit_cells=SAMPLE_CELLS if passes else spec.fit_cells,
            min_cells=spec.min_cells,
            share=None if passes else spec.share,
        ),
        workspace=bound.tile_bytes(n_clusters),
        nanoseconds=n_genes * 4.0 + n_clusters * 30.0,
        on_device=True,
        partial_bytes=(n_genes * (bound.n_batches + 1) + 2 * n_strata + n_clusters**2) * FLOAT,
    )
    sample = Reduce(
        "sample",
        sample_cells,
        reads,
        ("groups",),
        {"seed": spec.rng},
        combine=concatenate,
        gathers=True,
        finalize=trim_sample,
        workspace=bound.tile_bytes(n_clusters),
        nanoseconds=n_clusters * 30.0,
        partial_bytes=sampled,
    )
    size = sampled + 3 * cells * n_columns * FLOAT
    nanoseconds = min(cells, wanted) * max(1.0, n_columns**2 / 900) * 1000.0
    effects = bound.effects(
        compare_panel_of_sample,
        ("sample", "groups"),
        sampled + 6 * cells * max(n_columns, EFFECTS_PANEL) * FLOAT,
        EFFECTS_PANEL * cells * 100.0,
        {"interactions": spec.keep_interactions},
        n_items=-(-n_genes // EFFECTS_PANEL),
    )
    match = bound.match(reads, n_columns)
    clusters = names or [str(k) for k in range(n_clusters)]
    if passes:
        stages = fit_to_all_cells(bound, groups, sample, effects, n_columns, size, nanoseconds)
        return bound.program((*stages, *match), clusters, {"cell_depth": State((1,), "float64")})
    uses = ("sample", "groups", *(stage.name for stage in effects))
    fit = bound.fit("fit", fit_panel_of_sample, uses, size, nanoseconds, on_device=True)
    return bound.program((groups, sample, *effects, fit, *match), clusters)


def _check_soft(weights: Source, key: str, n_obs: int) -> None:
    if is_csr(weights):
        raise InputError(
            "clusters-sparse",
            "soft clusters are stored as a sparse matrix",
            place=f"obsm {key!r}",
            remedy="store them dense: .toarray()",
        )
    if len(weights.shape) != 2 or weights.shape[0] != n_obs:
        raise InputError(
            "clusters-shape",
            f"soft clusters have shape {weights.shape}, not (n_cells, n_clusters)",
            place=f"obsm {key!r}",
            remedy="give one row per cell and one column per cluster",
        )
