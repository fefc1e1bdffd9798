"""CPU time of the penalised Poisson regression per gene, one thread.

Run ``python tests/benchmarks/bench_poisson_ridge.py [--genes 20] [--repeats 3]``. The released R
program needs about 17.5 microseconds per fitted cell and gene at 10 clusters and 4 batches.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
from threadpoolctl import threadpool_limits

from stdist.kernels.poisson_ridge import Penalty, RidgeFit, fit, fit_strata

CELLS = [(2_000, 30, 2), (5_000, 100, 10), (20_000, 30, 8), (20_000, 10, 4), (160_000, 100, 16)]
STRATA = [(20, 8), (100, 16)]


def simulate_rates(rng: np.random.Generator, shape: tuple[int, int], n_genes: int) -> np.ndarray:
    """Rates (n_batches, n_clusters, n_genes), typical mean counts 0.05 to 50 at depth 2000."""
    n_batches, n_clusters = shape
    gene = rng.uniform(np.log(2.5e-5), np.log(2.5e-2), n_genes)
    cluster = rng.normal(0, 1, (1, n_clusters, n_genes))
    return np.exp(gene + cluster + rng.normal(0, 0.4, (n_batches, n_clusters, n_genes)))


def cells_problem(n_cells: int, n_clusters: int, n_batches: int, n_genes: int) -> Callable:
    """Prepare the fit of soft cells."""
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.full(n_clusters, 3 / n_clusters), n_cells)
    batch = rng.integers(0, n_batches, n_cells)
    depth = rng.gamma(4, 500, n_cells)
    log_rates = np.log(simulate_rates(rng, (n_batches, n_clusters), n_genes))
    counts = np.empty((n_cells, n_genes))
    for b in range(n_batches):
        rows = batch == b
        counts[rows] = rng.poisson(depth[rows, None] * np.exp(weights[rows] @ log_rates[b]))
    penalty = Penalty.random_effects(n_clusters, n_batches)
    return lambda: fit(counts, weights, batch, depth, penalty)


def strata_problem(n_labels: int, n_batches: int, n_genes: int) -> Callable:
    """Prepare the fit of labelled strata of about 500 cells."""
    rng = np.random.default_rng(0)
    shape = (n_batches, n_labels)
    depth = rng.gamma(2, 500_000, shape)
    counts = rng.poisson(depth[:, :, None] * simulate_rates(rng, shape, n_genes))
    penalty = Penalty.random_effects(n_labels, n_batches)
    return lambda: fit_strata(counts, depth, penalty)


def measure(solve: Callable[[], RidgeFit], n_genes: int, repeats: int) -> tuple[float, RidgeFit]:
    """Return the median CPU seconds per gene and the last fit."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        result = solve()
        seconds.append((time.process_time() - start) / n_genes)
    return statistics.median(seconds), result


def main() -> None:
    """Print one line per configuration."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--genes", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    genes, repeats = options.genes, options.repeats
    print("rows       K    B   ms/gene  ns/(row gene)  steps  converged")

    def report(rows: int, shape: tuple[int, int], solve: Callable[[], RidgeFit], n: int) -> None:
        seconds, result = measure(solve, n, repeats)
        cost, steps = 1e9 * seconds / rows, np.median(result.iterations)
        print(
            f"{rows:6d}  {shape[0]:4d} {shape[1]:4d}  {1e3 * seconds:8.3f}  {cost:13.0f}"
            f"  {steps:5.0f}  {result.converged.mean():9.0%}"
        )

    with threadpool_limits(1):
        for n_cells, n_clusters, n_batches in CELLS:
            solve = cells_problem(n_cells, n_clusters, n_batches, genes)
            report(n_cells, (n_clusters, n_batches), solve, genes)
        for n_labels, n_batches in STRATA:
            solve = strata_problem(n_labels, n_batches, 25 * genes)
            report(n_labels * n_batches, (n_labels, n_batches), solve, 25 * genes)


if __name__ == "__main__":
    main()
