"""Milliseconds per gene of the Poisson mixed model; run this file with Python."""

from __future__ import annotations

import time

import numpy as np

from stdist.kernels.poisson_glmm import fit_poisson_glmm


def main(n_genes: int = 100) -> None:
    """Print median and worst time per gene for the sizes of real studies."""
    print("types batches  median ms  worst ms  unconverged")
    for n_types, n_batches in ((14, 2), (12, 10), (20, 16)):
        random = np.random.default_rng(0)
        exposure = 1e6 * random.lognormal(0, 1, (n_types, n_batches))
        log_rate = random.normal(np.log(1e-3), 1, n_genes)
        for shape, deviation in (
            ((n_types, 1, n_genes), 1.0),
            ((1, n_batches, n_genes), 0.3),
            ((n_types, n_batches, n_genes), 0.15),
        ):
            log_rate = log_rate + deviation * random.normal(size=shape)
        counts = random.poisson(exposure[:, :, None] * np.exp(log_rate))
        fit_poisson_glmm(counts[:, :, :1], exposure)
        seconds, unconverged = [], 0
        for gene in range(n_genes):
            start = time.perf_counter()
            fit = fit_poisson_glmm(counts[:, :, gene : gene + 1], exposure)
            seconds.append(time.perf_counter() - start)
            unconverged += int(not fit.converged[0])
        median, worst = 1e3 * np.median(seconds), 1e3 * max(seconds)
        print(f"{n_types:5d} {n_batches:7d} {median:10.2f} {worst:9.2f} {unconverged:12d}")


if __name__ == "__main__":
    main()
