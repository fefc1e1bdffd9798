"""Crescendo bound to data: what the forms of its program share."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from stdist.graph import Each, Map, Program, Reduce, State
from stdist.graph.stage import AnyStage
from stdist.kernels.keyed_random import stream_key
from stdist.methods.crescendo.depth import TargetDepth
from stdist.methods.crescendo.design import Kept, kept_covariates
from stdist.methods.crescendo.effects import judge_genes
from stdist.methods.crescendo.impute import check_embedding, imputing
from stdist.methods.crescendo.match import Rule, match_block
from stdist.methods.crescendo.panels import PANEL, join_panels
from stdist.methods.crescendo.results import correction_results, result_keys
from stdist.methods.crescendo.spec import CrescendoSpec
from stdist.methods.crescendo.tiles import Keys
from stdist.methods.data import Data
from stdist.preprocess.bound import TileWorkspace, is_csr
from stdist.store import TILE_ROWS, InputError, Output, Source
from stdist.store.elements import row_entries
from stdist.store.layout import counts_dtype

FLOAT = 8


class Bound:
    """Sources, outputs, and the stages that do not depend on the form of the clusters.

    Raises
    ------
    InputError
        If keys or genes are unknown.
    """

    def __init__(self, data: Data, spec: CrescendoSpec) -> None:
        self.data, self.spec = data, spec
        self.counts = data.matrix(spec.layer)
        self.batch = data.labels(spec.batch_key)
        self.genes = _requested(data, spec)
        _check_known(data, spec.clusters)
        self.n_genes, self.n_batches = data.n_vars, len(self.batch.names)
        self.kept: list[Kept] = kept_covariates(data, spec.keep or ())
        self.target = TargetDepth(data, spec, self.batch)
        self.reads: dict[str, Source] = {"counts": self.counts, "batch": self.batch.codes}
        if spec.depth_key is not None:
            self.reads["depth"] = data.column(spec.depth_key)
        if self.target.column is not None:
            self.reads["target"] = self.target.column
        self.keys = Keys(
            spec.batch_key,
            spec.clusters,
            spec.depth_key or "",
            str(spec.target_offset),
            ", ".join(spec.keep or ()),
        )

    @property
    def writes(self) -> dict[str, Output]:
        """The new layers: corrected counts and, where asked for, the ends of their intervals."""
        output = _output(self.counts, self.n_genes, self.spec, self.target)
        ends = () if self.spec.interval is None else ("lower", "upper")
        return {
            "corrected": output,
            **{name: replace(output, key=f"{output.key}_{name}") for name in ends},
        }

    def tile_bytes(self, n_columns: int) -> TileWorkspace:
        """Workspace of a tile's sums: the counts as float64 and what they become."""
        return TileWorkspace(3 * self.n_genes * FLOAT + 4 * n_columns * FLOAT)

    def fit(
        self,
        name: str,
        kernel: Any,
        uses: tuple[str, ...],
        fixed_bytes: int,
        nanoseconds: float,
        options: dict[str, Any] | None = None,
        *,
        on_device: bool = False,
    ) -> Each:
        """Return a stage that works on panels of genes; `nanoseconds` are for one gene."""
        shared = {"genes": self.genes, "spec": self.spec}
        if name == "fit":
            shared["var_names"] = self.data.var_names
        return Each(
            name,
            kernel,
            uses=uses,
            options=shared | (options or {}),
            workspace=TileWorkspace(0, fixed_bytes),
            nanoseconds=PANEL * nanoseconds,
            n_items=-(-len(self.genes) // PANEL),
            collect=join_panels,
            on_device=on_device,
        )

    def effects(
        self,
        kernel: Any,
        uses: tuple[str, ...],
        fixed_bytes: int,
        nanoseconds: float,
        options: dict[str, Any] | None = None,
        n_items: int = 1,
    ) -> tuple[Each, ...]:
        """Return the stage that tests genes for a batch effect, if the parameters need it."""
        if not self.spec.tests_genes:
            return ()
        stage = Each(
            "effects",
            kernel,
            uses=uses,
            options=options or {},
            workspace=TileWorkspace(0, fixed_bytes),
            nanoseconds=nanoseconds,
            n_items=n_items,
            collect=partial(judge_genes, imputes=self.spec.impute_missing),
        )
        return (stage,)

    def match(
        self, reads: dict[str, Source], n_columns: int, options: dict[str, Any] | None = None
    ) -> tuple[Reduce | Map, ...]:
        """Return the stage that corrects, after the one that finds the target depth, if any."""
        spec, n_genes, writes = self.spec, self.n_genes, self.writes
        dtype = writes["corrected"].dtype
        depth = self.target.stage(reads, n_genes)
        chosen = self.data.var_names[self.genes]
        keys = np.array([stream_key(spec.rng, "crescendo match", str(n)) for n in chosen])
        fixed = 4 * (self.n_batches + 1) * (n_columns + 1) * n_genes * FLOAT
        if spec.match != "pit" or spec.interval is not None:
            fixed += 4 * TILE_ROWS * n_genes * FLOAT  # means, as arrays
        shared = {
            "keys": keys,
            "genes": self.genes,
            "var_names": self.data.var_names,
            "rule": Rule(
                spec.match,
                spec.cap_outliers,
                spec.interval,
                spec.source_offset,
                spec.keep_interactions,
            ),
            "dtype": dtype,
            "target_depth": self.target.number,
        }
        plain = spec.match == "pit" and spec.margin == "poisson" and spec.interval is None
        stage = Map(
            "match",
            match_block,
            reads,
            ("fit",) if depth is None else ("fit", "target"),
            shared | (options or {}),
            workspace=TileWorkspace(n_genes * np.dtype(dtype).itemsize, fixed),
            nanoseconds=n_genes * (15.0 if spec.match == "pit" else 2000.0),
            writes=writes,
            whole_blocks=True,
            on_device=plain and not (options and options.get("stratum_columns") is not None),
        )
        stages: tuple[Reduce | Map, ...] = (stage,)
        if spec.impute_missing:
            embedding = self.data.embedding(spec.use_rep)
            check_embedding(embedding, spec.use_rep, self.data.n_obs)
            stages = imputing(stage, embedding, spec.rng, spec.n_neighbors, chosen)
        return stages if depth is None else (depth, *stages)

    def program(
        self,
        stages: tuple[AnyStage, ...],
        clusters: list[str],
        state: dict[str, State] | None = None,
    ) -> Program:
        """Return the program of these stages, with results by the names of the clusters."""
        results = partial(
            correction_results,
            spec=self.spec,
            names=self.data.var_names,
            genes=self.genes,
            batches=self.batch.names,
            clusters=clusters,
            kept=[name for kept in self.kept for name in kept.names],
        )
        return self.program_with(stages, results, state)

    def program_with(
        self, stages: tuple[AnyStage, ...], results: Any, state: dict[str, State] | None = None
    ) -> Program:
        """Return the program of these stages and results."""
        return Program(
            "crescendo",
            stages,
            {"data": str(self.data.path), **self.spec.to_parameters()},
            self.data.path,
            results=results,
            result_keys=result_keys(self.spec),
            state=state or {},
        )


def _check_known(data: Data, clusters: str) -> None:
    if clusters not in (*data.obs_keys(), *data.obsm_keys()):
        raise InputError(
            "clusters-unknown",
            f"no column of obs and no entry of obsm is called {clusters!r}",
            place=data.place,
            remedy=f"obs has {', '.join(data.obs_keys()) or 'nothing'}; "
            f"obsm has {', '.join(data.obsm_keys()) or 'nothing'}",
        )


def _output(counts: Source, n_genes: int, spec: CrescendoSpec, target: TargetDepth) -> Output:
    facts = getattr(counts, "attributes", {})
    # the largest corrected count is not known beforehand: eight times the largest count is room
    known = "max" in facts and target.is_observed
    dtype = counts_dtype(int(facts["max"])) if known else np.dtype(np.uint32)
    key = f"layers/{spec.key_added}"
    if not is_csr(counts):
        return Output(key, (n_genes,), dtype.name)
    # zeros may become counts: twice the entries of the densest rows is ample in practice, but
    # not where cells are corrected to another depth
    entries = 2 * row_entries(counts) + 64 if target.is_observed else n_genes
    return Output(key, (n_genes,), dtype.name, "csr", row_entries=min(n_genes, entries))


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
