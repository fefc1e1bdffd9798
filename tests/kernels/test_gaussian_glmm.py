from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import check_grad

from stdist.kernels.gaussian_glmm import fit_gaussian_glmm, restricted_deviance

CASES = [
    (5, 3, 8, (1.0, 0.5, 0.3)),
    (3, 6, 6, (0.5, 0.0, 0.2)),
    (4, 2, 9, (0.01, 1.0, 0.0)),
    (6, 4, 4, (5.0, 0.1, 0.5)),
]


def simulated(seed, n_types, n_batches, most, deviations):
    """Cells of a random mixed model; groups are of any size, some empty."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, most, (n_types, n_batches))
    cells[0], cells[:, 0] = most, most
    kind, batch = (place.ravel().repeat(cells.ravel()) for place in np.indices(cells.shape))
    y = 2 + rng.normal(size=len(kind))
    y += deviations[0] * rng.normal(size=n_types)[kind]
    y += deviations[1] * rng.normal(size=n_batches)[batch]
    y += deviations[2] * rng.normal(size=cells.shape)[kind, batch]
    sums, squares = np.zeros((*cells.shape, 1)), np.zeros((*cells.shape, 1))
    np.add.at(sums[:, :, 0], (kind, batch), y)
    np.add.at(squares[:, :, 0], (kind, batch), y * y)
    return y, kind, batch, (sums, squares, cells)


def dense_log_likelihood(deviations, y, kind, batch):
    """The restricted likelihood as the textbook writes it: the covariance of all cells."""
    group = kind * (batch.max() + 1) + batch
    covariance = deviations[3] ** 2 * np.eye(len(y))
    for sd, code in zip(deviations[:3], (kind, batch, group), strict=True):
        covariance += sd**2 * (code[:, None] == code[None])
    inverse, ones = np.linalg.inv(covariance), np.ones(len(y))
    information = ones @ inverse @ ones
    residual = y - (ones @ inverse @ y) / information
    log_det = np.linalg.slogdet(covariance)[1] + np.log(information)
    quadratic = residual @ inverse @ residual
    return -0.5 * ((len(y) - 1) * np.log(2 * np.pi) + log_det + quadratic)


def deviations_of(fit):
    variances = (fit.celltype, fit.batch, fit.interaction, fit.residual)
    return np.sqrt([variance[0] for variance in variances])


@pytest.mark.parametrize("case", CASES)
def test_optimum_of_the_textbook_likelihood(case):
    y, kind, batch, groups = simulated(1, *case)
    fit = fit_gaussian_glmm(*groups)
    assert fit.converged[0]
    found = deviations_of(fit)
    value = dense_log_likelihood(found, y, kind, batch)
    assert fit.log_likelihood[0] == pytest.approx(value, abs=1e-9)
    rng = np.random.default_rng(0)
    nearby = found * rng.lognormal(0, 0.03, (20, 4)) + rng.normal(0, 0.003, (20, 4))
    anywhere = 10 ** rng.uniform(-2, 0.7, (20, 4))
    for other in (*nearby, *anywhere):
        assert dense_log_likelihood(other, y, kind, batch) <= value + 1e-9


def test_likelihood_is_that_of_statsmodels():
    mixed = pytest.importorskip("statsmodels.regression.mixed_linear_model")
    y, kind, batch, groups = simulated(7, 6, 4, 9, (1.0, 0.5, 0.4))
    fit = fit_gaussian_glmm(*groups)
    frame = pd.DataFrame({"y": y, "kind": kind, "batch": batch, "both": kind * 4 + batch, "all": 1})
    parts = {name: f"0 + C({name})" for name in ("kind", "batch", "both")}
    variances = {"kind": fit.celltype, "batch": fit.batch, "both": fit.interaction}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = mixed.MixedLM.from_formula("y ~ 1", frame, groups="all", vc_formula=parts)
        found = np.array([variances[name][0] for name in model.exog_vc.names])
        start = mixed.MixedLMParams.from_components(
            fe_params=fit.intercept[:1], vcomp=found / fit.residual[0]
        )
        result = model.fit(reml=True, start_params=start, method="powell")
    assert fit.log_likelihood[0] == pytest.approx(result.llf, abs=1e-8)
    np.testing.assert_allclose(result.vcomp, found, rtol=1e-4)
    np.testing.assert_allclose(result.scale, fit.residual[0], rtol=1e-6)


@pytest.mark.parametrize("theta", [[0.7, 0.4, 0.2], [1.5, 1e-3, 0.8], [0.2, 2.0, 1e-2]])
def test_gradient_is_the_slope(theta):
    sums, _, cells = simulated(3, 5, 3, 20, (1.0, 0.5, 0.3))[3]
    mean = np.divide(sums[:, :, 0], cells, out=np.zeros(cells.shape), where=cells > 0)
    groups = mean, cells.astype(float), 150.0, float(cells.sum())
    error = check_grad(
        lambda point: restricted_deviance(point, *groups)[0],
        lambda point: restricted_deviance(point, *groups)[1],
        np.array(theta),
    )
    assert error < 1e-4 * np.abs(restricted_deviance(np.array(theta), *groups)[1]).max()


def test_shift_scale_and_swapped_factors():
    sums, squares, cells = simulated(4, 6, 3, 25, (1.0, 0.5, 0.3))[3]
    fit = fit_gaussian_glmm(sums, squares, cells)
    n = cells[:, :, None]
    moved = fit_gaussian_glmm(3 * (sums + 5 * n), 9 * (squares + 10 * sums + 25 * n), cells)
    swapped = fit_gaussian_glmm(sums.transpose(1, 0, 2), squares.transpose(1, 0, 2), cells.T)
    for name in ("celltype", "batch", "interaction", "residual"):
        np.testing.assert_allclose(getattr(moved, name), 9 * getattr(fit, name), rtol=1e-4)
        other = {"celltype": "batch", "batch": "celltype"}.get(name, name)
        np.testing.assert_allclose(getattr(swapped, other), getattr(fit, name), rtol=1e-4)
    np.testing.assert_allclose(moved.intercept, 3 * (fit.intercept + 5), rtol=1e-6)


def test_a_constant_gene_has_no_variances():
    cells = np.full((3, 2), 4)
    ones = np.full((3, 2, 1), 4.0)
    fit = fit_gaussian_glmm(ones, ones, cells)
    assert np.isnan(fit.batch[0])
    assert not fit.converged[0]


@pytest.mark.parametrize("cells", [[[5, 5]], [[5, 0], [0, 5]], [[1, 1], [1, 1]]])
def test_unusable_groups_are_refused(cells):
    sums = np.ones((*np.shape(cells), 1))
    with pytest.raises(ValueError, match="at least two cell types"):
        fit_gaussian_glmm(sums, sums, cells)
