"""Early stopping of SIID on inner held-out genes, scored on outer ones: one Markdown table.

Run ``python -m tests.benchmarks.siid_early_stopping [--pairs sim_h8 breast] [--folds 0 1 2 3]
[--inner 1] [--seed 0]`` in the root of the repository. For each recorded fold of a pair its genes
are taken out of the cells, and `stdist.tl.siid_choose_passes` chooses the number of passes on as
many inner tenths of the others; then the fold is scored with this number, and with fixed ones.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Iterator
from typing import Any

import anndata
import pandas as pd

import stdist
from stdist.methods.siid.choose_passes import CANDIDATES
from stdist.store import StdistWarning
from tests.benchmarks.siid_quality import FIXTURES, SHARED, simulation

FIXED = CANDIDATES[1:]


def pairs() -> Iterator[tuple[str, anndata.AnnData, anndata.AnnData, dict[str, int], int]]:
    """Name, cells, spots, fold of each gene, and number of factors."""
    cells, spots, folds, _ = simulation()
    yield "sim_h8", cells, spots, folds, 8
    facts = json.loads((FIXTURES / "breast_pair_open.json").read_text())
    folds = dict(zip(facts["genes"], facts["fold_of_gene"], strict=True))
    cells, spots = (
        anndata.read_h5ad(SHARED / f"data/breast_pair_{slide}.h5ad")
        for slide in ("xenium", "visium")
    )
    yield "breast", cells, spots, folds, 15


def row(
    cells: anndata.AnnData,
    spots: anndata.AnnData,
    folds: dict[str, int],
    fold: int,
    inner_folds: list[int],
    **fit: Any,
) -> dict[str, float]:
    """Passes chosen on inner genes, and R2 of the fold's genes with them and with fixed ones."""
    others = [name for name in cells.var_names if folds.get(name) != fold]
    inner = cells[:, others].copy()
    stdist.tl.siid_choose_passes(inner, spots=spots, folds=inner_folds, controls=False, **fit)
    found = inner.uns["siid_passes"]
    r2 = {}
    for passes in sorted({found["passes"], *FIXED}):
        scored = stdist.tl.siid_holdout(
            cells, spots=spots, fold_of_gene=folds, folds=[fold], passes=passes,
            controls=False, key_added=None, **fit,
        )  # fmt: skip
        r2[passes] = scored.summary.loc["siid", "r2"]
    return {
        "inner genes": found["n_genes"],
        "chosen": found["passes"],
        "R2, chosen": r2[found["passes"]],
        **{f"R2, {passes}": r2[passes] for passes in FIXED},
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--pairs", nargs="+", default=["sim_h8", "breast"])
    parser.add_argument("--inner", type=int, default=1, help="inner folds, of 10")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", StdistWarning)
    rows = []
    for name, cells, spots, folds, n_factors in pairs():
        if name not in arguments.pairs:
            continue
        own, fit = [], {"n_factors": n_factors, "rng": arguments.seed}
        for fold in arguments.folds:
            found = row(cells, spots, folds, fold, list(range(arguments.inner)), **fit)
            own.append({"pair": name, "fold": str(fold), **found})
            print(own[-1], flush=True)
        means = pd.DataFrame(own).filter(like="R2").mean()
        empty = {"inner genes": "", "chosen": ""}
        rows += [*own, {"pair": name, "fold": "mean", **empty, **means}]
    columns = list(rows[0])
    print(f"\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for line in rows:
        shown = [f"{v:.4f}" if key.startswith("R2") else v for key, v in line.items()]
        print(f"| {' | '.join(map(str, shown))} |")


if __name__ == "__main__":
    main()
