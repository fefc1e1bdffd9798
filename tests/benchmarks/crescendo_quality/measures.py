"""What a correction is judged by."""

from __future__ import annotations

import warnings

import anndata
import numpy as np

from stdist.kernels.group_sums import sum_by_group
from stdist.kernels.poisson_glmm import bvr_cvr, fit_poisson_glmm

from .data import Case

N_VARIABLE = 75
SEEN = 20  # counts of a group below which its rate is not judged


def _group_sums(case: Case, values: np.ndarray) -> np.ndarray:
    n_types, n_batches = case.labels.max() + 1, case.batch.max() + 1
    codes = case.labels * n_batches + case.batch
    total = sum_by_group(codes, n_types * n_batches, values.reshape(len(codes), -1))
    return total.reshape(n_types, n_batches, -1)


def within_correlation(case: Case, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Correlation of log-normalised counts, centred within (type, batch), per gene."""
    scale = np.median(case.depth) / case.depth[:, None]
    groups = np.unique(np.stack([case.labels, case.batch]), axis=1, return_inverse=True)[1].ravel()
    centred = []
    for counts in (before, after):
        values = np.log1p(counts * scale)
        means = sum_by_group(groups, groups.max() + 1, values) / np.bincount(groups)[:, None]
        centred.append(values - means[groups])
    x, z = centred
    with np.errstate(invalid="ignore", divide="ignore"):
        return (x * z).sum(axis=0) / np.sqrt((x**2).sum(axis=0) * (z**2).sum(axis=0))


def variable_genes(case: Case, counts: np.ndarray) -> np.ndarray:
    """Return which are the top genes of scanpy's `seurat` flavour."""
    import scanpy

    scaled = np.log1p(counts / case.depth[:, None] * np.median(case.depth))
    adata = anndata.AnnData(scaled.astype(np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scanpy.pp.highly_variable_genes(adata, n_top_genes=N_VARIABLE, flavor="seurat")
    return adata.var["highly_variable"].to_numpy()


def quality(case: Case, after: np.ndarray) -> dict[str, float]:
    """Zone share, ratios of variances, within-group correlation, totals, variable genes."""
    before = case.counts()
    depth = _group_sums(case, case.depth)[:, :, 0]
    models = [fit_poisson_glmm(_group_sums(case, c), depth) for c in (before, after)]
    ratios = bvr_cvr(*models)
    judged = ~ratios.no_batch_variance
    totals = after.sum(axis=0) / before.sum(axis=0)
    same = variable_genes(case, before) & variable_genes(case, after)
    return {
        "zone": ratios.in_zone[judged].mean(),
        "BVR": np.nanmedian(ratios.bvr),
        "CVR": np.nanmedian(ratios.cvr),
        "r": np.nanmedian(within_correlation(case, before, after)),
        "HVG": same.sum() / N_VARIABLE,
        "total": after.sum() / before.sum(),
        "least": totals.min(),
        "largest": totals.max(),
        "changed": (before != after).mean(),
    }


def change(case: Case, after: np.ndarray) -> dict[str, float]:
    """Share of entries changed and the correlation with what was there."""
    before = case.counts()
    r = within_correlation(case, before, after)
    return {"changed": (before != after).mean(), "r": np.nanmedian(r), "least r": np.nanmin(r)}


def error(case: Case, truth: np.ndarray, after: np.ndarray) -> dict[str, float]:
    """Distance from the counts without the simulated effect.

    ``rate``: mean absolute log ratio of the rates (counts over depth) of every type, batch and
    gene with enough counts; ``between``: its root mean square, weighted by counts, with the mean
    of each gene removed, so that only differences between groups count. ``MAE`` and ``RMSE`` of
    single counts.
    """
    columns = case.adata.var_names.get_indexer(case.genes)
    wanted = truth[:, columns]
    depths = [_group_sums(case, np.maximum(d, 1.0)) for d in (truth.sum(axis=1), case.depth)]
    sums = [_group_sums(case, c) for c in (wanted, after)]
    seen = sums[0] >= SEEN
    ratio = np.log((sums[1] + 0.5) / depths[1]) - np.log((sums[0] + 0.5) / depths[0])
    weight = sums[0] * seen
    level = (weight * ratio).sum(axis=(0, 1)) / np.maximum(weight.sum(axis=(0, 1)), 1.0)
    return {
        "rate": np.abs(ratio[seen]).mean(),
        "between": np.sqrt((weight * (ratio - level) ** 2).sum() / weight.sum()),
        "MAE": np.abs(after - wanted).mean(),
        "RMSE": np.sqrt(((after - wanted) ** 2).mean()),
        "total": after.sum() / wanted.sum(),
    }
