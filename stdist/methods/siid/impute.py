"""Imputed means of genes, written to the data or computed when a chunk is looked at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stdist.cluster import executor_for
from stdist.graph import InProcess, Program, run_in_memory
from stdist.methods.data import AnnDataData, StoreData, open_data
from stdist.methods.run import run_program
from stdist.methods.siid.impute_model import FittedFactors, fitted_factors, wanted_genes
from stdist.methods.siid.impute_program import impute_program, table_stages

if TYPE_CHECKING:
    import dask.array

GENES_OF_CHUNK = 512


def build_siid_impute(
    data: str,
    spots: str | None = None,
    genes: list[str] | None = None,
    key: str = "siid",
    key_added: str = "imputed",
    *,
    confidence: bool = False,
) -> Program:
    """Build the program of a recorded run."""
    above = None if spots is None else StoreData(spots)
    return impute_program(StoreData(data), above, genes, key, key_added, confidence=confidence)


def siid_impute(
    data: Any,
    *,
    genes: list[str] | None = None,
    spots: Any = None,
    key: str = "siid",
    key_added: str = "imputed",
    confidence: bool = False,
    client: Any = None,
    block_length: int | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> Path | None:
    """Impute genes in cells from the factors of `stdist.tl.siid`.

    The imputed mean of a gene is the average over the solutions of the product of the cell's
    loadings with the gene's profile.

    Parameters
    ----------
    data
        Cells: path of a store, a lazy AnnData of `stdist.io.open`, or an AnnData.
    genes
        Genes to impute; default: all of the model. Others need `spots`.
    spots
        Spots that the model was fitted with, for genes outside the model, down to the whole
        transcriptome, and for `confidence`.
    key
        `key_added` of the fit.
    key_added
        ``obsm[key_added]``: imputed means ``(n_cells, n_genes)`` float32, genes in the order of
        ``uns[key_added]["genes"]``, a data frame with the ``scale`` of each gene: "cells" for the
        panel, "spots" for all others, because no platform factor is known for them; ``["notes"]``:
        what the fit tells of how well it imputes genes held out, beside its controls.
    confidence
        Whether standard errors are wanted: ``obsm[key_added + "_sd"]``, float32, same shape.
    client
        `distributed.Client`; default as in `stdist.tl.crescendo`.
    block_length
        Rows per block.
    overwrite
        Replace existing results.
    progress
        Show progress; default: on a terminal.

    Returns
    -------
    Path or None
        Folder of the run record, for a store.

    Raises
    ------
    InputError
        If `key` holds no fit, a gene is neither in the model nor in the spots, or spots are needed
        and not given.

    Notes
    -----
    A gene outside the model is regressed on the spots, in each solution: with the factors Q and
    platform factors phi fixed, loadings B of a spot maximise the Poisson likelihood of its counts
    with means ``phi_g (B Q)_g``; the gene's profile q that of its counts with means ``B q``. Both
    are convex.

    The variance of the imputed mean of gene g in cell i with the loadings l is ::

        W + V,   W = mean over solutions of  sum_k l_ik^2 q_kg / (a_k [g in panel] + phi_g b_k)
                                           + sum_k l_ik q_kg^2 / (sum over the panel of Q_kg)
                 V = variance over solutions of  sum_k l_ik q_kg

    with a and b the sums of the loadings over cells and over spots. The first sum is the inverse
    Fisher information of the profile, ``D_kg / q_kg^2`` with ``D_kg`` the counts of gene g that
    factor k explains; the second that of the cell's loadings from its own counts. Both take as
    known which factor a count comes from, so W is a lower bound; V shows how far equally good
    solutions differ. Errors of the platform factor, of the model and of counts are not in it. On
    simulated pairs true errors are 1.3 (panel) to 1.5 times (other genes) the stated ones.

    Examples
    --------
    >>> siid_impute("xenium.zarr", genes=["CD4"], spots="visium.zarr")  # doctest: +SKIP
    """
    opened = open_data(data)
    above = None if spots is None else open_data(spots)
    program = impute_program(opened, above, genes, key, key_added, confidence=confidence)
    return run_program(
        program,
        opened,
        client=client,
        block_length=block_length,
        progress=progress,
        overwrite=overwrite,
    )


def imputed_layer(
    data: Any,
    *,
    genes: str | Sequence[str] | None = None,
    spots: Any = None,
    key: str = "siid",
    client: Any = None,
) -> dask.array.Array:
    """Imputed means of genes as a Dask array: computed chunk by chunk, never written.

    Parameters
    ----------
    data, spots, key, client
        As in `siid_impute`; profiles of genes outside the model are computed at once.
    genes
        Genes, one column each; default: all of the model.

    Returns
    -------
    dask.array.Array
        ``(n_cells, n_genes)`` float32, what `siid_impute` writes up to rounding.

    Raises
    ------
    InputError
        As `siid_impute`.

    Examples
    --------
    >>> adata = stdist.io.open("xenium.zarr")  # doctest: +SKIP
    >>> adata.obsm["imputed"] = imputed_layer(adata, genes=["CD4", "CD8A"])  # doctest: +SKIP
    """
    import dask.array

    opened = open_data(data)
    factors = fitted_factors(opened, key)
    profile = gene_profile(data, factors, genes, spots, client)
    if isinstance(opened, AnnDataData):
        loadings = dask.array.asarray(opened.adata.obsm[key])
    else:
        from stdist.store.lazy import lazy_array

        loadings = lazy_array(opened.store.element(f"obsm/{key}"))
    by_gene = dask.array.from_array(profile, chunks=(-1, GENES_OF_CHUNK))
    return dask.array.blockwise(
        _product, "cg", loadings, "ck", by_gene, "kg", dtype=np.float32, concatenate=True
    )


def gene_profile(
    data: Any,
    factors: FittedFactors,
    genes: str | Sequence[str] | None,
    spots: Any = None,
    client: Any = None,
) -> np.ndarray:
    """Profiles of genes in all solutions, ``(n_solutions * n_factors, n_genes)`` float64."""
    above = None if spots is None else open_data(spots)
    wanted = wanted_genes(factors, above, genes)
    stages = table_stages(factors, wanted, above, confidence=False)
    program = Program("profiles", tuple(stages), results=lambda values: values["table"])
    if above is None or isinstance(above, AnnDataData) or not wanted.outside:
        found = run_in_memory(program, InProcess())
    else:
        with executor_for(client, above.n_obs) as executor:
            found = run_in_memory(program, executor)
    profile: np.ndarray = found["profile"]
    return profile.reshape(-1, profile.shape[-1])


def _product(loadings: np.ndarray, profile: np.ndarray) -> np.ndarray:
    return (np.asarray(loadings, np.float64) @ profile).astype(np.float32)
