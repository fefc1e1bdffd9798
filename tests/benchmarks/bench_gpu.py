"""Kernels on one NVIDIA GPU, scaled to 7M x 500: python tests/benchmarks/bench_gpu.py.

Seconds, bytes read and written, and the share of the bandwidth that a copy on the device reaches.
*Resident* calls find their block on the device; *streamed* ones take CSR blocks from host memory
and give such back, as tasks do around reading and writing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from scipy import sparse

from stdist.graph.blocks import tiles
from stdist.graph.device import GPU
from stdist.kernels import correlation_device
from stdist.kernels import poisson_newton as batched
from stdist.kernels.harmony_cells import scale_rows
from stdist.kernels.harmony_rounds import begin
from stdist.kernels.harmony_settings import Strata, make_settings
from stdist.kernels.keyed_random import stream_key
from stdist.kernels.moments import membership_sums
from stdist.kernels.poisson_match import match_labels, match_soft, rates
from stdist.kernels.poisson_passes import pass_moments
from stdist.kernels.poisson_ridge import Penalty
from stdist.kernels.power_sums import power_sums
from stdist.kernels.spatial_autocorrelation import moran_sums
from stdist.kernels.spatial_neighbors import nearest_of_other_types, nearest_within
from stdist.metrics.neighborhoods import TypePairs
from stdist.metrics.pair_tests import CHUNK_ENTRIES, PANEL
from stdist.preprocess import kmeans, normalize, pca, qc, scale
from stdist.preprocess.harmony_rounds import correct_tile, round_tile, write_tile

N_CELLS, N_GENES, N_BATCHES, N_CLUSTERS, N_COMPONENTS = 7_000_000, 500, 16, 100, 50
BLOCK, SAMPLE, COPY, REPEATS = 65_536, 20_000, 2**31, 5
N_TYPES, RADIUS, PER_AREA, DRAWS = 16, 30.0, 0.0028, 8
N_DIMS = 20


class Clock:
    """Times calls on the device and prints them beside the bandwidth of a copy."""

    def __init__(self, cupy: Any) -> None:
        self.cupy = cupy
        source = cupy.zeros(COPY, np.uint8)
        self.bandwidth = 2 * COPY / self.seconds(source.copy)
        name = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
        print(f"{name}, CuPy {cupy.__version__}: a copy moves {self.bandwidth / 1e9:.0f} GB/s")
        print(f"{'stage':<34}{'seconds':>10}{'GB':>9}{'GB/s':>8}{'share of copy':>15}")

    def seconds(self, call: Callable[[], Any]) -> float:
        """Median time of a call, after one that compiles."""
        call()
        times = []
        for _ in range(REPEATS):
            self.cupy.cuda.Device().synchronize()
            start = time.perf_counter()
            call()
            self.cupy.cuda.Device().synchronize()
            times.append(time.perf_counter() - start)
        return float(np.median(times))

    def report(self, name: str, call: Callable[[], Any], n_bytes: int, scale: float = 1.0) -> None:
        """Print the time of a call and of its bytes, scaled to all cells."""
        seconds = scale * self.seconds(call)
        speed = scale * n_bytes / seconds
        print(
            f"{name:<34}{seconds:>10.3f}{scale * n_bytes / 1e9:>9.1f}{speed / 1e9:>8.0f}"
            f"{speed / self.bandwidth:>15.3f}",
            flush=True,
        )


def size(value: Any) -> int:
    """Bytes of the arrays in a result."""
    parts = value.values() if isinstance(value, dict) else [value]
    return sum(int(getattr(part, "nbytes", 0)) for part in parts)


def over_tiles(kernel: Callable[..., Any], inputs: dict[str, Any], **constants: Any) -> Any:
    """Call a kernel on the tiles of a block, as a task does; the last result."""
    for first, last in tiles(0, len(next(iter(inputs.values())))):
        tile = {name: block[first:last] for name, block in inputs.items()}
        result = kernel((first, last), **tile, **constants)
    return result


def preprocessing(clock: Clock, counts: Any, embedding: Any) -> None:
    """Time every stage of normalisation, scaling, PCA, k-means and QC."""
    xp, values = clock.cupy, counts.astype(np.float32)
    moments = {"mean": xp.zeros(N_GENES), "std": xp.ones(N_GENES)}
    loadings = {"mean": xp.zeros(N_GENES), "components": xp.ones((N_GENES, N_COMPONENTS))}
    centres = {"centres": embedding[:N_CLUSTERS].astype(np.float64)}
    stages: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
        "depth": (normalize.depth_table, {"counts": counts}),
        "normalize, log1p": (
            partial(normalize.normalize_tile, depth={"target": np.float64(60)}, log1p=True),
            {"counts": counts},
        ),
        "moments of genes": (scale.tile_moments, {"values": values}),
        "scale": (
            partial(scale.scale_tile, moments=moments, zero_center=True, max_value=10.0),
            {"values": values},
        ),
        "covariance": (pca.tile_covariance, {"values": values}),
        "projection": (partial(pca.project_tile, pca=loadings), {"values": values}),
        "k-means, one round": (partial(kmeans.assign_tile, centres=centres), {"values": embedding}),
        "k-means, labels": (partial(kmeans.label_tile, centres=centres), {"values": embedding}),
        "QC of genes": (qc.gene_sums, {"counts": counts}),
        "QC of cells": (qc.cell_metrics, {"counts": counts}),
    }
    for name, (kernel, inputs) in stages.items():
        result = size(over_tiles(kernel, inputs)) * (
            -(-BLOCK // 1024) if name in ("normalize, log1p", "scale", "projection") else 1
        )
        n_bytes = sum(map(size, inputs.values())) + result
        call = partial(over_tiles, kernel, inputs)
        clock.report(name, call, n_bytes, N_CELLS / BLOCK)


def harmony(clock: Clock, cells: dict[str, Any], embedding: Any) -> None:
    """Time the passes of an iteration of Harmony."""
    values = clock.cupy.ascontiguousarray(embedding[:, :N_DIMS])
    unit, none = scale_rows(values), np.zeros(N_BATCHES, int)
    strata = Strata(np.arange(N_BATCHES)[:, None], np.full(N_BATCHES, N_CELLS / N_BATCHES), none)
    chosen = make_settings("harmony2", strata, N_CLUSTERS)
    state = GPU.take(begin(unit[:N_CLUSTERS].get(), chosen))
    every = {"values": values, "strata": cells["batch"], "unit": unit}
    rows = {name: every[name] for name in ("strata", "unit")}
    clusters = BLOCK * N_CLUSTERS * 4
    for name, kernel, inputs, written in (
        ("Harmony, correction", correct_tile, every, size(unit)),
        ("Harmony, a round", round_tile, rows, 0),
        ("Harmony, the last round", round_tile, every, 0),
        ("Harmony, rows written", partial(write_tile, clusters=True), every, size(unit) + clusters),
    ):
        call = partial(over_tiles, kernel, inputs, harmony=state, settings=chosen)
        n_bytes = sum(map(size, inputs.values())) + written
        clock.report(name, call, n_bytes, N_CELLS / BLOCK)


def fits(clock: Clock, cells: dict[str, Any], counts: Any) -> None:
    """Time sums, a pass of the Newton fit to all cells, and the fits of all genes."""
    xp, rng = clock.cupy, np.random.default_rng(1)
    strata = cells["batch"] * N_CLUSTERS + cells["labels"]

    def sum_groups(rows: tuple[int, int], *, strata: Any, counts: Any) -> Any:
        return membership_sums(strata, N_BATCHES * N_CLUSTERS, counts)

    def sum_powers(rows: tuple[int, int], *, labels: Any, counts: Any, depth: Any) -> Any:
        return power_sums(labels, N_CLUSTERS, counts, depth)

    def sum_means(rows: tuple[int, int], *, weights: Any, batch: Any, depth: Any) -> Any:
        return pass_moments(weights, batch, depth, point)

    point = xp.asarray(rng.normal(-1, 0.3, (N_BATCHES + 1, N_CLUSTERS + 1, N_GENES)))
    for name, kernel, inputs in (
        ("sums by stratum", sum_groups, {"strata": strata, "counts": counts}),
        (
            "sums of powers by label",
            sum_powers,
            {"counts": counts} | {n: cells[n] for n in ("labels", "depth")},
        ),
        ("a pass of the fit", sum_means, {n: cells[n] for n in ("weights", "batch", "depth")}),
    ):
        n_bytes = sum(map(size, inputs.values()))
        clock.report(name, partial(over_tiles, kernel, inputs), n_bytes, N_CELLS / BLOCK)

    penalty = Penalty.random_effects(N_CLUSTERS, N_BATCHES)
    ridges = batched.Ridges.of(penalty, xp.ones(N_GENES))
    sampled = slice(0, SAMPLE)
    chosen = (cells[name][sampled] for name in ("weights", "batch", "depth"))
    design = batched.Cells(*(values.astype(np.float64) for values in chosen), N_BATCHES)
    sums = design.count_sums(counts[sampled].astype(np.float64))
    by_label = xp.asarray(rng.poisson(50.0, (N_GENES, N_BATCHES, N_CLUSTERS)).astype(float))
    total = xp.concatenate([by_label.sum(axis=2)[..., None], by_label], axis=2)
    labels = batched.Strata(xp.asarray(rng.lognormal(9, 1, (N_BATCHES, N_CLUSTERS))))
    for name, form, observed in (
        (f"fit to {SAMPLE} cells", design, sums),
        ("fit to strata", labels, total),
    ):
        call = partial(batched.fit_genes, form, observed, ridges, 1e-8, 50)
        print(f"  {float(call().converged.mean()):.3f} of {N_GENES} genes converge")
        clock.report(name, call, size(observed))


def neighbourhoods(clock: Clock, counts: np.ndarray) -> None:
    """Time the sums of Moran's I, and for cells of one type those of the SCI and a permutation."""
    xp, rng = clock.cupy, np.random.default_rng(3)
    rows = sparse.csr_matrix(counts)
    parts = rows.indptr.astype(np.int64), rows.indices.astype(np.int32), rows.data.astype(float)
    x: Any = tuple(map(xp.asarray, parts))
    points = rng.random((BLOCK, 2)) * np.sqrt(BLOCK / PER_AREA)
    own, graph = np.ones(BLOCK, bool), nearest_within(points, RADIUS, 6)
    n_bytes = sum(map(size, x))
    call = partial(moran_sums, own, graph, x, N_GENES)
    clock.report("Moran's I", call, n_bytes, N_CELLS / BLOCK)

    types = rng.integers(0, N_TYPES, BLOCK).astype(np.int32)
    graph = nearest_of_other_types(points, types, RADIUS, 30)
    numbers = TypePairs.of([(0, other) for other in range(1, N_TYPES)], N_TYPES).numbers
    cells = np.flatnonzero(types == 0).astype(np.int32)[: CHUNK_ENTRIES // (N_TYPES * N_GENES)]
    share = len(cells) / BLOCK

    def summed(first: Any, second: Any) -> Any:
        pairs = correlation_device.GenePairs.of(xp.asarray(first), xp.asarray(second), N_GENES)
        found = correlation_device.neighbor_sums(cells, graph, types, numbers, x, N_GENES)
        return found, x, pairs, N_TYPES - 1

    def cross_sums() -> Any:
        return correlation_device.cross_sums(
            *summed(*np.indices((N_GENES, N_GENES)).reshape(2, -1))
        )

    clock.report(
        "SCI of all pairs of genes", cross_sums, int(n_bytes * share), N_CELLS / len(cells)
    )
    arguments = summed(*rng.integers(0, N_GENES, (2, PANEL)))
    of_cell = np.searchsorted(cells, arguments[0].cell)
    place = np.stack([rng.permutation(cells)[of_cell] for _ in range(DRAWS)])
    call = partial(correlation_device.permuted_product_sums, *arguments, place)
    scale = N_CELLS / len(cells) / DRAWS
    clock.report(f"a permutation of {PANEL} pairs", call, int(DRAWS * n_bytes * share), scale)


def matching(clock: Clock, counts: np.ndarray, cells: dict[str, Any]) -> None:
    """Time matching of all cells, resident and streamed, and count how often the CPU differs."""
    xp, rng = clock.cupy, np.random.default_rng(2)
    source = (
        rng.normal(-6, 1.2, (N_BATCHES, N_GENES)),
        rng.normal(0, 0.4, (N_BATCHES, N_CLUSTERS, N_GENES)),
    )
    target = source[0].mean(axis=0), source[1].mean(axis=0)
    keys = np.array([stream_key(0, "match", gene) for gene in range(N_GENES)], np.uint64)
    rows = sparse.csr_matrix(counts)
    forms: dict[str, tuple[Callable[..., Any], str, tuple[np.ndarray, ...]]] = {
        f"matching, soft K={N_CLUSTERS}": (match_soft, "weights", (*source, *target)),
        f"matching, labels L={N_CLUSTERS}": (
            match_labels,
            "labels",
            (rates(*source), rates(*target)),
        ),
    }
    for name, (match, kind, tables) in forms.items():
        host = [GPU.give({"a": cells[n]})["a"] for n in (kind, "batch", "depth")]
        device = [xp.asarray(values) for values in (*tables, keys)]
        few = slice(0, 4 * 1024)
        expected = match(counts[few], *(values[few] for values in host), *tables, keys, 0)

        def resident(block: Any, match: Any = match, kind: str = kind, device: Any = device) -> Any:
            return match(block, cells[kind], cells["batch"], cells["depth"], *device, 0)

        def streamed(resident: Any = resident) -> Any:
            block = GPU.take({"counts": rows})["counts"][0 : rows.shape[0]]
            return GPU.give({"corrected": resident(block)}, {"corrected"})

        block = xp.asarray(counts)
        found = resident(block).get()[few]
        print(f"  {np.mean(found == expected):.8f} of the counts are those of the CPU")
        n_bytes = 2 * size(counts) + sum(map(size, host))
        clock.report(f"{name}, resident", partial(resident, block), n_bytes, N_CELLS / BLOCK)
        moved = 2 * sum(map(size, (rows.data, rows.indices))) + sum(map(size, host))
        clock.report(f"{name}, streamed", streamed, moved, N_CELLS / BLOCK)


def main() -> None:
    """Run everything on the first device."""
    import cupy

    measure(Clock(cupy))


def measure(clock: Clock) -> None:
    """Time all kernels."""
    cupy, rng = clock.cupy, np.random.default_rng(0)
    depth = rng.lognormal(np.log(60), 0.5, BLOCK)
    gene = rng.lognormal(0, 1.2, N_GENES)
    counts = rng.poisson(depth[:, None] * gene / gene.sum()).astype(np.uint16)
    weights = rng.dirichlet(np.full(N_CLUSTERS, 0.1), BLOCK).astype(np.float32)
    on_host = {
        "weights": weights,
        "labels": weights.argmax(axis=1).astype(np.int32),
        "batch": rng.integers(0, N_BATCHES, BLOCK).astype(np.int32),
        "depth": depth,
    }
    cells, block = GPU.take(on_host), cupy.asarray(counts)
    embedding = cupy.asarray(rng.normal(size=(BLOCK, N_COMPONENTS)).astype(np.float32))
    print(f"seconds for {N_CELLS} cells from a block of {BLOCK}; density {(counts > 0).mean():.3f}")
    preprocessing(clock, block, embedding)
    harmony(clock, cells, embedding)
    fits(clock, cells, block)
    neighbourhoods(clock, counts)
    matching(clock, counts, cells)


if __name__ == "__main__":
    main()
