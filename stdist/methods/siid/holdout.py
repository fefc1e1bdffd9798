"""How well SIID imputes genes that it was not shown, beside what must be beaten."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from stdist.cluster import executor_for
from stdist.graph import InProcess, choose_progress, run_in_memory, start
from stdist.kernels.keyed_random import stream_key, uniforms
from stdist.methods.data import AnnDataData, Data, open_data
from stdist.methods.run import check_free
from stdist.methods.siid.held_out import verdicts
from stdist.methods.siid.holdout_program import RESULT, FoldProgram
from stdist.methods.siid.holdout_results import (
    SCORES,
    SINGLE,
    fold_scores,
    keep,
    keeping_program,
    summarise,
)
from stdist.methods.siid.pair import Pair
from stdist.methods.siid.program import Bound
from stdist.methods.siid.spec import SiidSpec
from stdist.store import InputError, RunStopped, StdistWarning, Store


class HoldoutScores(NamedTuple):
    """What `siid_holdout` returns.

    ``scores``: one row per held-out gene and method, with its ``fold``. ``summary``: one row per
    method, means over the genes, and how it compares. ``notes``: what the user should know.
    """

    scores: pd.DataFrame
    summary: pd.DataFrame
    notes: list[str]


def siid_holdout(
    data: Any,
    *,
    spots: Any,
    n_factors: int,
    n_folds: int = 10,
    folds: Sequence[int] | None = None,
    fold_of_gene: Mapping[str, int] | None = None,
    controls: bool = True,
    n_neighbors: int = 10,
    key_added: str | None = "siid_holdout",
    rng: int = 0,
    client: Any = None,
    block_length: int | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
    **options: Any,
) -> HoldoutScores:
    """Score the imputation of SIID on genes of the panel that it is not shown.

    The genes that both slides have are split into folds. For each fold, `stdist.tl.siid` is
    fitted without these genes' counts in the cells, and its imputation is compared with them.

    Parameters
    ----------
    data
        Cells: path of a store, a lazy AnnData of `stdist.io.open`, or an AnnData.
    spots
        Spots: the same.
    n_factors
        Number of factors of the fits.
    n_folds
        Number of folds, as equal in size as possible.
    folds
        Numbers of the folds to run; default: all.
    fold_of_gene
        Fold of each gene by name, instead of `n_folds` drawn ones. A gene without a fold is never
        held out.
    controls
        Whether the baselines, and the same fit with the spots permuted over their places, are
        scored too: about twice the time.
    n_neighbors
        Cells in the baselines that average over neighbours, the cell itself among them.
    key_added
        ``uns[key_added]`` of the cells: parameters, scores, summary and notes, all at once at the
        end; None: nowhere. The report of a fit with the key ``siid`` shows ``siid_holdout``.
    rng
        Seed of the folds, the fits and the permutation.
    client, block_length, progress
        As of `stdist.tl.siid`.
    overwrite
        Replace existing scores.
    **options
        Other parameters of `stdist.tl.siid` on the fit and on where the data are: ``layer``,
        ``transform``, ``n_solutions``, ``passes``, ``sample_cells`` ...

    Returns
    -------
    HoldoutScores
        ``scores`` has the columns ``fold``, ``gene``, ``method``, ``r2`` (squared Pearson
        correlation between imputed means and counts over all cells; 0 where one is constant),
        ``pearson``, ``ssim`` (structural similarity of both divided by their maxima), ``rmse``
        (of z-scores) and ``symmetrised_kl`` (nat, of both as distributions over the cells; NaN
        without counts; called "js" in the SIID release).

        ``summary`` has one row per method: number of ``genes``, means of the scores, ``advantage``
        (mean R2 of ``siid`` minus that of the method), ``seed_range`` (of the two fits: largest
        minus smallest mean R2 of their single solutions in a fold, mean over the folds), and
        ``beaten``: whether the advantage exceeds the seed range of ``siid``.

        Methods: ``siid``; ``permuted``, the same fit with the counts of each spot at the place of
        another; ``A``, counts of the cell's spot; ``B``, the same scaled to the total of the cell
        over the genes that are shown; ``C_...`` and ``D_...``, means of A and B over the
        `n_neighbors` nearest cells in log ``expression`` or ``space``; ``total``, the cell's
        total alone.

    Raises
    ------
    InputError
        As of `stdist.tl.siid`; or if folds are none of the shared genes'.

    Warns
    -----
    StdistWarning
        If a control is not beaten, or the scores could not be kept in the store.

    Notes
    -----
    A fold leaves its sums in a temporary folder beside the store of the cells; they come from tiles
    of cells, so no matrix of cells and genes is held. Neighbours are looked for, and scored, among
    at most about ``sample_cells`` cells: whole tiles of spots, all of them in small data.

    Baselines A to D and the scores are those of SIID (Genome Research 2025, doi
    10.1101/gr.280555.125). The paper does not say what its neighbours are near in. That the
    permuted fit is nearly as good is to be expected: held-out profiles come mostly from genes that
    vary together across spots, so these scores must not be used to judge a registration.

    Examples
    --------
    >>> found = siid_holdout("xenium.zarr", spots="visium.zarr", n_factors=15)  # doctest: +SKIP
    >>> found.summary[["r2", "beaten"]]  # doctest: +SKIP
    """
    if "held_out" in options:
        raise _wrong("held_out", options["held_out"], "leave it out: folds say what is held out")
    cells, above = open_data(data), open_data(spots)
    common = {"n_factors": n_factors, "rng": rng, "deconvolve": False, **options}
    everything = Pair(cells, above, SiidSpec(**common))
    genes_of = _chosen_folds(everything, n_folds, folds, fold_of_gene, rng)
    if n_neighbors < 1:
        raise _wrong("n_neighbors", n_neighbors, "give at least 1")
    given = {
        "n_factors": n_factors,
        "n_folds": n_folds if fold_of_gene is None else None,
        "folds": list(genes_of),
        "controls": controls,
        "n_neighbors": n_neighbors,
        "rng": rng,
        **options,
    }
    keeping = (
        None if key_added is None else keeping_program(cells, str(above.path), key_added, given)
    )
    if keeping is not None:
        check_free(keeping, cells, overwrite)
    notes = [*everything.notes, *(_sampled(everything) if controls else [])]
    tables, ranges = [], []
    with _runner(cells, client, block_length, progress) as run:
        for fold, genes in genes_of.items():
            pair = Pair(cells, above, SiidSpec(**common, held_out=genes))
            fits = [FoldProgram(pair, controls=controls, n_neighbors=n_neighbors)]
            if controls:
                fits.append(FoldProgram(pair, controls=False, permuted=True))
            for fit in fits:
                found = fold_scores(run(fit), fit, genes)
                single = found["method"].str.startswith(SINGLE)
                means = found[single].groupby("method")["r2"].mean()
                method = "permuted" if fit.permuted else "siid"
                ranges.append((method, means.max() - means.min()))
                tables.append(found[~single].assign(fold=fold))
    scores = pd.concat(tables, ignore_index=True)[["fold", "gene", "method", *SCORES]]
    summary = summarise(scores, pd.DataFrame(ranges, columns=["method", "range"]))
    notes += verdicts(summary)
    if keeping is not None:
        notes += keep(keeping, cells, scores, summary, notes, overwrite)
    for note in notes:
        warnings.warn(note, StdistWarning, stacklevel=2)
    return HoldoutScores(scores, summary, notes)


def _chosen_folds(
    pair: Pair,
    n_folds: int,
    folds: Sequence[int] | None,
    fold_of_gene: Mapping[str, int] | None,
    rng: int,
) -> dict[int, list[str]]:
    """Genes of the folds to run, in the order of the panel."""
    shared = [str(name) for name in pair.genes]
    if fold_of_gene is None:
        if not 2 <= n_folds <= len(shared):
            raise _wrong("n_folds", n_folds, f"give 2 to {len(shared)}, the number of genes")
        drawn = np.argsort(uniforms(stream_key(rng, "siid folds", 0), 0, len(shared)))
        parts = np.array_split(drawn, n_folds)
        fold_of_gene = {shared[at]: fold for fold, part in enumerate(parts) for at in part}
    absent = sorted(set(map(str, fold_of_gene)) - set(shared))
    if absent:
        raise InputError(
            "gene-absent",
            f"{len(absent)} genes with a fold are not in both slides, first {absent[0]!r}",
            place="fold_of_gene",
            remedy="give folds of genes that cells and spots share",
        )
    fold_of = {str(name): int(fold) for name, fold in fold_of_gene.items()}
    known = sorted(set(fold_of.values()))
    try:
        wanted = known if folds is None else [int(fold) for fold in folds]
    except ValueError:
        raise _wrong("folds", folds, f"give some of {known}") from None
    if not wanted or not set(wanted) <= set(known):
        raise _wrong("folds", folds, f"give some of {known}")
    return {fold: [name for name in shared if fold_of.get(name) == fold] for fold in wanted}


def _wrong(name: str, value: Any, remedy: str) -> InputError:
    return InputError(
        "parameter-range", f"{name} is {value!r}", place="siid_holdout", remedy=remedy
    )


@contextmanager
def _runner(
    cells: Data, client: Any, block_length: int | None, progress: bool | None
) -> Iterator[Any]:
    """Give a function that runs a fold where the cells are, and returns its sums."""
    if isinstance(cells, AnnDataData):
        yield lambda fit: run_in_memory(fit.program(), InProcess())[RESULT]
        return
    assert cells.path is not None
    with (
        _folder_beside(cells.path) as folder,
        executor_for(client, cells.n_obs) as executor,
    ):

        def run(fit: FoldProgram) -> Any:
            target = folder / f"fold{len(list(folder.glob('fold*.zarr')))}.zarr"
            try:
                start(
                    fit.program(target),
                    executor,
                    block_length=block_length,
                    progress=choose_progress(progress),
                )
            except RunStopped as error:
                remedy = "remove the cause and call again: a fold that stopped is not kept"
                raise RunStopped(
                    error.code, error.thing, place=error.place, remedy=remedy
                ) from error
            return Store(target).uns(RESULT.partition("/")[2])

        yield run


@contextmanager
def _folder_beside(store: Path) -> Iterator[Path]:
    """Make a folder for the time of the call, where all workers see it."""
    try:
        folder = TemporaryDirectory(
            dir=store.parent, prefix=f".{store.name}.holdout-", ignore_cleanup_errors=True
        )
    except OSError as error:
        raise InputError(
            "output-unwritable",
            f"cannot make a temporary folder there ({error.strerror})",
            place=str(store.parent),
            remedy="choose a folder with write permission and free space",
        ) from error
    with folder as name:
        yield Path(name)


def _sampled(pair: Pair) -> list[str]:
    """Say so where neighbours are looked for in a sample."""
    n_cells = pair.cells.n_obs
    if Bound(pair).every == 1:
        return []
    return [
        f"[baselines-sampled] neighbours are looked for, and scored, among about "
        f"{pair.spec.sample_cells} of {n_cells} cells"
    ]
