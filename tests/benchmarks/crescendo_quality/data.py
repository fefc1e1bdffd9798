"""Open data sets with the fixture's genes and clusters, nulls, and tiles with a known effect."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

SHARED = Path(__file__).resolve().parents[4] / "shared"
OPEN = (
    "starmap_visp_2rep",
    "mousebrain_st_hippo1to4",
    "glioblastoma_panobinostat",
    "pbmc_ifn_kang",
    "breast_xenium_tiles12",
)
NULLS = (
    ("starmap_visp_2rep", "BY3"),
    ("mousebrain_st_hippo1to4", "Hippo2"),
    ("pbmc_ifn_kang", "ctrl101"),
    ("breast_xenium_tiles12", "tile_bulbasaur"),
)
"""Data set and the batch whose cells get fake batches."""
KNOWN = {
    "genes, 2 of 2": (2, 2, 0.5, 0.0, 1.0),
    "genes and types, 2 of 2": (2, 2, 0.4, 0.3, 1.0),
    "weak, 3 of 3": (3, 3, 0.25, 0.15, 1.0),
    "a third of the genes, 2 of 2": (2, 2, 0.6, 0.0, 0.3),
    "genes, 1 of 2": (2, 1, 0.5, 0.0, 1.0),
    "genes, 1 of 3": (3, 1, 0.5, 0.0, 1.0),
    "genes and types, 1 of 4": (4, 1, 0.4, 0.3, 1.0),
    "a third of the genes, 1 of 4": (4, 1, 0.6, 0.0, 0.3),
    "genes, 1 of the 2 tiles": (0, 1, 0.5, 0.0, 1.0),
}
"""Known effects: batches (0: the tiles, else random ones of one tile), how many of them changed, sd
per gene, sd per gene and type (log scale), share of genes."""


@dataclass
class Case:
    """Counts of all genes with soft clusters, and the genes that are judged."""

    name: str
    adata: anndata.AnnData
    genes: list[str]

    @property
    def batch(self) -> np.ndarray:
        """Batch codes."""
        return self.adata.obs["batch"].cat.codes.to_numpy().astype(np.int64)

    @property
    def labels(self) -> np.ndarray:
        """Cell type codes."""
        return self.adata.obs["label"].cat.codes.to_numpy().astype(np.int64)

    @property
    def depth(self) -> np.ndarray:
        """Total counts of the cells, over all genes that were measured."""
        if "depth" in self.adata.obs:
            return self.adata.obs["depth"].to_numpy()
        return np.maximum(np.asarray(self.adata.X.sum(axis=1), dtype=np.float64).ravel(), 1.0)

    def counts(self, layer: str | None = None) -> np.ndarray:
        """Counts of the judged genes, dense."""
        chosen = self.adata[:, self.genes]
        values = chosen.X if layer is None else chosen.layers[layer]
        return values.toarray() if sparse.issparse(values) else np.asarray(values)


def _codes(values: np.ndarray) -> pd.Categorical:
    return pd.Categorical(np.asarray(values).astype(str))


def open_case(name: str, clusters: str = "R") -> Case:
    """One of the open data sets; `clusters` is ``R`` or ``R_k10``."""
    adata = anndata.read_h5ad(SHARED / "data" / f"{name}.h5ad")
    known = np.load(SHARED / "fixtures" / "crescendo" / "clusters_open.npz")
    adata.X = sparse.csr_matrix(adata.X).astype(np.float32)
    adata.obs["batch"] = _codes(adata.obs["batch"])
    adata.obs["label"] = _codes(known[f"{name}/labels"])
    adata.obsm = {"R": known[f"{name}/{clusters}"].T.astype(np.float64)}
    return Case(name, adata, [g.decode() for g in known[f"{name}/genes"].astype("S")])


def null_case(name: str, sample: str, n_batches: int, seed: int) -> Case:
    """Cells of one sample with fake batches drawn within cell types, clusters as they are."""
    case = open_case(name)
    own = case.adata[case.adata.obs["batch"] == sample].copy()
    labels = own.obs["label"].to_numpy()
    rng = np.random.default_rng(seed)
    fake = np.zeros(len(labels), dtype=int)
    for label in np.unique(labels):
        cells = np.flatnonzero(labels == label)
        fake[cells] = rng.permutation(np.arange(len(cells)) % n_batches)
    own.obs["batch"], own.obs["label"] = _codes(fake), _codes(labels)
    return Case(f"{name} {sample}", own, case.genes)


def known_case(kind: str, seed: int) -> tuple[Case, np.ndarray, np.ndarray]:
    """Xenium tiles with a simulated effect in some batches, their counts without, the effect.

    The effect has shape (n_batches, n_cells, n_genes): what each batch would do to a cell. A factor
    below 1 thins counts; above, every count is repeated and its fraction drawn. Depths and clusters
    (Harmony, 30 clusters) are those of the changed counts.
    """
    import harmonypy
    from sklearn.decomposition import PCA

    n_batches, n_changed, of_gene, of_type, share = KNOWN[kind]
    case = open_case("breast_xenium_tiles12")
    rng = np.random.default_rng(seed)
    tile, batch = case.adata, case.batch
    if n_batches:
        tile = tile[tile.obs["batch"] == "tile_bulbasaur"].copy()
        batch = rng.integers(0, n_batches, tile.n_obs)
    n_batches = n_batches or 2
    labels = tile.obs["label"].cat.codes.to_numpy()
    truth = tile.X.toarray().astype(int)
    n_genes = truth.shape[1]
    effect = rng.normal(0, of_gene, (n_batches, 1, n_genes))
    effect = effect + rng.normal(0, of_type, (n_batches, labels.max() + 1, n_genes))
    effect = effect * (rng.random(n_genes) < share)
    effect[: n_batches - n_changed] = 0
    effect = np.exp(effect)[:, labels]
    factor = effect[batch, np.arange(len(batch))]
    whole = np.floor(factor).astype(int)
    counts = truth * whole + rng.binomial(truth, factor - whole)
    depth = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    scaled = np.log1p(counts / depth * np.median(depth))
    scaled = (scaled - scaled.mean(axis=0)) / np.maximum(scaled.std(axis=0), 1e-9)
    components = PCA(20, random_state=0).fit_transform(np.clip(scaled, -10, 10))
    found = harmonypy.run_harmony(
        components,
        pd.DataFrame({"batch": batch.astype(str)}),
        "batch",
        nclust=30,
        random_state=0,
        verbose=False,
    )
    soft = np.asarray(found.R, dtype=np.float64)
    soft = soft if len(soft) == len(labels) else soft.T
    changed = anndata.AnnData(sparse.csr_matrix(counts.astype(np.float32)))
    changed.obs_names, changed.var_names = tile.obs_names, tile.var_names
    changed.obs["batch"], changed.obs["label"] = _codes(batch), _codes(labels)
    changed.obsm["R"] = soft / soft.sum(axis=1, keepdims=True)
    return Case(kind, changed, case.genes), truth, effect


def other_genes(case: Case, rng: np.random.Generator, n_genes: int = 150) -> list[str]:
    """Genes that are not judged, as abundant as all but the rarest twentieth of those that are."""
    mean = np.asarray(case.adata.X.mean(axis=0)).ravel()
    judged = case.adata.var_names.isin(case.genes)
    pool = case.adata.var_names[~judged & (mean >= np.quantile(mean[judged], 0.05))]
    return list(rng.choice(pool, min(n_genes, len(pool)), replace=False))
