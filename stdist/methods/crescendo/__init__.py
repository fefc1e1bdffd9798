"""Crescendo: batch-corrected counts, gene by gene (Millard et al., Genome Biology 2025)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stdist.graph import Program
from stdist.methods.crescendo.program import crescendo_program
from stdist.methods.crescendo.spec import CrescendoSpec
from stdist.methods.data import StoreData, open_data
from stdist.methods.run import run_program

__all__ = ["CrescendoSpec", "build_crescendo", "crescendo"]


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
    keep: list[str] | None = None,
    keep_interactions: bool = False,
    prior_sd: float = 1.0,
    cluster_penalty: float = 0.01,
    lam: str | float | None = None,
    lam_rule: str | None = None,
    penalize: str = "all",
    fit_cells: int | None = 20_000,
    prop: float | None = None,
    min_cells: int = 100,
    merge_threshold: float = 0.99,
    main_effects: str = "fold",
    marginal: str = "interquartile",
    source_offset: str = "observed",
    target_offset: str | float = "observed",
    match: str = "pit",
    margin: str = "poisson",
    cap_outliers: bool = True,
    interval: float | None = None,
    skip_unaffected: bool = True,
    quasi_poisson: bool = True,
    skip_absent: bool = False,
    impute_missing: bool = False,
    use_rep: str = "X_pca_harmony",
    n_neighbors: int = 30,
    compat: str | None = None,
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
    differences between cells stay unless `target_offset` says otherwise.

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
    keep
        Columns of ``obs``, labels or numbers, whose effect is fitted and stays in the counts
        (disease, age); their role keeps them, never their name. Labels with kept labels are
        still fitted to all cells, with kept numbers to a sample.
    keep_interactions
        Also fit and keep the effect of every kept column in each cluster.
    prior_sd
        Standard deviation of the normal prior on batch effects, natural log scale.
    cluster_penalty
        Weight ``p`` of the penalty ``p * beta**2 / 2`` on the effect of a cluster.
    lam
        Instead of the prior, the ridge of glmnet on standardised columns, with the total penalty
        ``lam * n_cells * variance * effect**2 / 2``: a number, or ``"mean"`` for 0.05 times the
        gene's mean count in the fitted cells (``"0.2*mean"`` for another factor).
    lam_rule
        Instead of `lam`, lambda 1 within glmnet's path of lambdas: ``"exact"`` for the optimum,
        ``"reference"`` for what the released program reads from that path (interpolated, with
        its early end).
    penalize
        With `lam`: ``"all"`` columns, or those with a ``"batch"`` only; clusters then have
        `cluster_penalty`.
    fit_cells
        Soft clusters only: number of cells to fit to, about; None for all.
    prop
        Soft clusters only: share of the cells to fit to, instead of `fit_cells`.
    min_cells
        Soft clusters only: least number of cells to fit to per batch and cluster.
    merge_threshold
        Soft clusters with a higher correlation over cells are merged for the fit.
    main_effects
        ``"drop"``: the mean effect of a batch is left out of the target; ``"fold"``: it is part
        of the batch's effect on each cluster, over which `marginal` takes the mean.
    marginal
        Mean over batches: ``"interquartile"``, of log rates over the middle half of the
        cluster's mass, with batches in the order of their rates, where the expected total of a
        gene stays within ``a = 1 - 0.3 / n_batches`` (with cells) and ``1 / a`` of what it was;
        ``"arithmetic"``, of rates, weighted by the cluster's mass; or ``"reference"``, mean plus
        half the variance of log rates (explodes where a cluster is almost absent from a batch).
    source_offset
        Depth of the means that counts come from: ``"observed"`` depth of the cell, or ``"final"``,
        that of `target_offset`.
    target_offset
        Depth that cells are corrected (imputed) to: ``"observed"``, the cell's own;
        ``"median"`` of all cells; ``"batch:NAME"``, the median of a batch; a number in UMI; or a
        column of ``obs`` with one depth per cell. No logarithm is expected.
    match
        ``"pit"``: exact randomised quantiles. ``"reference"``: the rule of the released program,
        biased in sparse genes.
    margin
        Distribution of counts given their mean. ``"negative_binomial"``: for genes that are
        overdispersed around the fit (score test), with the dispersion found there, in
        ``uns[key_added]["coefficients"]["dispersion"]``; the others stay ``"poisson"``.
    cap_outliers
        Keep corrected counts within ``max(count, q + 1)``, with `q` the 0.99999 quantile of the
        target distribution.
    interval
        Mass, such as 0.9, of the central interval of each corrected count given the observed
        one; its ends go to ``layers[key_added + "_lower"]`` and ``"_upper"``.
    skip_unaffected
        Leave genes that show no batch effect as they are: a test within clusters, with the false
        discoveries among all genes of the data bounded. Where `target_offset` gives cells another
        depth, these genes get it too.
    quasi_poisson
        Weigh the prior by the dispersion of the gene: the more counts scatter, the less they
        say about batches.
    skip_absent
        Leave genes unchanged, in depth too, that some batch has no count of; they are named in
        any case.
    impute_missing
        Draw the counts of a gene in a batch that has none of it (another panel, a failed probe)
        around the mean corrected rate of the `n_neighbors` nearest cells, in the embedding
        `use_rep`, of the batches that have it; these alone make the fit and the target of the
        gene, which is not tested for a batch effect. Which (batch, gene) were imputed is in
        ``uns[key_added]["coefficients"]["imputed"]``; the status of the gene says so too.
    use_rep, n_neighbors
        With `impute_missing`: entry of ``obsm`` (batch-corrected coordinates), and number of
        neighbours among about 10,000 cells.
    compat
        ``"reference"``: all of the above as the released program has it: `lam_rule`, `marginal`,
        `match` ``"reference"``, `source_offset` ``"final"``, `target_offset` ``"median"``, a fit
        to all cells (``prop=0.1`` for its sample), 50 cells per batch and cluster at least.
        Of what it sets, values that are neither its own nor the defaults are refused.
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
        ``layers[key_added]`` holds integers (unsigned); ``uns[key_added]`` the parameters, the
        coefficients (with lambda, where there is one) as an xarray Dataset and the median depth,
        where cells are corrected to it; ``var[key_added + "_status"]`` what happened to a gene.

    Raises
    ------
    InputError
        If counts are negative, fractional or not finite; labels are missing; soft clusters are
        negative or do not sum to one; depths to correct to are not positive; keys or genes are
        unknown; parameters exclude each other. Nothing is written. Also if a rate without
        batches is 10,000 times above all observed ones (with ``marginal="reference"``, where
        this is common, such genes are left unchanged and named instead), if a batch whose median
        depth is wanted has no counts, or if a corrected count is beyond all bounds.
    PlanRefused
        If a block does not fit the workers.

    Warns
    -----
    StdistWarning
        If there is one batch only (the layer is a copy), if genes, cells or batches have no
        counts (they are passed through), if genes are left unchanged for another reason, if
        clusters are linked by chains of which not all were merged, or if a batch shares no
        cluster with another: its effect cannot be told from that of its clusters.

    Notes
    -----
    Fit: the mode under ``delta_b, gamma_kb ~ N(0, prior_sd**2)`` of Poisson counts with mean
    ``depth * exp(beta_0 + sum_k R_k beta_k + delta_b + sum_k R_k gamma_kb)`` (Millard et al.,
    Genome Biology 2025, equation 6, its random-effect reading), plus the effects of what is kept.
    Target: the mean over batches of ``beta_0 + beta_k + delta_b + gamma_kb``, with
    ``main_effects="drop"`` without ``delta_b``. Each batch has its share of the cluster's mass
    (cells with counts) as weight, as far as that lies in the middle half when batches are in the
    order of this sum: of four equal batches, one that is far from the others does not move it. The
    total of a gene's means stays within ``a = 1 - 0.3 / n_batches`` and ``1 / a`` of that with
    batches, over the cells fitted to or those sampled of all. Matching: exact
    randomised probability integral transform (equation 5): with F the Poisson distribution
    function of the source mean, u uniform and ``q = F(count - 1) + u (F(count) - F(count - 1))``,
    the corrected count is the smallest number whose distribution function under the target mean
    reaches q.

    Interval: the corrected count rises with u, so its values at ``u = (1 - interval) / 2`` and
    ``u = (1 + interval) / 2`` leave out at most ``(1 - interval) / 2`` on either side. It holds
    the randomness of the matching, not the error of the fit.

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
        keep=keep,
        keep_interactions=keep_interactions,
        prior_sd=prior_sd,
        cluster_penalty=cluster_penalty,
        lam=lam,
        lam_rule=lam_rule,
        penalize=penalize,
        fit_cells=fit_cells,
        prop=prop,
        min_cells=min_cells,
        merge_threshold=merge_threshold,
        main_effects=main_effects,
        marginal=marginal,
        source_offset=source_offset,
        target_offset=target_offset,
        match=match,
        margin=margin,
        cap_outliers=cap_outliers,
        interval=interval,
        skip_unaffected=skip_unaffected,
        quasi_poisson=quasi_poisson,
        skip_absent=skip_absent,
        impute_missing=impute_missing,
        use_rep=use_rep,
        n_neighbors=n_neighbors,
        compat=compat,
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
    for layer in (spec.key_added, f"{spec.key_added}_lower", f"{spec.key_added}_upper"):
        if layer == spec.key_added or spec.interval is not None:
            adata.layers[layer] = fresh.layers[layer]
    adata.uns[spec.key_added] = fresh.uns[spec.key_added]
    status = f"{spec.key_added}_status"
    if status in fresh.var:
        adata.var[status] = fresh.var[status].array
