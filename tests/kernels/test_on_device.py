"""Kernels on arrays of a device: the numbers of the host, and nothing that mixes the two."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from stdist.graph.device import GPU
from stdist.kernels import (
    correlation_device,
    correlation_pairs,
    moments,
    poisson_match_cuda,
    poisson_match_numba,
    spatial_autocorrelation,
)
from stdist.kernels import poisson_newton as batched
from stdist.kernels.array_module import array_module
from stdist.kernels.keyed_random import stream_key
from stdist.kernels.poisson_match import match_labels, match_soft, rates
from stdist.kernels.poisson_passes import pass_moments
from stdist.kernels.poisson_ridge import Penalty, fit, fit_strata
from stdist.kernels.power_sums import power_sums
from stdist.kernels.spatial_neighbors import nearest_of_other_types, nearest_within
from tests import fake_cupy
from tests.fake_cupy import assert_agree


def test_the_fake_refuses_what_a_device_refuses(monkeypatch):
    cupy = fake_cupy.install(monkeypatch)
    host = np.arange(3.0)
    values = cupy.asarray(host)
    assert array_module(values) is cupy
    assert array_module(host) is np
    for mix in (
        lambda: np.asarray(values),
        lambda: values + host,
        lambda: host * values,
        lambda: values[host > 1],
        lambda: values.__setitem__(0, host[:1]),
        lambda: np.concatenate([values, host]),
        lambda: cupy.where(values > 1, host, 0.0),
        lambda: np.divide(1.0, values, where=values > 0),
        lambda: np.add.reduce(values),
        lambda: np.median(values),
        lambda: values @ host,
        lambda: sparse.csr_matrix(values[None]),
    ):
        with pytest.raises((TypeError, ValueError)):
            mix()
    assert_agree(cupy, (np.float64(2) * values + 1).get(), 2 * host + 1)


def test_moments_and_sums(cuda):
    rng = np.random.default_rng(0)
    values = rng.poisson(1.0, (1024, 30)).astype(np.uint16)
    codes = rng.integers(-1, 7, 1024)
    device = cuda.asarray(values)
    for covariance in (False, True):
        left, right = (
            [moments.column_moments(v[rows], covariance=covariance) for v in (device, values)]
            for rows in (slice(500), slice(500, None))
        )
        found, expected = (moments.merge_moments(*pair) for pair in zip(left, right, strict=True))
        for name in ("mean", "deviations"):
            assert_agree(cuda, found[name].get(), expected[name])
    for sums in (moments.row_sums, moments.column_sums):
        assert_agree(cuda, sums(device).get(), sums(values))
        assert_agree(cuda, sums(values), sums(sparse.csr_matrix(values)))
    for some in (values, values[:, 0]):
        found = moments.membership_sums(cuda.asarray(codes), 7, cuda.asarray(some))
        expected = [some[codes == k].sum(axis=0, dtype=np.float64) for k in range(7)]
        assert_agree(cuda, found.get(), expected)


def test_sums_of_powers(cuda):
    rng = np.random.default_rng(6)
    counts, labels = rng.poisson(2.0, (1024, 9)).astype(np.uint16), rng.integers(0, 4, 1024)
    labels[labels == 2] = 0  # a label without cells in this tile
    depth = rng.lognormal(3, 0.5, 1024)
    found = power_sums(cuda.asarray(labels), 5, cuda.asarray(counts), cuda.asarray(depth))
    for values, expected in zip(found, power_sums(labels, 5, counts, depth), strict=True):
        assert_agree(cuda, values.get(), expected)


def tissue(n=400, n_genes=6):
    """Points, types, depths and CSR rows of counts: some cells are empty, and so is a gene."""
    rng = np.random.default_rng(7)
    counts = rng.poisson(0.8, (n, n_genes)).astype(float)
    counts[::9], counts[:, 3] = 0, 0
    rows = sparse.csr_matrix(counts)
    entries = rows.indptr.astype(np.int64), rows.indices.astype(np.int32), rows.data
    return rng.random((n, 2)), rng.integers(0, 4, n).astype(np.int32), counts.sum(axis=1), entries


@pytest.mark.parametrize("radius", [1e-6, 0.06, 0.2])
def test_sums_for_morans_i(cuda, monkeypatch, radius):
    monkeypatch.setattr(spatial_autocorrelation, "_DENSE_ROWS", 64)
    points, _, _, entries = tissue()
    own, graph = points[:, 0] < 0.7, nearest_within(points, radius, 5)
    expected = spatial_autocorrelation.moran_sums(own, graph, entries, 6)
    moved = tuple(map(cuda.asarray, entries))
    found = spatial_autocorrelation.moran_sums(own, graph, moved, 6)
    assert isinstance(found["xwx"], cuda.ndarray)
    found = GPU.give(found)
    for name, values in expected.items():
        assert_agree(cuda, found[name], values)


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("radius", [1e-6, 0.2])
def test_sums_over_pairs_of_genes(cuda, pooled, radius):
    points, types, depth, entries = tissue()
    numbers = np.full((4, 4), -1, np.int32)
    numbers[[0, 0, 2, 1], [1, 2, 1, 3]] = np.arange(4)
    graph = nearest_of_other_types(points, types, radius, 6)
    x, z = np.array([4, 0, 3, 0, 4, 5]), np.array([1, 2, 0, 0, 4, 3])
    cells = np.flatnonzero(points[:, 0] < 0.7).astype(np.int32)
    moved = np.random.default_rng(8).permutation(len(types)).astype(np.int32)
    options = {"depth": depth, "target": 4.0} if pooled else {}
    sums = []
    for kernel, there in ((correlation_device, cuda.asarray), (correlation_pairs, np.asarray)):
        expression = tuple(map(there, entries))
        rows = kernel.neighbor_sums(cells, graph, types, numbers, expression, 6, **options)
        pairs = kernel.GenePairs.of(there(x), there(z), 6)
        total = kernel.cross_sums(rows, expression, pairs, 4)
        place = np.stack([rows.cell, moved[rows.cell]])
        drawn = kernel.permuted_product_sums(rows, expression, pairs, 4, place)
        sums.append(total | {"xz": total["xz"][:, pairs.order], "drawn": drawn[..., pairs.order]})
    found, expected = GPU.give(sums[0]), sums[1]
    assert (expected["cells"].sum() > 0) == (radius > 0.1)
    for name, values in found.items():
        assert_agree(cuda, values, expected[name].astype(values.dtype))


def soft_cells(seed, n=900, g=7, k=5, b=4):
    rng = np.random.default_rng(seed)
    weights, batch = rng.dirichlet(np.full(k, 0.3), n), rng.integers(0, b, n)
    depth = rng.lognormal(5, 0.5, n)
    eta = rng.normal(-4, 1, g) + weights @ rng.normal(0, 1, (k, g))
    eta += rng.normal(0, 0.4, (b, g))[batch]
    return rng.poisson(depth[:, None] * np.exp(eta)), weights, batch, depth


def test_moments_of_a_pass(cuda):
    _, weights, batch, depth = soft_cells(1)
    batch[batch == 2] = 0  # a batch without cells in this tile
    depth[:10] = 0.0
    coefficients = np.random.default_rng(2).normal(-1, 1, (5, 6, 7))
    coefficients[0, 0, 3] = -np.inf
    arguments = weights.astype(np.float32), batch, depth, coefficients
    found = pass_moments(*map(cuda.asarray, arguments)).get()
    assert_agree(cuda, found, pass_moments(*arguments))
    assert not found[:, :, 3].any()


def test_fits(cuda):
    counts, weights, batch, depth = soft_cells(3)
    counts[:, 4] = 0
    penalty, factors = Penalty.random_effects(5, 4), np.linspace(0.5, 2, 7)
    cells = batched.Cells(*map(cuda.asarray, (weights, batch, depth)), 4)
    strata = np.random.default_rng(0).poisson(20.0, (7, 4, 5)).astype(float)
    rates = np.full((4, 5), 10.0)
    summed = np.concatenate([strata.sum(axis=2)[..., None], strata], axis=2)
    ridges = batched.Ridges.of(penalty, cuda.asarray(factors))
    found = batched.fit_genes(cells, cells.count_sums(cuda.asarray(counts)), ridges, 1e-10, 100)
    same(cuda, found, fit(counts, weights, batch, depth, penalty, factors))
    labels = batched.Strata(cuda.asarray(rates))
    found = batched.fit_genes(labels, cuda.asarray(summed), ridges, 1e-10, 100)
    same(cuda, found, fit_strata(np.moveaxis(strata, 0, 2), rates, penalty, factors))


def same(cuda, found, expected):
    """Coefficients to 1e-9, whatever the device: a search goes on until rounding stops it."""
    assert (found.converged.get() == expected.converged).all()
    common = np.concatenate([expected.intercept[None], expected.cluster]).T
    local = np.concatenate([expected.batch[:, None], expected.interaction], axis=1)
    np.testing.assert_allclose(found.common.get(), common, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.local.get(), np.moveaxis(local, 2, 0), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", ["soft", "labels"])
def test_matching(cuda, monkeypatch, form):
    if cuda.ndarray is fake_cupy.ndarray:  # it has no compiler: the twin stands in
        for name in ("soft", "labelled"):
            monkeypatch.setattr(poisson_match_cuda, name, on_host(name))
    counts, weights, batch, depth = soft_cells(4)
    rng = np.random.default_rng(5)
    source = rng.normal(-4, 1, (4, 7)), rng.normal(0, 0.5, (4, 5, 7))
    target = source[0].mean(axis=0), source[1].mean(axis=0)
    keys = np.array([stream_key(0, "match", gene) for gene in range(7)], np.uint64)
    final = {"target_depth": np.full(len(depth), np.median(depth))}
    if form == "soft":
        match, arguments = match_soft, (counts, weights, batch, depth, *source, *target, keys)
    else:
        codes = weights.argmax(axis=1)
        match, arguments = match_labels, (counts, codes, batch, depth, rates(*source),
                                          rates(*target), keys)  # fmt: skip
    expected = match(*arguments, 77, **final)
    moved = {name: cuda.asarray(values) for name, values in final.items()}
    found = match(*map(cuda.asarray, arguments), 77, **moved)
    assert isinstance(found, cuda.ndarray)
    assert_agree(cuda, found.get(), expected)
    with pytest.raises(ValueError, match="negative"):
        match(-cuda.asarray(counts) - 1, *map(cuda.asarray, arguments[1:]), 77, **moved)


def on_host(name):
    kernel = getattr(poisson_match_numba, name)
    return lambda *arguments: kernel(*(getattr(a, "_host", a) for a in arguments))
