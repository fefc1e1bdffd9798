"""Every program by name: how to build it again from its parameters, and what it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from stdist.graph import Program
from stdist.store import InputError


@dataclass(frozen=True)
class Entry:
    """A program: where it is built, its public function, its kind, what it does, an example.

    Where a program takes several data sets, `store_option` names the first on the command line.
    `answer` is what a run tells at its end: a name in the entry of `uns` that it adds.
    """

    builder: str
    function: str
    kind: str
    summary: str
    example: str = ""
    store_option: str = ""
    answer: str = ""

    def build(self, parameters: Mapping[str, Any]) -> Program:
        """Build the program from its recorded parameters."""
        module, _, name = self.builder.partition(":")
        builder: Callable[..., Program] = getattr(import_module(module), name)
        return builder(**parameters)


PROGRAMS = {
    "convert": Entry(
        "stdist.io.convert:convert_program",
        "stdist.io.convert",
        "store",
        "h5ad, AnnData zarr, 10x h5 and mtx into one store, streaming, checked",
    ),
    "simulate": Entry(
        "stdist.methods.simulate:simulate_program",
        "stdist.simulate",
        "store",
        "MERSCOPE-like cohort with known batch effects, any size",
    ),
    "simulate-pair": Entry(
        "stdist.methods.simulate_pair:simulate_pair_program",
        "stdist.simulate_pair",
        "store",
        "cells and spots of one tissue with known truth, any size",
    ),
    "qc": Entry(
        "stdist.preprocess.qc:qc_program",
        "stdist.pp.calculate_qc_metrics",
        "preprocess",
        "counts and genes per cell, cells per gene",
    ),
    "filter": Entry(
        "stdist.io.filter:filter_program",
        "stdist.pp.filter",
        "store",
        "a new store of the cells and genes that pass",
    ),
    "normalize_total": Entry(
        "stdist.preprocess.normalize:normalize_program",
        "stdist.pp.normalize_total",
        "preprocess",
        "cells scaled to the median depth, optionally log1p",
        "--log1p",
    ),
    "log1p": Entry(
        "stdist.preprocess.normalize:log1p_program",
        "stdist.pp.log1p",
        "preprocess",
        "natural logarithm of one plus the value",
    ),
    "scale": Entry(
        "stdist.preprocess.scale:scale_program",
        "stdist.pp.scale",
        "preprocess",
        "genes to mean zero and unit variance, clipped",
    ),
    "pca": Entry(
        "stdist.preprocess.pca:pca_program",
        "stdist.pp.pca",
        "preprocess",
        "principal components by the covariance route, deterministic signs",
        "--layer normalized --n-comps 30",
    ),
    "kmeans": Entry(
        "stdist.preprocess.kmeans:kmeans_program",
        "stdist.tl.kmeans",
        "method",
        "k-means labels of an embedding, the same for any blocks",
        "--n-clusters 12",
    ),
    "harmony": Entry(
        "stdist.preprocess.harmony_program:build_harmony",
        "stdist.pp.harmony",
        "method",
        "an embedding without batch effects, and soft clusters (Korsunsky et al. 2019)",
        "--batch-key batch --keep-clusters harmony_clusters",
    ),
    "crescendo": Entry(
        "stdist.methods.crescendo:build_crescendo",
        "stdist.tl.crescendo",
        "method",
        "batch-corrected counts per gene (Millard et al. 2025)",
        "--batch-key batch --clusters cell_type",
    ),
    "siid": Entry(
        "stdist.methods.siid:build_siid",
        "stdist.tl.siid",
        "method",
        "genes of spots imputed in cells, and types of spots (SIID 2025)",
        "--spots visium.zarr --n-factors 15",
        "cells",
    ),
    "siid_align": Entry(
        "stdist.methods.siid.align:build_siid_align",
        "stdist.tl.siid_align",
        "preprocess",
        "the rigid move that brings spots onto their cells, or that it cannot be told",
        "--spots visium.zarr --n-factors 15",
        "cells",
        "message",
    ),
    "siid_impute": Entry(
        "stdist.methods.siid.impute:build_siid_impute",
        "stdist.tl.siid_impute",
        "method",
        "imputed means of genes, also outside the panel, from the factors of siid",
        "--genes CD4,CD8A --spots visium.zarr",
        "cells",
    ),
    "siid_holdout": Entry(
        "stdist.methods.siid.holdout:build_siid_holdout",
        "stdist.tl.siid_holdout",
        "measure",
        "imputation by siid of genes held out, beside simple baselines and permuted spots",
        "--spots visium.zarr --n-factors 15",
        "cells",
    ),
    "siid_choose_factors": Entry(
        "stdist.methods.siid.choose_factors:build_siid_choose_factors",
        "stdist.tl.siid_choose_factors",
        "method",
        "number of factors for siid, judged on molecules held back from the fit",
        "--spots visium.zarr --n-factors 5,10,15,20",
        "cells",
        "n_factors",
    ),
    "siid_choose_passes": Entry(
        "stdist.methods.siid.choose_passes:build_siid_choose_passes",
        "stdist.tl.siid_choose_passes",
        "method",
        "number of passes for siid, judged on genes held out of the fit: early stopping",
        "--spots visium.zarr --n-factors 15",
        "cells",
        "passes",
    ),
}


def build(name: str, parameters: Mapping[str, Any]) -> Program:
    """Build a program again, for a resume.

    Raises
    ------
    InputError
        If this version of stdist has no program of that name.
    """
    if name not in PROGRAMS:
        raise InputError(
            "program-unknown",
            f"this version has no program {name!r}",
            place="run.json",
            remedy="use the version of stdist that began the run",
        )
    return PROGRAMS[name].build(parameters)
