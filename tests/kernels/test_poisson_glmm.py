from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import gammaln

from stdist.kernels.poisson_glmm import VarianceComponents, bvr_cvr, fit_poisson_glmm
from stdist.kernels.poisson_laplace import laplace

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
FIXTURES = SHARED / "fixtures" / "crescendo"
needs_fixtures = pytest.mark.skipif(not FIXTURES.is_dir(), reason=f"no fixtures in {FIXTURES}")

FloatArray = NDArray[np.float64]
FIELDS = ("celltype", "batch", "interaction", "intercept", "log_likelihood")


def read_csv(name: str) -> pd.DataFrame:
    with gzip.open(FIXTURES / name) as file:
        return pd.read_csv(file)


def group_table(frame: pd.DataFrame) -> tuple[FloatArray, FloatArray]:
    counts = frame.pivot(index="celltype", columns="batch", values="y").to_numpy(float)
    exposure = frame.pivot(index="celltype", columns="batch", values="e").to_numpy(float)
    return counts[:, :, None], exposure


def simulated_groups(
    seed: int, n_types: int, n_batches: int, n_genes: int, rate: float = 1e-3, exposure: float = 1e5
) -> tuple[FloatArray, FloatArray]:
    """Counts of a random mixed model; a tenth of the groups has no cells."""
    random = np.random.default_rng(seed)
    sizes = exposure * random.lognormal(0, 1, (n_types, n_batches))
    sizes[random.random(sizes.shape) < 0.1] = 0
    sizes[0], sizes[:, 0] = exposure, exposure
    deviations = random.choice([0.0, 0.05, 0.3, 1.0], (3, n_genes))
    log_rate = np.log(rate) + random.normal(0, 1, n_genes)
    log_rate = log_rate + deviations[0] * random.normal(size=(n_types, 1, n_genes))
    log_rate = log_rate + deviations[1] * random.normal(size=(1, n_batches, n_genes))
    log_rate = log_rate + deviations[2] * random.normal(size=(n_types, n_batches, n_genes))
    return random.poisson(sizes[:, :, None] * np.exp(log_rate)).astype(float), sizes


def dense_log_likelihood(theta: FloatArray, counts: FloatArray, exposure: FloatArray) -> float:
    """The Laplace likelihood as the textbook writes it: explicit design, full Hessian."""
    types, batches = np.nonzero(exposure)
    n_types, n_batches = exposure.shape
    design = np.zeros((types.size, n_types + n_batches + types.size))
    rows = np.arange(types.size)
    design[rows, types] = theta[0]
    design[rows, n_types + batches] = theta[1]
    design[rows, n_types + n_batches + rows] = theta[2]
    y, e = counts[types, batches], exposure[types, batches]

    def joint(u: FloatArray) -> float:
        eta = np.log(e) + theta[3] + design @ u
        with np.errstate(over="ignore"):
            return float((np.exp(eta) - y * eta + gammaln(y + 1)).sum() + u @ u / 2)

    u = np.zeros(design.shape[1])
    for _ in range(500):
        mu = np.exp(np.log(e) + theta[3] + design @ u)
        hessian = design.T @ (mu[:, None] * design) + np.eye(u.size)
        step = np.linalg.solve(hessian, design.T @ (mu - y) + u)
        size = 1.0
        while joint(u - size * step) > joint(u) + 1e-9 and size > 1e-9:
            size /= 2
        u = u - size * step
        if np.abs(step).max() < 1e-11:
            break
    mu = np.exp(np.log(e) + theta[3] + design @ u)
    hessian = design.T @ (mu[:, None] * design) + np.eye(u.size)
    return -joint(u) - float(np.linalg.slogdet(hessian)[1]) / 2


def optimum(fit: VarianceComponents, gene: int) -> FloatArray:
    variances = [fit.celltype[gene], fit.batch[gene], fit.interaction[gene]]
    return np.array([*np.sqrt(variances), fit.intercept[gene]])


@needs_fixtures
def test_agrees_with_glmer_on_every_fixture() -> None:
    expected = read_csv("glmer_prepost_a.csv.gz")
    groups = read_csv("glmer_prepost_a_groups.csv.gz").groupby(["case", "gene", "which"])
    assert len(expected) == 28
    for row in expected.itertuples():
        fit = fit_poisson_glmm(*group_table(groups.get_group((row.case, row.gene, row.which))))
        variances = [fit.celltype[0], fit.batch[0], fit.interaction[0]]
        reference = [row.var_celltype, row.var_batch, row.var_inter]
        label = f"{row.case} {row.gene} {row.which}"
        np.testing.assert_allclose(variances, reference, rtol=5e-3, atol=1e-6, err_msg=label)
        np.testing.assert_allclose(fit.intercept[0], row.b0, atol=5e-3, err_msg=label)
        assert fit.log_likelihood[0] >= row.loglik - 1e-8, label
        assert fit.log_likelihood[0] <= row.loglik + 2e-4, label
        assert fit.converged[0], label


