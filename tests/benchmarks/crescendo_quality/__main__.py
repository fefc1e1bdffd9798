"""The table that decides Crescendo's default.

Run ``python -m tests.benchmarks.crescendo_quality [open null known stability] [--seeds 3]`` in
the root of the repository. Rows of R, ComBat-Seq and library scaling on the open data are read
from the fixtures; all others are computed by `stdist.tl.crescendo`. ComBat-Seq on the tiles with a
known effect needs ``--inmoose PYTHON``, an interpreter with inmoose.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from stdist.kernels.poisson_glmm import MINIMUM_CELLTYPE_VARIANCE
from stdist.methods.crescendo import crescendo
from stdist.store import StdistWarning

from .data import (
    KNOWN,
    NULLS,
    OPEN,
    SHARED,
    Case,
    known_case,
    null_case,
    open_case,
    other_genes,
)
from .measures import change, error, quality

ARITHMETIC = {"marginal": "arithmetic"}
PLAIN = {"skip_unaffected": False, "quasi_poisson": False, **ARITHMETIC}
VARIANTS: dict[str, dict[str, Any]] = {
    "released (compat)": {"compat": "reference"},
    "prior, main effects dropped": {"main_effects": "drop", **PLAIN},
    "main effects folded": PLAIN,
    "and prior weighed by dispersion": {"skip_unaffected": False, **ARITHMETIC},
    "and unaffected genes kept": ARITHMETIC,
    "and interquartile mean = default": {},
    "default, negative binomial": {"margin": "negative_binomial"},
}
FROM_FILE = {
    "R": "crescendo_ref",
    "R, 10 clusters": "crescendo_ref_k10",
    "ComBat-Seq": "combatseq_batch",
    "ComBat-Seq, types": "combatseq_celltype",
    "library scaling": "libscale",
    "prototype of spec 10": "pit_prior1_lme_obs",
}
QUALITY = [
    "zone",
    "min zone",
    "BVR",
    "CVR",
    "r",
    "HVG",
    "min HVG",
    "total",
    "least",
    "largest",
    "changed",
]
COMBAT = """
import sys, numpy as np, warnings
warnings.filterwarnings("ignore")
from inmoose.pycombat import pycombat_seq
given = np.load(sys.argv[1])
np.save(sys.argv[2], np.asarray(pycombat_seq(given["counts"].T, given["batch"])).T)
"""


def corrected(case: Case, seed: int, **options: Any) -> np.ndarray:
    """Correct the judged genes with the product."""
    clusters = options.pop("clusters", "R")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StdistWarning)
        crescendo(
            case.adata,
            batch_key="batch",
            clusters=clusters,
            genes=case.genes,
            key_added="after",
            rng=seed,
            overwrite=True,
            **options,
        )
    return case.counts("after").astype(np.int64)


def over_seeds(
    measure: Callable[[int], dict[str, float]], seeds: int, worst: Iterable[str] = ()
) -> dict[str, float]:
    """Mean of the measures over seeds; of some also the smallest."""
    rows = pd.DataFrame([measure(seed) for seed in range(seeds)])
    return {**rows.mean(), **{f"min {name}": rows[name].min() for name in worst}}


def recorded(name: str) -> Iterator[dict[str, Any]]:
    """Rows of the fixtures, in their own depth."""
    table = pd.read_csv(SHARED / "fixtures" / "crescendo" / "baselines_open.csv.gz")
    for shown, method in FROM_FILE.items():
        rows = table[(table["dataset"] == name) & (table["method"] == method)]
        kept = method.startswith(("crescendo_ref", "combatseq")) or method.endswith("_obs")
        rows = rows[rows["offset_variant"] == ("observed" if kept else "final")]
        if rows.empty:
            continue
        judged = rows[rows["B_pre"] > 0.001]
        # as in the fixture's summary: undefined genes are outside, and none to lose is none lost
        inside = judged["B_post"] < judged["B_pre"]
        inside &= judged["C_post"] >= 0.5 * judged["C_pre"]
        cvr = judged["C_post"] / judged["C_pre"]
        ratio = rows["mean_post"] / rows["mean_pre"]
        yield {
            "data": name,
            "method": shown,
            "zone": inside.mean(),
            "BVR": (judged["B_post"] / judged["B_pre"]).median(),
            "CVR": cvr[judged["C_pre"] >= MINIMUM_CELLTYPE_VARIANCE].median(),
            "r": rows["within_corr"].median(),
            "total": rows["mean_post"].sum() / rows["mean_pre"].sum(),
            "least": ratio.min(),
            "largest": ratio.max(),
        }


def open_rows(seeds: int) -> Iterator[dict[str, Any]]:
    """Open data sets, soft clusters as Harmony gave them."""
    for name in OPEN:
        yield from recorded(name)
        case = open_case(name)
        for shown, options in VARIANTS.items():
            found = over_seeds(
                lambda seed, o=options, c=case: quality(c, corrected(c, seed, **o)),
                1 if "compat" in options else seeds,
                ("zone", "HVG"),
            )
            yield {"data": name, "method": shown, **found}


def null_rows(seeds: int) -> Iterator[dict[str, Any]]:
    """One sample in two to four fake batches."""
    for name, sample in NULLS:
        for shown, options in VARIANTS.items():

            def measure(seed: int, options: dict[str, Any] = options) -> dict[str, float]:
                case = null_case(name, sample, 2 + seed % 3, seed)  # noqa: B023
                return change(case, corrected(case, seed, **options))

            yield {"data": f"{name} {sample}", "method": shown, **over_seeds(measure, seeds)}


def known_rows(seeds: int, inmoose: str | None) -> Iterator[dict[str, Any]]:
    """Known effects on tiles, each drawn with every seed; of the steps the last ones only."""
    methods: dict[str, Callable[[Case, np.ndarray, np.ndarray, int], np.ndarray]] = {
        "none": lambda case, truth, effect, seed: case.counts(),
        "effects known": lambda *given: informed(*given, 1.0),
        "their ratios known": lambda *given: informed(*given, given[2]),
        "ComBat-Seq": lambda case, truth, effect, seed: combat(case, str(inmoose)),
        "released (compat)": lambda case, truth, effect, seed: corrected(
            case, seed, compat="reference"
        ),
        "default, arithmetic mean": lambda case, truth, effect, seed: corrected(
            case, seed, **ARITHMETIC
        ),
        "default": lambda case, truth, effect, seed: corrected(case, seed),
    }
    if inmoose is None:
        del methods["ComBat-Seq"]
    for kind in KNOWN:
        found: dict[str, list[dict[str, float]]] = {shown: [] for shown in methods}
        for seed in range(1, seeds + 1):
            case, truth, effect = known_case(kind, seed)
            for shown, method in methods.items():
                found[shown].append(error(case, truth, method(case, truth, effect, seed)))
        for shown, errors in found.items():
            yield {"data": kind, "method": shown, **pd.DataFrame(errors).mean()}


def informed(
    case: Case, truth: np.ndarray, effect: np.ndarray, seed: int, level: np.ndarray | float
) -> np.ndarray:
    """Exact quantiles between the true rates of types with the simulated effect and without it.

    The rates to match are those of the truth times the mean over batches of `level`: 1 is the
    truth, the effect itself all that counts with effects can tell.
    """
    judged = case.adata.var_names.get_indexer(case.genes)
    effect, level = effect[:, :, judged], np.broadcast_to(level, effect.shape)[:, :, judged]
    depth, types = truth.sum(axis=1), np.eye(case.labels.max() + 1)[case.labels]
    rates = types.T @ truth[:, judged] / (types.T @ depth)[:, None]
    means = rates[case.labels] * depth[:, None]
    source = means * effect[case.batch, np.arange(len(means))]
    target = means * level.mean(axis=0)
    counts, u = case.counts(), np.random.default_rng(seed).random(source.shape)
    lower = stats.poisson.sf(counts, source)
    quantile = lower + u * stats.poisson.pmf(counts, source)
    return stats.poisson.isf(np.maximum(quantile, 1e-12), np.maximum(target, 1e-12))


def combat(case: Case, python: str) -> np.ndarray:
    """ComBat-Seq on the judged genes and one row with all other counts."""
    counts = case.counts()
    rest = case.depth - counts.sum(axis=1)
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "given.npz", Path(folder) / "found.npy"
        np.savez(given, counts=np.column_stack([counts, rest]).astype(int), batch=case.batch)
        subprocess.run([python, "-c", COMBAT, str(given), str(found)], check=True)
        return np.load(found)[:, :-1]


def stability_rows(seeds: int) -> Iterator[dict[str, Any]]:
    """The default on other genes, ten clusters, labels, half of the cells and of the genes."""
    for name in OPEN:
        kinds = ("other genes", "other genes, arithmetic mean", "ten clusters", "labels")
        kinds += ("half of the cells", "half of the genes")
        for what in kinds:
            if what == "ten clusters" and name not in (OPEN[2], OPEN[3]):
                continue

            def measure(seed: int, what: str = what, name: str = name) -> dict[str, float]:
                case = open_case(name, "R_k10" if what == "ten clusters" else "R")
                rng = np.random.default_rng(seed)
                if what.startswith("other genes"):
                    case.genes = other_genes(case, rng)
                if what == "half of the cells":
                    case.adata = case.adata[rng.random(case.adata.n_obs) < 0.5].copy()
                    total = np.asarray(case.adata[:, case.genes].X.sum(axis=0)).ravel()
                    case.genes = [g for g, n in zip(case.genes, total, strict=True) if n > 0]
                if what == "half of the genes":
                    # depths stay those of all genes
                    case.adata.obs["depth"] = case.depth
                    case.adata = case.adata[:, rng.random(case.adata.n_vars) < 0.5].copy()
                    case.genes = [g for g in case.genes if g in case.adata.var_names]
                options = {"clusters": "label" if what == "labels" else "R"}
                if what.endswith("arithmetic mean"):
                    options |= ARITHMETIC
                if what == "half of the genes":
                    options["depth_key"] = "depth"
                return quality(case, corrected(case, seed, **options))

            yield {"data": name, "method": what, **over_seeds(measure, seeds, ("zone", "HVG"))}


def show(rows: Iterable[dict[str, Any]], columns: list[str]) -> None:
    """Print rows as a table in Markdown, as they come."""
    print(f"| data | method | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 2)}")
    for row in rows:
        values = [row.get(name, np.nan) for name in columns]
        cells = ["" if np.isnan(value) else f"{value:.3f}" for value in values]
        print(f"| {row['data']} | {row['method']} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help="default: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--inmoose", help="Python interpreter with inmoose")
    asked = parser.parse_args()
    parts = {
        "open": (lambda: open_rows(asked.seeds), QUALITY),
        "null": (lambda: null_rows(asked.seeds), ["changed", "r", "least r"]),
        "known": (
            lambda: known_rows(asked.seeds, asked.inmoose),
            ["rate", "between", "MAE", "RMSE", "total"],
        ),
        "stability": (lambda: stability_rows(asked.seeds), QUALITY),
    }
    if unknown := set(asked.parts) - set(parts):
        parser.error(
            f"no part is called {', '.join(sorted(unknown))}; there are {', '.join(parts)}"
        )
    for name in asked.parts or parts:
        print(f"\n## {name}\n")
        compute, columns = parts[name]
        show(compute(), columns)


if __name__ == "__main__":
    main()
