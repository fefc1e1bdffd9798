"""Time of matching per (cell x gene) on one core: python tests/benchmarks/bench_poisson_match.py.

Counts like a 500-gene MERSCOPE panel: log-normal depth with median 60, log-normal gene rates.
The released R package took 707 ns per (cell x gene) on the recorded data
(``fixtures/crescendo``); ratios to it are across machines.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from stdist.kernels.keyed_random import stream_key
from stdist.kernels.poisson_match import match_labels, match_soft

N_CELLS, N_GENES, N_LABELS, N_REPEATS = 8192, 500, 20, 9
RELEASED_PACKAGE = 707.0
KEYS = np.array([stream_key(0, "match", f"gene {g}") for g in range(N_GENES)], np.uint64)


def factor_for(per_cell: np.ndarray, density: float) -> float:
    """Factor of all means that gives the wanted share of non-zero counts."""
    low, high = 1e-6, 1e6
    for _ in range(40):
        middle = np.sqrt(low * high)
        too_low = -np.expm1(-middle * per_cell).mean() < density
        low, high = (middle, high) if too_low else (low, middle)
    return low


def report(name: str, run: Callable[[], np.ndarray], counts: np.ndarray) -> None:
    run()
    times = []
    for _ in range(N_REPEATS):
        start = time.process_time()
        result = run()
        times.append((time.process_time() - start) / counts.size * 1e9)
    median = float(np.median(times))
    print(
        f"{name:<28} density {np.mean(counts > 0):.3f} mean {counts.mean():.3f} -> "
        f"{result.mean():.3f}  changed {np.mean(result != counts):.3f}  "
        f"median {median:6.2f} ns  min {min(times):6.2f} ns  "
        f"ratio {RELEASED_PACKAGE / median:4.0f}"
    )


def bench_labels(density: float, n_batches: int = 8) -> None:
    rng = np.random.default_rng(0)
    depth = rng.lognormal(np.log(60), 0.5, N_CELLS)
    batch = rng.integers(0, n_batches, N_CELLS)
    labels = rng.integers(0, N_LABELS, N_CELLS)
    log_target = rng.normal(0, 1.2, N_GENES) + rng.normal(0, 0.7, (N_LABELS, N_GENES))
    source = np.exp(log_target + rng.normal(0, 0.4, (n_batches, N_LABELS, N_GENES)))
    source *= factor_for(depth[:, None] * source[batch, labels], density)
    counts = rng.poisson(depth[:, None] * source[batch, labels]).astype(np.uint16)
    target = source.mean(0)
    report(
        f"labels L={N_LABELS} B={n_batches}",
        lambda: match_labels(counts, labels, batch, depth, source, target, KEYS, 0),
        counts,
    )


def bench_soft(density: float, k: int, n_batches: int = 8) -> None:
    rng = np.random.default_rng(k)
    depth = rng.lognormal(np.log(60), 0.5, N_CELLS)
    batch = rng.integers(0, n_batches, N_CELLS)
    weights = np.exp(rng.normal(0, 2, (N_CELLS, k)))
    weights = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    gene = rng.normal(0, 1.2, N_GENES)
    target = rng.normal(0, 0.7, (k, N_GENES))
    source = target + rng.normal(0, 0.4, (n_batches, k, N_GENES))
    per_cell = np.empty((N_CELLS, N_GENES))
    for b in range(n_batches):
        rows = batch == b
        per_cell[rows] = depth[rows, None] * np.exp(gene + weights[rows] @ source[b])
    factor = factor_for(per_cell, density)
    counts = rng.poisson(factor * per_cell).astype(np.uint16)
    intercept = gene + np.log(factor)
    intercepts = np.tile(intercept, (n_batches, 1))
    report(
        f"soft K={k} B={n_batches}",
        lambda: match_soft(
            counts, weights, batch, depth, intercepts, source, intercept, target, KEYS, 0
        ),
        counts,
    )


if __name__ == "__main__":
    for share in (0.05, 0.10):
        bench_labels(share)
        for clusters in (10, 30, 100):
            bench_soft(share, clusters)
    print("as the released package was measured:")
    bench_labels(0.31, 4)
    bench_soft(0.31, 10, 4)
    bench_soft(0.31, 100, 16)
