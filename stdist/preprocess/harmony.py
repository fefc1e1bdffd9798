"""Harmony: batches mixed in an embedding by soft clusters and a ridge regression in each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stdist.methods.data import open_data
from stdist.methods.run import run_program
from stdist.preprocess.harmony_program import bind_harmony
from stdist.preprocess.harmony_spec import HarmonySpec


def harmony(
    data: Any,
    *,
    batch_key: str | list[str],
    use_rep: str = "X_pca",
    key_added: str = "X_pca_harmony",
    flavour: str = "harmony2",
    theta: list[float] | float = 2.0,
    sigma: float = 0.1,
    lamb: list[float] | float | None = None,
    tau: float = 0.0,
    n_clusters: int | None = None,
    max_iterations: int = 10,
    inner_rounds: int | None = None,
    epsilon_cluster: float | None = None,
    epsilon_harmony: float | None = None,
    update: str = "jacobi",
    damping: float | None = None,
    keep_clusters: str | None = None,
    clusters_dtype: str = "float32",
    rng: int = 0,
    client: Any = None,
    **options: Any,
) -> Path | None:
    """Remove batch effects from an embedding with Harmony.

    Cells are assigned softly to clusters, with a penalty on clusters in which batches are not
    represented by their share; a ridge regression in each cluster then moves the batches onto
    each other. Both steps alternate.

    Parameters
    ----------
    data
        Path of a store, or an AnnData (changed in place).
    batch_key
        Column of ``obs`` with the batches, or several columns.
    use_rep
        Entry of ``obsm``, ``(n_cells, n_dims)``.
    key_added
        Entry of ``obsm`` with the corrected float32 coordinates, ``(n_cells, n_dims)``.
        ``uns[key_added]`` holds ``params``, ``centroids`` ``(n_clusters, n_dims)``, ``levels``
        (``column:label``), ``observed`` and ``expected`` numbers of cells of each level in each
        cluster ``(n_levels, n_clusters)``, ``objective`` (at the start and after each iteration),
        ``inner_objective`` (at the start and after each inner round), ``rounds`` and
        ``converged``.
    flavour
        ``harmony2``: as harmonypy 2.1 and version 2 of the R package. ``harmony1``: as published
        in 2019, and by the versions before.
    theta
        Strength of the penalty, one number or one for each column; 0 switches it off.
    sigma
        Width of the soft clusters.
    lamb
        Ridge penalty, one number or one for each column. Default: 0.2 of the expected number of
        cells of a batch in a cluster (``harmony2``), or 1 (``harmony1``).
    tau
        Number of cells per cluster below which the penalty of a batch fades; 0 switches this off.
    n_clusters
        Number of clusters. Default: a thirtieth of the number of cells, at most 100.
    max_iterations
        Largest number of iterations.
    inner_rounds
        Rounds of clustering in each iteration. Default: 4 (``harmony2``), at most 20
        (``harmony1``).
    epsilon_cluster
        Relative change of the objective that ends the inner rounds, after five of them at least.
        Default: 1e-3 (``harmony2``), 1e-5 (``harmony1``).
    epsilon_harmony
        Relative change of the objective that ends the iterations. Default: 1e-2
        (``harmony2``), 1e-4 (``harmony1``).
    update
        ``jacobi``: all cells at once with a damped penalty, in parallel. ``blocks``: 5 % of the
        cells at a time, as the published programs; in one task that holds all cells.
    damping
        Share of the old penalty (its logarithm) that a round of ``jacobi`` keeps; raised where
        the objective rises. Default: theta / (2 + theta).
    keep_clusters
        Entry of ``obsm`` for the soft clusters, ``(n_cells, n_clusters)``, for
        `stdist.tl.crescendo`. Default: they are not kept.
    clusters_dtype
        ``float32`` or ``float16``.
    rng
        Seed of the initial centroids (k-means on 50,000 cells) and of the order of ``blocks``.
        Results do not depend on blocks of the store or on workers.
    client
        `distributed.Client`; default as in `stdist.tl.crescendo`.
    **options
        ``block_length``, ``overwrite``, ``progress``.

    Returns
    -------
    Path or None
        Folder of the run record, for a store.

    Raises
    ------
    InputError
        If a parameter is out of its range, the embedding is not dense or not finite, or a cell
        has no label.
    PlanRefused
        If ``update="blocks"`` does not fit the memory of one worker.

    Warns
    -----
    StdistWarning
        If all cells are of one batch; the embedding is then copied.

    Notes
    -----
    Soft clusters are not kept between passes: they are computed again from the corrected rows,
    the centroids and the penalties of batches in clusters. The damped form has the fixed points
    of the sequential one. A corrected row of length zero belongs to all clusters, by penalty
    only.

    References
    ----------
    Korsunsky et al., Fast, sensitive and accurate integration of single-cell data with Harmony,
    Nature Methods 16, 1289-1296 (2019). ``harmony2`` is the algorithm of the R package harmony
    2.0.

    Examples
    --------
    >>> import anndata
    >>> cells = np.random.default_rng(0).normal(size=(400, 2)) + [10.0, 0.0]
    >>> batch = np.repeat(["a", "b"], 200)
    >>> cells[batch == "b"] += [0.0, 5.0]
    >>> adata = anndata.AnnData(np.zeros((400, 1)), {"batch": batch}, obsm={"X_pca": cells})
    >>> harmony(adata, batch_key="batch", keep_clusters="clusters")
    >>> corrected = adata.obsm["X_pca_harmony"]
    >>> gap = corrected[batch == "b"].mean(axis=0) - corrected[batch == "a"].mean(axis=0)
    >>> bool(abs(gap[1]) < 1)
    True
    >>> adata.obsm["clusters"].shape
    (400, 13)

    The clusters are what Crescendo corrects counts with: ``pp.pca``, ``pp.harmony``, then
    ``tl.crescendo(data, batch_key="batch", clusters="clusters")``.
    """
    opened = open_data(data)
    spec = HarmonySpec(
        batch_key,
        use_rep,
        key_added,
        flavour,
        theta,
        sigma,
        lamb,
        tau,
        n_clusters,
        max_iterations,
        inner_rounds,
        epsilon_cluster,
        epsilon_harmony,
        update,
        damping,
        keep_clusters,
        clusters_dtype,
        rng,
    )
    return run_program(bind_harmony(opened, spec), opened, client=client, **options)