@needs_fixtures
@pytest.mark.parametrize("level", ["aggregated", "cells"])
def test_group_totals_give_the_fit_of_single_cells(level: str) -> None:
    expected = read_csv("glmer_cells_vs_aggregated.csv.gz").query("level == @level")
    groups = read_csv("glmer_cells_vs_aggregated_groups.csv.gz").groupby("gene")
    assert len(expected) == 6
    for _, row in expected.iterrows():
        fit = fit_poisson_glmm(*group_table(groups.get_group(row.gene)))
        variances = [fit.celltype[0], fit.batch[0], fit.interaction[0]]
        reference = row[["celltype", "batch", "celltype:batch"]].to_numpy(float)
        np.testing.assert_allclose(variances, reference, rtol=5e-3, atol=1e-6, err_msg=row.gene)


@needs_fixtures
@pytest.mark.parametrize("dataset", ["starmap_visp_2rep", "pbmc_ifn_kang"])
def test_reproduces_the_baselines_of_real_data(dataset: str) -> None:
    anndata = pytest.importorskip("anndata")
    cells = anndata.read_h5ad(SHARED / "data" / f"{dataset}.h5ad")
    with np.load(FIXTURES / "clusters_open.npz") as clusters:
        np.testing.assert_array_equal(
            cells.obs_names.to_numpy().astype("S"), clusters[f"{dataset}/cells"]
        )
        labels = clusters[f"{dataset}/labels"].astype(int)
        genes = clusters[f"{dataset}/genes"].astype(str)[::3][:40]
    batches = cells.obs["batch"].cat.codes.to_numpy()
    counts = np.zeros((labels.max() + 1, batches.max() + 1, genes.size))
    exposure = np.zeros(counts.shape[:2])
    np.add.at(counts, (labels, batches), cells[:, genes].X.toarray())
    np.add.at(exposure, (labels, batches), np.asarray(cells.X.sum(axis=1)).ravel())
    fit = fit_poisson_glmm(counts, exposure)

    table = read_csv("baselines_open.csv.gz").query("dataset == @dataset")
    expected = table.drop_duplicates("gene").set_index("gene").loc[genes]
    assert fit.converged.all()
    np.testing.assert_allclose(fit.batch_related, expected["B_pre"], rtol=1e-3, atol=2e-6)
    np.testing.assert_allclose(fit.celltype, expected["C_pre"], rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize(("n_types", "n_batches", "rate"), [(5, 3, 1e-3), (3, 6, 1e-4), (2, 2, 1)])
def test_optimum_of_the_textbook_likelihood(n_types: int, n_batches: int, rate: float) -> None:
    counts, exposure = simulated_groups(1, n_types, n_batches, n_genes=8, rate=rate)
    fit = fit_poisson_glmm(counts, exposure)
    assert fit.converged.all()
    for gene in range(counts.shape[2]):
        theta = optimum(fit, gene)
        value = dense_log_likelihood(theta, counts[:, :, gene], exposure)
        assert fit.log_likelihood[gene] == pytest.approx(value, abs=1e-8)
        simplex = theta + np.vstack([np.zeros(4), 0.2 * np.eye(4)])
        better = minimize(
            lambda point, gene=gene: -dense_log_likelihood(point, counts[:, :, gene], exposure),
            theta,
            method="Nelder-Mead",
            options={"xatol": 1e-5, "fatol": 1e-9, "maxfev": 250, "initial_simplex": simplex},
        )
        assert -better.fun <= value + 1e-6


def test_gradient_is_the_slope_of_the_likelihood() -> None:
    counts, exposure = simulated_groups(2, 6, 4, n_genes=1)
    y = counts[:, :, 0]
    present = exposure > 0
    reference = np.where(present, np.maximum(y, 1), 0.0)
    offset = np.log(np.where(present, exposure, 1)) - np.log(np.where(present, reference, 1))
    mode = (np.zeros(6), np.zeros(4), np.zeros((6, 4)))
    for theta in ([0.7, 0.4, 0.2, -7.0], [1.5, 0.0, 0.8, -6.0], [-0.3, 0.6, 1e-3, -8.0]):
        point = np.array(theta)
        _, gradient, _ = laplace(point, y, offset, reference, mode)
        slope = [
            laplace(point + step, y, offset, reference, mode)[0]
            - laplace(point - step, y, offset, reference, mode)[0]
            for step in 1e-6 * np.eye(4)
        ]
        np.testing.assert_allclose(gradient, np.array(slope) / 2e-6, rtol=1e-6, atol=1e-5)


def test_order_of_types_batches_and_genes_does_not_matter() -> None:
    counts, exposure = simulated_groups(3, 7, 4, n_genes=12)
    random = np.random.default_rng(0)
    types, batches, genes = (random.permutation(size) for size in counts.shape)
    fit = fit_poisson_glmm(counts, exposure)
    shuffled = fit_poisson_glmm(
        counts[np.ix_(types, batches, genes)], exposure[np.ix_(types, batches)]
    )
    swapped = fit_poisson_glmm(counts.transpose(1, 0, 2), exposure.T)
    for name in FIELDS:
        expected = getattr(fit, name)
        np.testing.assert_allclose(getattr(shuffled, name), expected[genes], rtol=1e-4, atol=1e-8)
        other = {"celltype": "batch", "batch": "celltype"}.get(name, name)
        np.testing.assert_allclose(getattr(swapped, other), expected, rtol=1e-4, atol=1e-8)


def test_a_gene_does_not_feel_the_others() -> None:
    counts, exposure = simulated_groups(4, 6, 3, n_genes=6)
    together = fit_poisson_glmm(counts, exposure)
    for gene in range(6):
        alone = fit_poisson_glmm(counts[:, :, gene : gene + 1], exposure)
        for name in (*FIELDS, "converged"):
            assert getattr(alone, name)[0] == getattr(together, name)[gene]


def test_exposure_units_shift_the_intercept_only() -> None:
    counts, exposure = simulated_groups(5, 6, 3, n_genes=10)
    fit, scaled = fit_poisson_glmm(counts, exposure), fit_poisson_glmm(counts, 250 * exposure)
    np.testing.assert_allclose(scaled.intercept, fit.intercept - np.log(250), rtol=1e-6)
    np.testing.assert_allclose(scaled.log_likelihood, fit.log_likelihood, rtol=1e-10)
    for name in FIELDS[:3]:
        np.testing.assert_allclose(getattr(scaled, name), getattr(fit, name), rtol=1e-4, atol=1e-8)


def test_types_and_batches_without_cells_change_nothing() -> None:
    counts, exposure = simulated_groups(6, 5, 3, n_genes=6)
    padded_counts = np.insert(np.insert(counts, 2, 0, axis=0), 1, 0, axis=1)
    padded_exposure = np.insert(np.insert(exposure, 2, 0, axis=0), 1, 0, axis=1)
    fit, padded = (
        fit_poisson_glmm(counts, exposure),
        fit_poisson_glmm(padded_counts, padded_exposure),
    )
    for name in FIELDS:
        np.testing.assert_allclose(getattr(padded, name), getattr(fit, name), rtol=1e-5, atol=1e-8)


def test_atlas_sized_groups_converge() -> None:
    counts, exposure = simulated_groups(7, 20, 16, n_genes=20, rate=1e-2, exposure=1e9)
    assert counts.max() > 1e7
    fit = fit_poisson_glmm(counts, exposure)
    assert fit.converged.all()


def test_gene_without_counts_is_flagged() -> None:
    counts, exposure = simulated_groups(8, 5, 3, n_genes=3)
    counts[:, :, 1] = 0
    fit = fit_poisson_glmm(counts, exposure)
    assert fit.converged.tolist() == [True, False, True]
    for name in FIELDS:
        assert np.isnan(getattr(fit, name)).tolist() == [False, True, False]
    ratios = bvr_cvr(fit, fit)
    assert not ratios.in_zone[1]
    assert np.isnan(ratios.bvr[1])


def test_ratio_rules() -> None:
    def components(celltype: list[float], batch: list[float]) -> VarianceComponents:
        zeros = np.zeros(len(batch))
        halves = np.array(batch) / 2
        return VarianceComponents(
            np.array(celltype), halves, halves, zeros, zeros, zeros.astype(bool)
        )

    pre = components([1.0, 1.0, 1.0, 1.0, 0.0005, 0.0], [0.2, 0.2, 0.2, 0.001, 0.2, 0.2])
    post = components([0.5, 0.4, 2.0, 1.0, 0.0004, 0.0], [0.1, 0.1, 0.2, 0.000, 0.1, 0.1])
    ratios = bvr_cvr(pre, post)
    np.testing.assert_allclose(ratios.bvr, [0.5, 0.5, 1.0, np.nan, 0.5, 0.5])
    np.testing.assert_allclose(ratios.cvr, [0.5, 0.4, 2.0, 1.0, np.nan, np.nan])
    assert ratios.no_batch_variance.tolist() == [False, False, False, True, False, False]
    assert ratios.no_celltype_variance.tolist() == [False] * 4 + [True] * 2
    assert ratios.in_zone.tolist() == [True, False, False, False, True, True]
    with pytest.raises(ValueError, match="6 genes and post 1"):
        bvr_cvr(pre, components([1.0], [1.0]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y, e: (y[:, :, 0], e), "counts must be"),
        (lambda y, e: (y, e[:-1]), "counts must be"),
        (lambda y, e: (-y, e), "counts must be finite"),
        (lambda y, e: (y, np.where(e == e[0, 0], np.nan, e)), "exposure must be finite"),
        (lambda y, e: (y + 1, np.pad(e[1:], ((1, 0), (0, 0)))), "exposure is 0"),
        (lambda y, e: (y[:1], e[:1]), "at least two"),
        (lambda y, e: (y[:, :1], e[:, :1]), "at least two"),
        (lambda y, e: (y[:3] * np.eye(3)[:, :, None], e[:3] * np.eye(3)), "shared between"),
    ],
)
def test_bad_groups_are_refused(change, message: str) -> None:  # type: ignore[no-untyped-def]
    counts, exposure = simulated_groups(9, 4, 3, n_genes=2)
    with pytest.raises(ValueError, match=message):
        fit_poisson_glmm(*change(counts, exposure))
