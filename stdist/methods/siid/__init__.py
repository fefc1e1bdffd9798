"""SIID: imputation and deconvolution of a pair of slides (Genome Research 2025)."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from stdist.graph import Program
from stdist.methods.data import StoreData, open_data
from stdist.methods.run import run_program
from stdist.methods.siid.check import checked
from stdist.methods.siid.edges import EdgeBound
from stdist.methods.siid.impute_model import fit_entry
from stdist.methods.siid.pair import Pair
from stdist.methods.siid.program import Bound, siid_program
from stdist.methods.siid.spec import SiidSpec, number_of_factors
from stdist.store import StdistWarning

__all__ = ["SiidSpec", "build_siid", "siid"]


def build_siid(data: str, spots: str, n_factors: int | None = None, **parameters: Any) -> Program:
    """Build the program of a recorded run."""
    spec = SiidSpec(n_factors=number_of_factors(n_factors), **parameters)
    return _program(Pair(StoreData(data), StoreData(spots), spec))


def _program(pair: Pair) -> Program:
    bound = EdgeBound if pair.spec.n_spots_per_cell > 1 else Bound
    return checked(siid_program(pair, bound), pair, bound)


def siid(
    data: Any,
    *,
    spots: Any,
    n_factors: int | None = None,
    layer: str | None = None,
    spots_layer: str | None = None,
    spatial_key: str = "spatial",
    spots_spatial_key: str = "spatial",
    transform: list[float] | None = None,
    max_distance: float = 100.0,
    n_spots_per_cell: int = 1,
    held_out: list[str] | None = None,
    controls: bool = True,
    deconvolve: bool = True,
    n_solutions: int = 6,
    n_restarts: int = 8,
    sample_cells: int = 10_000,
    passes: int = 20,
    updates_per_pass: int = 1,
    convergence_passes: int = 500,
    entropy: float = 20.0,
    entropy_passes: int = 100,
    solver: str = "em",
    learning_rate: float = 0.05,
    epochs: int = 5001,
    entropy_schedule: float = 1000.0,
    spots_model: str = "poisson",
    spot_scale: str = "free",
    platform_scaling: bool = True,
    shrink: bool = True,
    l2: float | None = None,
    key_added: str = "siid",
    rng: int = 0,
    client: Any = None,
    block_length: int | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> Path | None:
    """Impute the genes of spots in cells, and tell the cell types of spots.

    Counts of cells (a small panel) and of the spots above them (more genes) are factorised
    together: cell i has n_i (P Q)_ig counts of the panel's gene g, spot j phi_g sum_i m_i (P Q)_ig
    over its cells.

    Parameters
    ----------
    data
        Cells: path of a store, a lazy AnnData of `stdist.io.open`, or an AnnData.
    spots
        Spots: the same.
    n_factors
        Number of factors (cell types or programs); default: 20.
    layer, spots_layer
        Layers with raw counts; default ``X``.
    spatial_key, spots_spatial_key
        Entries of ``obsm`` with x and y in one frame, in um.
    transform
        Matrix ``(3, 3)`` that brings the spots into the frame of the cells, as nine numbers.
    max_distance
        A cell farther from every spot has none, in um.
    n_spots_per_cell
        Up to 4 spots within `max_distance` that a cell is counted in, the nearest first, with a
        size of its own in each. With more than 1, sums of spots go through all workers, and a
        pass is one step of the rows instead of three: there are three times as many.
    held_out
        Genes that are taken from the panel: imputed, to be compared with what was measured.
        ``uns[key_added]["held_out"]`` has the R2 of each, of single solutions and of controls.
    controls
        Whether the best of as many restarts with the spots permuted over their places is among
        these controls, fitted with the same settings: to be compared with ``solution 0``. Without
        `held_out`, whether a tenth of the genes of the panel (of a small one two or three, one of
        two genes), drawn by `rng`, is held out of a second fit and scored in the same way, in
        ``uns[key_added]["check"]``. It has the same parameters without `deconvolve`, and as many
        factors as genes are left, if these are fewer.
    deconvolve
        Whether proportions of types in the spots are wanted: a fit of its own, longer and hardened.
    n_solutions
        Fits whose imputations are averaged.
    n_restarts
        Starts on a sample of the tiles, each from clusters of its cells; the best are taken.
    sample_cells
        Cells in that sample.
    passes
        Passes over all cells in a fit for imputation.
    updates_per_pass
        Updates of the factors in a pass, each after another part of the cells: incremental EM
        (see Notes), by which fewer passes reach the same loss. A part has a tile or more.
    convergence_passes
        Largest number of passes before hardening.
    entropy
        Strength with which types of a cell are made exclusive at the end, in nats per cell.
    entropy_passes
        Passes with it.
    solver
        ``"em"``: exact EM steps, best restarts of a sample. ``"adam"``: the published optimiser,
        for comparison: `n_restarts` runs of Adam over all cells, of which the `n_solutions` with
        the lowest loss are averaged and the best one gives the types (3 and 1 in the paper).
        `sample_cells`, passes, `entropy`, `spots_model`, `spot_scale` and `shrink` are EM's.
    learning_rate, epochs
        Of Adam: constant, full batch.
    entropy_schedule
        Of Adam: epochs in which the weight of the mean entropy of cells grows e-fold, from 1 and
        in stairs of 100 epochs (in the paper 1000 to impute, 500 to deconvolve).
    spots_model
        Counts of the spots: ``"poisson"``, or ``"negative_binomial"`` with a dispersion a_g of
        each gene that is fitted too, of variance ``mean + a_g mean^2``.
    spot_scale
        ``"free"``: every cell has a size m_i of its own among the counts of its spot. ``"tied"``:
        m_i = s_j n_i with one scale s_j for the spot, so that positions count. Imputation then
        needs a good registration and is worse without; with free sizes it hardly needs any.
    platform_scaling
        Whether genes of the panel have a factor between the slides.
    shrink
        Whether profiles are drawn towards their mean, as far as counts are few, in the fits that
        impute (see Notes).
    l2
        Weight of the squared logits and logarithms of all parameters; default: 0, with Adam 1e-5
        as in the paper.
    key_added
        ``obsm[key_added]``: loadings ``(n_cells, n_solutions * n_factors)`` float32, whose product
        with the profiles of all solutions is the imputation; ``obsm[key_added + "_types"]``:
        probabilities of types; ``obsm[key_added + "_spot_size"]`` ``(n_cells, n_solutions)`` and
        ``obsm[key_added + "_types_size"]`` ``(n_cells, 2)``: sizes m, and n and m in the fit of
        the types (`stdist.tl.siid_factors` gives all of it with named dimensions);
        ``obs[key_added + "_spot"]``: number of the spot, -1 without;
        with several spots per cell ``obsm[key_added + "_edge_spot"]``: their numbers, nearest
        first, -1 for none, and ``"_edge_size"``: the cell's size m in each, float32 of the same
        shape ``(n_cells, n_spots_per_cell)``, in the mean of the solutions;
        ``"_types_edge_size"``: the same in the fit of the types;
        ``uns[key_added]["factors"]``: profiles, platform factors, losses, proportions of spots,
        dispersions and tied scales where they were fitted.
    rng
        Seed.
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
        If the slides share no gene, coordinates are in different frames, counts are not counts or
        a slide has none of the shared genes, or there are more factors than spots, cells or genes
        of the panel.

    Warns
    -----
    StdistWarning
        If `n_factors` is not given, cells are without a spot, or a control is as good as the
        imputation of genes held out: this is not better in mean R2 by more than single solutions
        differ and than two standard errors over the genes.

    Notes
    -----
    The model is that of SIID (Genome Research 2025, doi 10.1101/gr.280555.125); by default it is
    fitted by exact EM steps on tiles of spots with all their cells. Losses of Adam contain, as
    published, 18.4 for every count of a spot without cells.

    With several updates in a pass, statistics of every part of the cells are kept as of its last
    visit, and the factors follow from their sum (Neal and Hinton 1998). A visit reads the blocks
    with tiles of its part only. The statistics of a part are over-relaxed, by 1.5 at most in
    logarithms, until the loss of a part rises. The loss of a pass is that of the parts as each was
    visited.

    A gene that only the spots count has few counts for each factor, and its profile is noisy. With
    `shrink`, profiles have a gamma prior in the fits that impute: D counts of gene g that factor k
    explains, where a profile of 1 would have made r, give ::

        Q_kg = (D_kg + s) / (r_kg + s / q_g),   1 / s = mean over the panel of var_k(Q_kg) / q_g^2

    with the mean profile q over the factors, and genes weighted by it. How much profiles differ
    between factors is learnt from the panel, whose profiles the cells make certain.

    Examples
    --------
    >>> siid("xenium.zarr", spots="visium.zarr", n_factors=15)  # doctest: +SKIP
    """
    spec = SiidSpec(
        n_factors=number_of_factors(n_factors),
        layer=layer,
        spots_layer=spots_layer,
        spatial_key=spatial_key,
        spots_spatial_key=spots_spatial_key,
        transform=transform,
        max_distance=max_distance,
        n_spots_per_cell=n_spots_per_cell,
        held_out=held_out,
        controls=controls,
        deconvolve=deconvolve,
        n_solutions=n_solutions,
        n_restarts=n_restarts,
        sample_cells=sample_cells,
        passes=passes,
        updates_per_pass=updates_per_pass,
        convergence_passes=convergence_passes,
        entropy=entropy,
        entropy_passes=entropy_passes,
        solver=solver,
        learning_rate=learning_rate,
        epochs=epochs,
        entropy_schedule=entropy_schedule,
        spots_model=spots_model,
        spot_scale=spot_scale,
        platform_scaling=platform_scaling,
        shrink=shrink,
        l2=l2,
        key_added=key_added,
        rng=rng,
    )
    opened = open_data(data)
    folder = run_program(
        _program(Pair(opened, open_data(spots), spec)),
        opened,
        client=client,
        block_length=block_length,
        progress=progress,
        overwrite=overwrite,
    )
    for note in np.atleast_1d(fit_entry(opened, key_added)["notes"]):
        if str(note).startswith("[control-"):
            warnings.warn(str(note), StdistWarning, stacklevel=2)
    return folder
