from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from stdist.kernels.spatial_autocorrelation import moran_sums, morans_i
from stdist.kernels.spatial_neighbors import nearest_within


def dense_moran(x, weights):
    """Moran's I, and its z under normality, as Cliff and Ord write them."""
    n, total, centred = len(x), weights.sum(), x - x.mean()
    index = n / total * (centred @ weights @ centred) / (centred @ centred)
    s1 = ((weights + weights.T) ** 2).sum() / 2
    s2 = ((weights.sum(axis=1) + weights.sum(axis=0)) ** 2).sum()
    expected = -1 / (n - 1)
    variance = (n * n * s1 - n * s2 + 3 * total**2) / ((n - 1) * (n + 1) * total**2)
    return index, (index - expected) / np.sqrt(variance - expected**2)


@pytest.mark.parametrize("radius", [0.05, 0.2])
def test_moran_is_that_of_dense_weights(radius):
    rng = np.random.default_rng(0)
    n = 250
    points = rng.random((n, 2))
    x = rng.poisson(0.8, (n, 4)) + np.outer(points[:, 0] > 0.5, [0, 1, 3, 0])
    x[:, 3] = 2
    graph = nearest_within(points, radius, 5)
    rows = sparse.csr_matrix(x.astype(float))
    parts = rows.indptr.astype(np.int64), rows.indices, rows.data
    left = points[:, 0] < 0.4
    halves = [moran_sums(own, graph, parts, 4) for own in (left, ~left)]
    found = morans_i({name: halves[0][name] + halves[1][name] for name in halves[0]})
    weights = np.zeros((n, n))
    for i in range(n):
        near = graph[1][graph[0][i] : graph[0][i + 1]]
        weights[i, near] = 1 / max(1, len(near))
    for gene in range(3):
        index, z = dense_moran(x[:, gene].astype(float), weights)
        np.testing.assert_allclose(found["morans_i"][gene], index, rtol=1e-10)
        np.testing.assert_allclose(found["z"][gene], z, rtol=1e-9)
    assert np.isnan(found["morans_i"][3])
    assert found["p_value"][2] < 1e-6 < found["p_value"][0]
