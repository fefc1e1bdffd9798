"""Crescendo as a program: sum, (sample), fit, match."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from stdist.graph import Each, Map, Program, Reduce, by_name, concatenate
from stdist.kernels.keyed_random import stream_key
from stdist.methods.crescendo.fit import (
    PANEL,
    fit_panel_of_sample,
    fit_panel_of_strata,
    group_clusters,
    join_panels,
    trim_sample,
)
from stdist.methods.crescendo.match import match_block
from stdist.methods.crescendo.spec import CrescendoSpec
from stdist.methods.crescendo.tiles import copy_counts, sample_cells, sum_clusters, sum_strata
from stdist.methods.data import Data, Labels, present_labels
from stdist.preprocess.bound import TileWorkspace, is_csr
from stdist.store import InputError, Output, Source
from stdist.store.elements import row_entries
from stdist.store.layout import counts_dtype

FLOAT = 8


class StdistWarning(UserWarning):
    """Something in the data that stdist passed through and the user should know."""


def crescendo_program(data: Data, spec: CrescendoSpec) -> Program:
    """Bind Crescendo to data.

    Raises
    ------
    InputError
        If keys, genes or shapes are wrong; found before any block is read.
    """
    counts = data.matrix(spec.layer)
    batch = data.labels(spec.batch_key)
    parameters: dict[str, Any] = {"data": str(data.path), **spec.to_parameters()}
    output = _output(counts, data.n_vars, spec)
    genes = _requested(data, spec)
    if spec.clusters not in (*data.obs_keys(), *data.obsm_keys()):
        raise InputError(
            "clusters-unknown",
            f"no column of obs and no entry of obsm is called {spec.clusters!r}",
            place=data.place,
            remedy=f"obs has {', '.join(data.obs_keys()) or 'nothing'}; "
            f"obsm has {', '.join(data.obsm_keys()) or 'nothing'}",
        )
    if len(present_labels(batch)) < 2:
        return _copy(data, spec, batch, counts, output, parameters)
    reads = {"counts": counts, "batch": batch.codes}
    if spec.depth_key is not None:
        reads["depth"] = data.column(spec.depth_key)
    facts = _Facts(data, spec, batch, counts, genes, reads, output)
    if spec.clusters in data.obs_keys():
        return _labelled(facts, data.labels(spec.clusters), parameters)
    return _soft(facts, data.embedding(spec.clusters), parameters)


def _copy(
    data: Data,
    spec: CrescendoSpec,
    batch: Labels,
    counts: Source,
    output: Output,
    parameters: dict[str, Any],
) -> Program:
    """Return the program of data with one batch: the new layer is a copy."""
    warnings.warn(
        f"[one-batch] all cells have the same {spec.batch_key!r}: there is nothing to correct, "
        f"{output.key!r} is a copy of the counts",
        StdistWarning,
        stacklevel=4,
    )
    stage = Map(
        "copy",
        copy_counts,
        {"counts": counts, "batch": batch.codes},
        options={"dtype": output.dtype, "key": spec.batch_key},
        writes={"corrected": output},
    )
    return Program(
        "crescendo",
        (stage,),
        parameters,
        data.path,
        results=partial(_copied, spec=spec, names=data.var_names),
        result_keys=_result_keys(spec),
    )


class _Facts:
    """What both forms of the program share."""

    def __init__(
        self,
        data: Data,
        spec: CrescendoSpec,
        batch: Labels,
        counts: Source,
        genes: np.ndarray,
        reads: dict[str, Source],
        output: Output,
    ) -> None:
        self.data, self.spec, self.batch, self.counts = data, spec, batch, counts
        self.genes, self.reads, self.output = genes, reads, output
        self.n_genes = data.n_vars
        self.fit_options = {
            "genes": genes,
            "prior_sd": spec.prior_sd,
            "cluster_penalty": spec.cluster_penalty,
            "var_names": data.var_names,
        }
        self.keys = (spec.batch_key, spec.clusters, spec.depth_key or "")

    def match(self, reads: dict[str, Source], n_clusters: int) -> Map:
        """Return the stage that corrects."""
        spec, n_genes, n_batches = self.spec, self.n_genes, len(self.batch.names)
        names = self.data.var_names
        chosen = names[self.genes]
        keys = np.array([stream_key(spec.rng, "crescendo match", str(n)) for n in chosen])
        coefficients = 4 * (n_batches + 1) * (n_clusters + 1) * n_genes * FLOAT
        dtype = np.dtype(self.output.dtype).itemsize
        return Map(
            "match",
            match_block,
            reads,
            ("fit",),
            {
                "keys": keys,
                "genes": self.genes,
                "cap": spec.cap_outliers,
                "dtype": self.output.dtype,
            },
            workspace=TileWorkspace(n_genes * dtype, coefficients),
            nanoseconds=n_genes * 15.0,
            writes={"corrected": self.output},
            whole_blocks=True,
        )

    def tile_bytes(self, n_columns: int) -> Any:
        """Workspace of a tile's sums: the counts as float64 and what they become."""
        return TileWorkspace(3 * self.n_genes * FLOAT + 4 * n_columns * FLOAT)


