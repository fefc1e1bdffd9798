"""Which genes have a batch effect at all, and how much their counts scatter: before any fit."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
from scipy import sparse

from stdist.kernels.batch_test import BatchTest, compare_batches, compare_strata
from stdist.kernels.false_discovery import affected_genes
from stdist.methods.crescendo.design import columns
from stdist.methods.crescendo.marginal import absent_genes

Arrays = dict[str, Any]
PANEL = 64
"""Genes of one testing task."""


def compare_panel_of_sample(
    item: int, *, sample: Arrays, groups: Arrays, interactions: bool
) -> Arrays:
    """Test a panel of genes on the sampled cells; kept columns are part of the null model."""
    chosen = slice(item * PANEL, (item + 1) * PANEL)
    arrays = (sample["data"], sample["indices"], sample["indptr"])
    shape = (len(sample["depth"]), len(groups["largest_rate"]))
    counts = sparse.csc_matrix(arrays, shape=shape)[:, chosen]
    found = compare_batches(
        counts,
        columns(sample["weights"], sample.get("kept"), interactions),
        sample["batch"],
        sample["depth"],
        sample["cluster"],
        len(groups["mass"]),
    )
    absent = absent_genes({"groups": groups}, np.arange(shape[1])[chosen])
    return _tested(found, groups["gene_counts"].sum(axis=0)[chosen], absent)


def compare_all_strata(item: int, *, strata: Arrays) -> Arrays:
    """Test all genes on sums of labelled cells (within kept levels, where some are kept)."""
    found = compare_strata(
        strata["counts"],
        strata["depth"],
        strata["depth_squares"],
        strata["fitted"],
        strata["powers"],
        strata["depth_powers"],
    )
    n_genes = strata["counts"].shape[2]
    absent = absent_genes({"strata": strata}, np.arange(n_genes))
    return _tested(found, strata["counts"].sum(axis=(0, 1)), absent)


def _tested(found: BatchTest, counts: np.ndarray, absent: np.ndarray) -> Arrays:
    tests = {field.name: getattr(found, field.name) for field in fields(found)}
    return tests | {"counts": counts, "absent": absent.any(axis=0)}


def judge_genes(parts: list[Arrays], *, imputes: bool = False) -> Arrays:
    """Join the panels, and say which genes of the data are affected.

    All genes are judged together, whichever were asked for: the result of a gene does not depend
    on that. If counts are imputed, genes that a batch lacks are corrected without a test, which
    would find that they were not measured.
    """
    total = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    untested = total["absent"] & imputes
    p_values = np.where((total["counts"] > 0) & ~untested, total["p_value"], np.nan)
    affected = affected_genes(p_values, total["counts"]) | untested
    return total | {"p_value": np.where(untested, np.nan, total["p_value"]), "affected": affected}
