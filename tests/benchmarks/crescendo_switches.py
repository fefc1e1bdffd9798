"""Evidence for two switches of Crescendo: python -m tests.benchmarks.crescendo_switches.

`impute_missing`: on real replicates, every fifth gene of the fixtures is taken away from one batch
after the other; embedding and clusters are made without these genes. What is imputed is compared
with the correction of the counts that were taken away: totals, rates of cell types, single cells.
Beside it: a draw at the rate of the cell's type in the other batches, which needs labels.
`interval`: shares of corrected counts, of other draws, outside of the stated interval.
"""

from __future__ import annotations

import warnings
from typing import Any

import anndata
import numpy as np
from scipy import sparse

import stdist
from tests.benchmarks.crescendo_quality.data import SHARED

DATA = ("starmap_visp_2rep", "pbmc_ifn_kang")
MASS, DRAWS = 0.9, 5


def dense(values: Any) -> np.ndarray:
    """Values as a matrix of float64."""
    return np.asarray(values.toarray() if sparse.issparse(values) else values, np.float64)


def read(name: str) -> tuple[anndata.AnnData, list[str]]:
    """Data with depths, an embedding and clusters made without the genes of the fixtures taken."""
    adata = anndata.read_h5ad(SHARED / f"data/{name}.h5ad")
    known = np.load(SHARED / "fixtures/crescendo/clusters_open.npz")
    genes = list(known[f"{name}/genes"].astype(str)[::5])
    adata.obs["depth"] = dense(adata.X).sum(axis=1)
    others = adata[:, ~adata.var_names.isin(genes)].copy()
    stdist.pp.normalize_total(others, log1p=True)
    stdist.pp.pca(others, layer="normalized", n_comps=20)
    stdist.pp.harmony(others, batch_key="batch", keep_clusters="clusters")
    for key in ("X_pca_harmony", "clusters"):
        adata.obsm[key] = others.obsm[key]
    return adata, genes


def corrected(adata: anndata.AnnData, genes: list[str], **options: Any) -> anndata.AnnData:
    """Correct some genes."""
    out = adata.copy()
    keys = {"batch_key": "batch", "clusters": "clusters", "depth_key": "depth", "genes": genes}
    stdist.tl.crescendo(out, **keys, skip_unaffected=False, **options)
    return out[:, genes].copy()


def impute(name: str, adata: anndata.AnnData, genes: list[str]) -> None:
    """Take genes away from each batch, impute them, and print how near that comes."""
    whole = dense(corrected(adata, genes).layers["crescendo"])
    depth, rng = adata.obs["depth"].to_numpy(), np.random.default_rng(0)
    types = adata.obs["cell_type"].astype(str).to_numpy()
    batch, scores = adata.obs["batch"].astype(str).to_numpy(), []
    for one in np.unique(batch):
        mine, masked = batch == one, adata.copy()
        counts = dense(masked.X)
        counts[np.ix_(mine, masked.var_names.isin(genes))] = 0
        masked.X = sparse.csr_matrix(counts)
        found = dense(corrected(masked, genes, impute_missing=True).layers["crescendo"])
        rates = {k: whole[~mine & (types == k)].sum(axis=0) for k in np.unique(types)}
        rates = {k: total / depth[~mine & (types == k)].sum() for k, total in rates.items()}
        of_type = np.stack([rates[k] if k in rates else 0 * whole[0] for k in types])
        drawn = rng.poisson(depth[:, None] * np.nan_to_num(of_type))
        for label, values in (("imputed", found), ("rate of the type", drawn)):
            scores.append((one, label, *score(values[mine], whole[mine], types[mine])))
    for label in ("imputed", "rate of the type"):
        total, by_type, cells = np.mean([row[2:] for row in scores if row[1] == label], axis=0)
        print(f"| {name} | {label} | {total:.2f} | {by_type:.3f} | {cells:.3f} |", flush=True)


def score(values: np.ndarray, truth: np.ndarray, types: np.ndarray) -> tuple[float, float, float]:
    """Total over the true one; median r over genes of log means of types, and of single cells."""
    kinds = [k for k in np.unique(types) if (types == k).sum() >= 20]
    means = [np.stack([x[types == k].mean(axis=0) for k in kinds]) for x in (values, truth)]
    pairs = [np.log(x + 0.01) for x in means], [np.log1p(x) for x in (values, truth)]
    r = [np.median([np.corrcoef(*column)[0, 1] for column in zip(*(x.T for x in pair), strict=True)
                    if all(np.ptp(c) > 0 for c in column)]) for pair in pairs]  # fmt: skip
    return values.sum() / truth.sum(), float(r[0]), float(r[1])


def intervals(name: str, adata: anndata.AnnData, genes: list[str]) -> None:
    """Print how many counts of other draws are outside, and how wide intervals are."""
    adata.obs["label"] = adata.obsm["clusters"].argmax(axis=1).astype(str)  # no sample: one fit
    options = {"batch_key": "batch", "clusters": "label", "depth_key": "depth", "genes": genes}
    first = adata.copy()
    stdist.tl.crescendo(first, **options, interval=MASS)
    low, high = (dense(first[:, genes].layers[f"crescendo_{end}"]) for end in ("lower", "upper"))
    below, above = [], []
    for rng in range(1, DRAWS + 1):
        other = adata.copy()
        stdist.tl.crescendo(other, **options, rng=rng)
        drawn = dense(other[:, genes].layers["crescendo"])
        below.append((drawn < low).mean())
        above.append((drawn > high).mean())
    counts = dense(adata[:, genes].X) > 0
    wide = (high > low)[counts].mean(), (high - low)[counts].mean()
    print(
        f"| {name} | {np.mean(below):.4f} | {np.mean(above):.4f} | {wide[0]:.2f} | {wide[1]:.2f} |"
    )


def main() -> None:
    """Print both tables."""
    warnings.simplefilter("ignore")
    data = {name: read(name) for name in DATA}
    print("| data | method | total | r of types | r of cells |\n|---|---|---|---|---|")
    for name, (adata, genes) in data.items():
        impute(name, adata, genes)
    print("\n| data | below | above | not a point | mean width |\n|---|---|---|---|---|")
    for name, (adata, genes) in data.items():
        intervals(name, adata, genes)


if __name__ == "__main__":
    main()