def _labelled(facts: _Facts, labels: Labels, parameters: dict[str, Any]) -> Program:
    n_batches, n_labels, n_genes = len(facts.batch.names), len(labels.names), facts.n_genes
    reads = facts.reads | {"labels": labels.codes}
    size = n_batches * n_labels * n_genes * FLOAT
    sums = Reduce(
        "strata",
        sum_strata,
        reads,
        options={"n_batches": n_batches, "n_labels": n_labels, "keys": facts.keys},
        combine=by_name(largest_rate=np.maximum),
        workspace=facts.tile_bytes(1),
        nanoseconds=n_genes * 4.0,
        partial_bytes=2 * size,
    )
    fit = Each(
        "fit",
        fit_panel_of_strata,
        uses=("strata",),
        options=facts.fit_options,
        workspace=TileWorkspace(0, 2 * size),
        nanoseconds=PANEL * 0.6e6,
        n_items=-(-len(facts.genes) // PANEL),
        collect=join_panels,
    )
    return Program(
        "crescendo",
        (sums, fit, facts.match(reads, n_labels)),
        parameters,
        facts.data.path,
        results=partial(_results, facts=facts, clusters=labels.names, sums="strata"),
        result_keys=_result_keys(facts.spec),
    )


def _soft(facts: _Facts, weights: Source, parameters: dict[str, Any]) -> Program:
    spec, n_genes, n_batches = facts.spec, facts.n_genes, len(facts.batch.names)
    if is_csr(weights):
        raise InputError(
            "clusters-sparse",
            "soft clusters are stored as a sparse matrix",
            place=f"obsm {spec.clusters!r}",
            remedy="store them dense: .toarray()",
        )
    if len(weights.shape) != 2 or weights.shape[0] != facts.data.n_obs:
        raise InputError(
            "clusters-shape",
            f"soft clusters have shape {weights.shape}, not (n_cells, n_clusters)",
            place=f"obsm {spec.clusters!r}",
            remedy="give one row per cell and one column per cluster",
        )
    n_clusters = weights.shape[1]
    reads = facts.reads | {"weights": weights}
    size = (n_batches * (n_genes + 2 * n_clusters) + n_clusters**2 + n_genes) * FLOAT
    density = getattr(facts.counts, "attributes", {}).get("density", 0.5)
    cells = min(facts.data.n_obs, 2 * spec.fit_cells + spec.min_cells * n_batches * n_clusters)
    sampled = int(cells * ((n_clusters + 4) * FLOAT + density * n_genes * 12))
    groups = Reduce(
        "groups",
        sum_clusters,
        reads,
        options={"n_batches": n_batches, "seed": spec.rng, "keys": facts.keys},
        combine=by_name(largest_rate=np.maximum),
        finalize=partial(
            group_clusters,
            merge_threshold=spec.merge_threshold,
            fit_cells=spec.fit_cells,
            min_cells=spec.min_cells,
        ),
        workspace=facts.tile_bytes(n_clusters),
        nanoseconds=n_genes * 4.0 + n_clusters * 30.0,
        partial_bytes=size,
    )
    sample = Reduce(
        "sample",
        sample_cells,
        reads,
        ("groups",),
        {"seed": spec.rng},
        combine=concatenate,
        finalize=trim_sample,
        workspace=facts.tile_bytes(n_clusters),
        nanoseconds=n_clusters * 30.0,
        partial_bytes=2 * sampled,
    )
    fit = Each(
        "fit",
        fit_panel_of_sample,
        uses=("sample", "groups"),
        options=facts.fit_options,
        workspace=TileWorkspace(0, sampled + 3 * cells * n_clusters * FLOAT),
        nanoseconds=PANEL * min(cells, spec.fit_cells) * max(1.0, n_clusters**2 / 900) * 1000.0,
        n_items=-(-len(facts.genes) // PANEL),
        collect=join_panels,
    )
    return Program(
        "crescendo",
        (groups, sample, fit, facts.match(reads, n_clusters)),
        parameters,
        facts.data.path,
        results=partial(
            _results,
            facts=facts,
            clusters=[str(k) for k in range(n_clusters)],
            sums="groups",
        ),
        result_keys=_result_keys(spec),
    )


def _output(counts: Source, n_genes: int, spec: CrescendoSpec) -> Output:
    facts = getattr(counts, "attributes", {})
    # the largest corrected count is not known beforehand: eight times the largest count is room
    dtype = counts_dtype(int(facts["max"])) if "max" in facts else np.dtype(np.uint32)
    key = f"layers/{spec.key_added}"
    if not is_csr(counts):
        return Output(key, (n_genes,), dtype.name)
    # zeros may become counts: twice the entries of the densest rows is ample in practice
    entries = min(n_genes, 2 * row_entries(counts) + 64)
    return Output(key, (n_genes,), dtype.name, "csr", row_entries=entries)


def _requested(data: Data, spec: CrescendoSpec) -> np.ndarray:
    """Columns of the genes to correct, ascending."""
    if spec.genes is None:
        return np.arange(data.n_vars)
    names = pd.Index(data.var_names)
    absent = [gene for gene in spec.genes if gene not in names]
    if absent:
        raise InputError(
            "gene-absent",
            f"{len(absent)} requested genes are not in the data, first {absent[0]!r}",
            place=data.place,
            remedy="check the spelling; var_names has "
            f"{', '.join(map(str, names[:3]))}, ... ({len(names)} genes)",
        )
    return np.flatnonzero(names.isin(spec.genes))


def _result_keys(spec: CrescendoSpec) -> tuple[str, ...]:
    return f"uns/{spec.key_added}", f"var/{spec.key_added}_status"


def _copied(values: Any, spec: CrescendoSpec, names: np.ndarray) -> dict[str, Any]:
    status = pd.Categorical(["one batch"] * len(names))
    return {
        f"uns/{spec.key_added}": {"params": _params(spec), "notes": ["[one-batch] a copy"]},
        f"var/{spec.key_added}_status": pd.Series(status, index=names),
    }


def _params(spec: CrescendoSpec) -> dict[str, Any]:
    return {name: value for name, value in spec.to_parameters().items() if value is not None}


def _results(values: Any, facts: _Facts, clusters: list[str], sums: str) -> dict[str, Any]:
    """Coefficients, parameters, the status of every gene, and what the user should know."""
    import xarray as xr

    spec, batches, names = facts.spec, facts.batch.names, facts.data.var_names
    fit, total = values["fit"], values[sums]
    if sums == "strata":
        gene_counts, mass = total["counts"].sum(axis=1), total["cells"]
    else:
        gene_counts, mass = total["gene_counts"], total["mass"]
    status = np.full(len(names), "not requested", dtype=object)
    status[facts.genes] = np.where(fit["converged"], "corrected", "not converged")
    absent = (gene_counts[mass.sum(axis=1) > 0] == 0).any(axis=0)
    status[absent & (status == "corrected")] = "absent in a batch"
    status[gene_counts.sum(axis=0) == 0] = "no counts"
    empty = [name for name, n in zip(batches, mass.sum(axis=1), strict=True) if n == 0]
    notes = []
    if empty:
        notes.append(f"[batch-empty] no cell in batch {', '.join(empty)}")
    if total["empty_cells"]:
        notes.append(f"[cells-empty] {int(total['empty_cells'])} cells without counts stay so")
    for text, code in (
        ("no counts", "genes-empty"),
        ("absent in a batch", "genes-absent"),
        ("not converged", "genes-not-converged"),
    ):
        found = names[status == text]
        if len(found):
            notes.append(f"[{code}] {len(found)} genes, first {found[0]!r}: {text}")
    for note in notes:
        warnings.warn(note, StdistWarning, stacklevel=2)
    dims = {
        "converged": ("gene",),
        "intercept": ("gene",),
        "cluster": ("cluster", "gene"),
        "batch": ("batch", "gene"),
        "interaction": ("batch", "cluster", "gene"),
        "target_coefficients": ("cluster", "gene"),
    }
    variables = {name: (axes, fit[name]) for name, axes in dims.items()}
    variables = {
        {"cluster": "cluster_effect", "batch": "batch_effect"}.get(name, name): value
        for name, value in variables.items()
    }
    coordinates = {
        "gene": np.asarray(names[facts.genes], dtype=str),
        "batch": np.asarray(batches, dtype=str),
        "cluster": np.asarray(clusters, dtype=str),
    }
    return {
        f"uns/{spec.key_added}": {
            "params": _params(spec),
            "notes": notes or None,
            "coefficients": xr.Dataset(variables, coords=coordinates),
        },
        f"var/{spec.key_added}_status": pd.Series(pd.Categorical(status), index=names),
    }
