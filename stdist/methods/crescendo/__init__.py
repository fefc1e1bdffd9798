"""Crescendo: batch-corrected counts, gene by gene (Millard et al., Genome Biology 2025)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stdist.graph import Program
from stdist.methods.crescendo.program import StdistWarning, crescendo_program
from stdist.methods.crescendo.spec import CrescendoSpec
from stdist.methods.data import StoreData, open_data
from stdist.methods.run import run_program

__all__ = ["CrescendoSpec", "StdistWarning", "build_crescendo", "crescendo"]


def build_crescendo(data: str, **parameters: Any) -> Program:
    """Build the program of a recorded run."""
    return crescendo_program(StoreData(data), CrescendoSpec(**parameters))


def crescendo(
    data: Any,
    *,
    batch_key: str,
    clusters: str,
    layer: str | None = None,
    depth_key: str | None = None,
    genes: list[str] | None = None,
    key_added: str = "crescendo",
    prior_sd: float = 1.0,
    cluster_penalty: float = 0.01,
    fit_cells: int = 20_000,
    min_cells: int = 100,
    merge_threshold: float = 0.99,
    cap_outliers: bool = True,
    rng: int = 0,
    client: Any = None,
    block_length: int | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> Path | None:
    """Remove the batch effect from the counts of single genes.

    For every gene a Poisson model with cluster, batch and cluster-in-batch effects is fitted;
    every count is then moved from the distribution of its own batch to that of the average
    batch, by the same quantile (randomised where the distribution is discrete). Depth
    differences between cells stay.

    Parameters
    ----------
    data
        Path of a store, a lazy AnnData of `stdist.io.open`, or an AnnData in memory. All three
        give the same numbers.
    batch_key
        Column of ``obs`` that names the batch (sample, slide) of each cell.
    clusters
        Entry of ``obsm`` with soft clusters, ``(n_cells, n_clusters)``, rows summing to one; or a
        column of ``obs`` with one label per cell. Labels are fitted to all cells; soft clusters
        to a stratified sample.
    layer
        Layer with raw counts; default ``X``.
    depth_key
        Column of ``obs`` with the depth (nUMI) of each cell; default: total counts of the layer.
    genes
        Genes to correct; the others are copied. A gene's result does not depend on this list.
    key_added
        Name of the new layer, of the entry in ``uns`` and of ``var["<key_added>_status"]``.
    prior_sd
        Standard deviation of the normal prior on batch effects, natural log scale.
    cluster_penalty
        Weight ``p`` of the penalty ``p * beta**2 / 2`` on the effect of a cluster.
    fit_cells
        Soft clusters only: number of cells to fit to, about.
    min_cells
        Soft clusters only: least number of cells to fit to per batch and cluster.
    merge_threshold
        Soft clusters with a higher correlation over cells are merged for the fit.
    cap_outliers
        Keep corrected counts within ``max(count, q + 1)``, with `q` the 0.99999 quantile of the
        target distribution.
    rng
        Seed. Randomness is keyed by (seed, gene name, row), so results do not depend on blocks,
        workers, order or the genes requested.
    client
        `distributed.Client`; default: the active one, else this process for small data, else
        workers on this machine for the time of the call.
    block_length
        Rows per block; default: from the memory of the smallest worker.
    overwrite
        Replace an existing layer of that name.
    progress
        Show progress; default: bars on a terminal or in a notebook, lines elsewhere.

    Returns
    -------
    Path or None
        Folder of the run record, for a store; None for an AnnData, which is changed in place.
        ``layers[key_added]`` holds integers (unsigned); ``uns[key_added]`` the parameters and the
        coefficients as an xarray Dataset; ``var[key_added + "_status"]`` what happened to a gene.

    Raises
    ------
    InputError
        If counts are negative, fractional or not finite; labels are missing; soft clusters are
        negative or do not sum to one; keys or genes are unknown. Nothing is written.
    PlanRefused
        If a block does not fit the workers.

    Warns
    -----
    StdistWarning
        If there is one batch only (the layer is a copy), or genes, cells or batches without
        counts, which are passed through.

    Notes
    -----
    Fit: the mode under ``delta_b, gamma_kb ~ N(0, prior_sd**2)`` of Poisson counts with mean
    ``depth * exp(beta_0 + sum_k R_k beta_k + delta_b + sum_k R_k gamma_kb)`` (Millard et al.,
    Genome Biology 2025, equation 6, its random-effect reading). Target: the arithmetic mean over
    batches, weighted by the cluster's mass in each, of the fitted rates, without ``delta_b``.
    Matching: exact randomised probability integral transform (equation 5).

    Examples
    --------
    >>> import anndata, numpy as np
    >>> rng = np.random.default_rng(0)
    >>> adata = anndata.AnnData(rng.poisson(2, (40, 3)).astype("float32"))
    >>> adata.obs["slide"], adata.obs["type"] = ["a", "b"] * 20, ["x"] * 20 + ["y"] * 20
    >>> crescendo(adata, batch_key="slide", clusters="type")
    >>> adata.layers["crescendo"].shape
    (40, 3)
    """
    spec = CrescendoSpec(
        batch_key=batch_key,
        clusters=clusters,
        layer=layer,
        depth_key=depth_key,
        genes=genes,
        key_added=key_added,
        prior_sd=prior_sd,
        cluster_penalty=cluster_penalty,
        fit_cells=fit_cells,
        min_cells=min_cells,
        merge_threshold=merge_threshold,
        cap_outliers=cap_outliers,
        rng=rng,
    )
    opened = open_data(data)
    run = run_program(
        crescendo_program(opened, spec),
        opened,
        client=client,
        block_length=block_length,
        progress=progress,
        overwrite=overwrite,
    )
    if not isinstance(data, (str, Path)) and opened.path is not None:
        _attach(data, opened.path, spec)
    return run


def _attach(adata: Any, path: Path, spec: CrescendoSpec) -> None:
    """Show a store's new elements in the lazy AnnData that was passed."""
    from stdist.store.lazy import open as open_lazy

    fresh = open_lazy(path)
    adata.layers[spec.key_added] = fresh.layers[spec.key_added]
    adata.uns[spec.key_added] = fresh.uns[spec.key_added]
    status = f"{spec.key_added}_status"
    if status in fresh.var:
        adata.var[status] = fresh.var[status].array
