"""How well SIID imputes genes that it was not shown, beside what must be beaten."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pandas as pd

from stdist.cluster import executor_for
from stdist.graph import (
    InProcess,
    Program,
    RunRecord,
    choose_progress,
    plain,
    resume,
    run_in_memory,
    unfinished,
)
from stdist.methods.data import AnnDataData, StoreData, open_data
from stdist.methods.run import run_program
from stdist.methods.siid.holdout_program import holdout_program
from stdist.methods.siid.holdout_results import kept_tables
from stdist.methods.siid.spec import number_of_factors
from stdist.store import InputError, RunStopped, StdistWarning, Store

NOWHERE = "holdout"
"""Key of scores that are not kept."""


class HoldoutScores(NamedTuple):
    """What `siid_holdout` returns.

    ``scores``: one row per held-out gene and method, with its ``fold``. ``summary``: one row per
    method, means over the genes, and how it compares. ``notes``: what the user should know.
    ``types``: where proportions are given, the divergence of those found in each fold.
    """

    scores: pd.DataFrame
    summary: pd.DataFrame
    notes: list[str]
    types: pd.DataFrame | None = None


def siid_holdout(
    data: Any,
    *,
    spots: Any,
    n_factors: int | None = None,
    n_folds: int = 10,
    folds: Sequence[int] | None = None,
    fold_of_gene: Mapping[str, int] | None = None,
    controls: bool = True,
    n_neighbors: int = 10,
    proportions: str | None = None,
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
        Number of factors of the fits; default: 20.
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
    proportions
        Entry of the spots' ``obsm``, ``(n_spots, n_types)``, with shares or counts of types that
        are known: then types are told in every fold, too, and compared with them (see ``types``).
        Rows of zeros, or with a NaN, take no part. `n_factors` should be the number of types: what
        one side has more meets zeros.
    key_added
        ``uns[key_added]`` of the cells: parameters, scores, summary, notes and types, all at once
        at the end; None: nowhere. The report of a fit with the key ``siid`` shows ``siid_holdout``.
    rng
        Seed of the folds, the fits and the permutation.
    client, block_length, progress
        As of `stdist.tl.siid`.
    overwrite
        Replace existing scores.
    **options
        Other parameters of `stdist.tl.siid` on the fit and on where the data are: ``layer``,
        ``transform``, ``n_solutions``, ``passes``, ``sample_cells`` ... ``convergence_passes``,
        ``entropy`` and ``entropy_passes`` matter with `proportions` only.

    Returns
    -------
    HoldoutScores
        ``scores`` has the columns ``fold``, ``gene``, ``method``, ``r2`` (squared Pearson
        correlation between imputed means and counts over all cells; 0 where one is constant),
        ``pearson``, ``ssim`` (structural similarity of both divided by their maxima), ``rmse``
        (of z-scores), ``js`` (Jensen-Shannon divergence, nat, of both as distributions over the
        cells; NaN without counts or means) and ``symmetrised_kl`` (the mean of their two
        Kullback-Leibler divergences, called "js" in the SIID release).

        ``summary`` has one row per method: number of ``genes``, means of the scores (of those that
        every method has for a gene: a divergence may be NaN), ``advantage`` (mean R2 of ``siid``
        minus that of the method), ``standard_error`` (of this over the genes), ``seed_range`` (of
        the two fits: largest minus smallest mean R2 of their single solutions in a fold, mean over
        the folds), and ``beaten``: whether the advantage exceeds the seed range of ``siid`` and two
        standard errors (without bound for one gene).

        Methods: ``siid``; ``permuted``, the same fit with the counts of each spot at the place of
        another; ``A``, counts of the cell's spot; ``B``, the same scaled to the total of the cell
        over the genes that are shown; ``C_...`` and ``D_...``, means of A and B over the
        `n_neighbors` nearest cells in log ``expression`` or ``space``; ``total``, the cell's
        total alone.

        ``types``, with `proportions`, has the columns ``fold``, ``assignment`` (``soft``, or
        ``hard`` where each cell is of its most probable type), ``js`` (mean over the spots of the
        Jensen-Shannon divergence, nat, after factors are matched to types by the Hungarian
        algorithm, see `stdist.metrics.matched_js`) and ``n_spots``.

    Raises
    ------
    InputError
        As of `stdist.tl.siid`; or if folds are none of the shared genes', or known proportions are
        no table, negative or infinite.

    Warns
    -----
    StdistWarning
        If `n_factors` is not given, or a control is not beaten.

    Notes
    -----
    On a store with `key_added` the hold-out is one recorded run: ``stdist plan siid_holdout`` tells
    what it needs, and one that was stopped goes on, from its last pass, with ``stdist resume`` or
    where it is called again with the same parameters.

    Scores come from sums over tiles of cells, so no matrix of cells and genes is held. Neighbours
    are looked for, and scored, among at most about ``sample_cells`` cells: whole tiles of spots,
    all of them in small data. With several spots per cell the baselines know the nearest only.

    Baselines A to D and the scores are those of SIID (Genome Research 2025, doi
    10.1101/gr.280555.125). The paper does not say what its neighbours are near in. That the
    permuted fit is nearly as good is to be expected: held-out profiles come mostly from genes that
    vary together across spots, so these scores must not be used to judge a registration.

    Examples
    --------
    >>> found = siid_holdout("xenium.zarr", spots="visium.zarr", n_factors=15)  # doctest: +SKIP
    >>> found.summary[["r2", "beaten"]]  # doctest: +SKIP
    """
    chosen = {"n_factors": number_of_factors(n_factors), "n_folds": n_folds, "folds": folds}
    chosen |= {"fold_of_gene": fold_of_gene, "controls": controls, "n_neighbors": n_neighbors}
    chosen |= {"proportions": proportions, "rng": rng, **options}
    cells, above = open_data(data), open_data(spots)
    where = {"client": client, "block_length": block_length, "progress": progress}
    if key_added is not None:
        program = holdout_program(cells, above, key_added, **chosen)
        if not isinstance(cells, AnnDataData) and _waits(program):
            with executor_for(client, cells.n_obs) as executor:
                resume(cells.path, lambda *_: program, executor, progress=choose_progress(progress))
        else:
            run_program(program, cells, overwrite=overwrite, **where)
        found = cells.uns(key_added)
    elif isinstance(cells, AnnDataData):
        program = holdout_program(cells, above, NOWHERE, **chosen)
        found = run_in_memory(program, InProcess())[f"uns/{NOWHERE}"]
    else:
        with _folder_beside(cells.path) as folder:
            target = folder / "scores.zarr"
            program = holdout_program(cells, above, NOWHERE, target=target, **chosen)
            try:
                run_program(program, cells, **where)
            except RunStopped as error:
                remedy = "remove the cause and call again, with key_added to go on where it stopped"
                raise RunStopped(
                    error.code, error.thing, place=error.place, remedy=remedy
                ) from error
            found = Store(target).uns(NOWHERE)
    scores = HoldoutScores(*kept_tables(found))
    for note in scores.notes:
        warnings.warn(note, StdistWarning, stacklevel=2)
    return scores


def build_siid_holdout(
    data: str,
    spots: str,
    key_added: str = "siid_holdout",
    n_factors: int | None = None,
    **parameters: Any,
) -> Program:
    """Build the program of a recorded run."""
    chosen = {"n_factors": number_of_factors(n_factors), **parameters}
    return holdout_program(StoreData(data), StoreData(spots), key_added, **chosen)


def _waits(program: Program) -> bool:
    """Tell whether a hold-out with these parameters was stopped."""
    wanted = json.loads(json.dumps(program.parameters, default=plain))
    facts = [RunRecord(folder).read_json("run.json") for folder in unfinished(program.target)]
    return [(one["program"], one["parameters"]) for one in facts] == [(program.name, wanted)]


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
