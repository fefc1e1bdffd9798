"""What a report of SIID has beside the usual sections: genes, spots, losses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stdist.graph import Each, Program, Reduce, run_folders
from stdist.kernels.imputation_scores import gene_scores, merge_score_sums, score_sums
from stdist.kernels.moments import dense_rows
from stdist.methods.data import Data, StoreData
from stdist.methods.siid.impute_model import FittedFactors, fitted_factors
from stdist.methods.siid.spec import ROUNDS
from stdist.plots.passes import run_pass
from stdist.plots.siid import fit_losses, spot_proportions
from stdist.plots.siid_maps import imputed_maps
from stdist.preprocess.bound import TileWorkspace
from stdist.report import html
from stdist.report.genes import N_DRAWN
from stdist.report.run import RunFacts
from stdist.report.siid_controls import controls, of_the_holdout
from stdist.store import InputError

ROWS = 20
FLOAT = 8
Section = tuple[str, str]


def siid_sections(
    run: RunFacts, genes: Sequence[str] | None, pictures: bool, client: Any
) -> list[Section]:
    """Return the sections of a finished fit, or of the fit that a run imputes from or scores."""
    facts = _fit(run)
    if facts is None and run.program == "siid_holdout" and run.finished and run.data is not None:
        key = str(run.parameters["key_added"])
        if "scores" not in run.written:
            return []
        return [("Against simple controls", of_the_holdout(run.data, key, run.written, pictures))]
    if facts is None or facts.data is None or not facts.written:
        return []
    key = facts.parameters["key_added"]
    table = imputed_genes(facts.data, key, facts.parameters["layer"], client)
    chosen = [genes] if isinstance(genes, str) else list(genes or telling(table))
    return [
        ("Imputed genes", _genes(facts, table, chosen, pictures, client)),
        ("Against simple controls", controls(facts, pictures)),
        ("Types in the spots", _types(facts, pictures)),
        ("Losses", _losses(facts, pictures)),
    ]


def _fit(run: RunFacts) -> RunFacts | None:
    """Find the run that fitted the factors: this one, or the newest of their key."""
    if not run.finished:
        return None
    if run.program == "siid":
        return run
    key = {
        "siid_impute": run.parameters.get("key"),
        "siid_holdout": str(run.parameters.get("key_added")).removesuffix("_holdout"),
    }.get(run.program)
    fits = [RunFacts(folder) for folder in run_folders(run.store)] if key else []
    of_key = [fit for fit in fits if fit.program == "siid" and fit.finished
              and fit.parameters["key_added"] == key]  # fmt: skip
    return of_key[-1] if of_key else None


def imputed_genes(data: Data, key: str, layer: str | None, client: Any) -> pd.DataFrame:
    """Compare imputed means with counts, gene by gene, in one pass.

    Returns
    -------
    pandas.DataFrame
        Genes of the model that the cells have: ``held_out``; ``counts`` and ``variance`` of the
        measured counts; ``r2`` of the imputed means with them; ``r2_total``, what the total of
        the cell over the panel alone reaches.
    """
    factors = fitted_factors(data, key)
    number = {str(name): column for column, name in enumerate(data.var_names)}
    known = np.array([name in number for name in factors.genes])
    names, in_panel = factors.genes[known], factors.in_panel[known]
    n_genes = len(names)
    found = run_pass(_program(data, factors, known, number, layer), data, client)
    scores = gene_scores(found)["r2"]
    n, mean, squares = found["n"], found["mean"][0], found["products"][0]
    return pd.DataFrame(
        {
            "held_out": ~in_panel,
            "counts": (n * mean)[:n_genes],
            "variance": squares[:n_genes] / n,
            "r2": scores[:n_genes],
            "r2_total": scores[n_genes:],
        },
        index=names,
    )


def _program(
    data: Data, factors: FittedFactors, known: np.ndarray, number: dict[str, int], layer: str | None
) -> Program:
    width, n_genes = factors.loadings.shape[1], int(known.sum())
    model = Each(
        "model",
        give_model,
        options={
            "profile": factors.profile[:, :, known].reshape(width, n_genes),
            "columns": np.array([number[name] for name in factors.genes[known]]),
            "panel": np.array([number[name] for name in factors.genes[factors.in_panel]]),
        },
    )
    scores = Reduce(
        "scores",
        score_tile,
        {"counts": data.matrix(layer), "loadings": factors.loadings},
        ("model",),
        combine=merge_score_sums,
        workspace=TileWorkspace(20 * FLOAT * n_genes + FLOAT * width, FLOAT * width * n_genes),
        nanoseconds=float(width * n_genes / 4 + 60 * n_genes),
        partial_bytes=18 * FLOAT * n_genes,
    )
    return Program("imputed_genes", (model, scores), results=_results)


def give_model(item: int, **arrays: np.ndarray) -> dict[str, Any]:
    """Return the profiles as a value, which travels to each worker once."""
    return arrays


def score_tile(
    rows: tuple[int, int], *, counts: Any, loadings: np.ndarray, model: dict[str, Any]
) -> dict[str, Any]:
    """Statistics of imputed means and of the cells' totals, with the same counts."""
    measured = dense_rows(counts[:, model["columns"]])
    total = np.asarray(counts[:, model["panel"]].sum(axis=1), np.float64).reshape(-1, 1)
    imputed = loadings.astype(np.float64) @ model["profile"]
    estimated = np.concatenate([imputed, np.broadcast_to(total, measured.shape)], axis=1)
    return score_sums(np.concatenate([measured, measured], axis=1), estimated)


def _results(values: Any) -> dict[str, Any]:
    return dict(values["scores"])


def telling(table: pd.DataFrame, n: int = N_DRAWN) -> list[str]:
    """Genes whose counts vary most, held-out ones where there are such.

    Examples
    --------
    >>> facts = {"held_out": [True, False], "variance": [1.0, 9.0]}
    >>> telling(pd.DataFrame(facts, index=["a", "b"]))
    ['a']
    """
    held = table[table["held_out"]]
    return [str(name) for name in (held if len(held) else table)["variance"].nlargest(n).index]


def _genes(
    facts: RunFacts, table: pd.DataFrame, chosen: list[str], pictures: bool, client: Any
) -> str:
    held = table[table["held_out"]]
    shown = held if len(held) else table
    own, total = shown["r2"].mean(), shown["r2_total"].mean()
    cards = [
        ("genes imputed and measured", html.number(len(table))),
        ("of them held out", html.number(len(held))),
        ("mean R², held out" if len(held) else "mean R², shown to the fit", html.number(own)),
        ("mean R² of the cell's total alone", html.number(total)),
    ]
    parts = [html.cards(cards)]
    if len(held) and total >= own:
        warning = "The total count of a cell predicts the held-out genes as well as the imputation."
        parts.append(html.warnings_list([warning]))
    parts.append(
        html.paragraph(
            "R² is the squared correlation of imputed means and counts over the cells. "
            + (
                "Held-out genes took no part in the fit of the cells."
                if len(held)
                else "All these genes were shown to the fit: this says how well it describes them, "
                "not how well it imputes."
            )
        )
    )
    if pictures and chosen:
        parts.append(_maps(facts, chosen, client))
    first = shown.nlargest(ROWS, "variance")
    rows = [
        (name, *(html.number(row[key]) for key in ("r2", "r2_total", "counts")))
        for name, row in first.iterrows()
    ]
    parts.append(html.paragraph(f"The {len(rows)} genes whose counts vary most."))
    parts.append(html.table(("gene", "R²", "R² of the total", "counts"), rows))
    return "".join(parts)


def _maps(facts: RunFacts, chosen: list[str], client: Any) -> str:
    figure = imputed_maps(
        facts.store,
        genes=chosen,
        spots=_spots(facts),
        key=facts.parameters["key_added"],
        layer=facts.parameters["layer"],
        spatial_key=facts.parameters["spatial_key"],
        client=client,
    )
    return html.picture(figure, f"Measured and imputed maps of {', '.join(chosen)}")


def _spots(facts: RunFacts) -> Path | None:
    """Store of the spots, where it still is."""
    path = Path(str(facts.parameters["spots"]))
    try:
        StoreData(path)
    except InputError:
        return None
    return path


def _types(facts: RunFacts, pictures: bool) -> str:
    factors = facts.written["factors"]
    if "spot_proportion" not in factors:
        return ""
    soft, hard = (np.asarray(factors[f"spot_proportion{name}"]) for name in ("", "_hard"))
    known = ~np.isnan(soft).any(axis=1)
    kinds = [
        (
            f"type {kind}",
            html.number(soft[known, kind].mean()),
            html.number(hard[known, kind].mean()),
        )
        for kind in range(soft.shape[1])
    ]
    spots = _spots(facts)
    parts = [html.cards([("spots", html.number(len(soft))),
                         ("without cells", html.number(int((~known).sum())))])]  # fmt: skip
    if spots is None:
        parts.append(
            html.paragraph(f"No maps: the spots are no longer at {facts.parameters['spots']}.")
        )
    elif pictures:
        options = {"spatial_key": facts.parameters["spots_spatial_key"]}
        key = facts.parameters["key_added"]
        figure = spot_proportions(facts.store, spots, key=key, **options)
        parts.append(html.picture(figure, "Proportions of types in the spots, soft and hard"))
    parts.append(html.paragraph("Mean proportions over the spots with cells."))
    parts.append(html.table(("", "soft", "hard"), kinds))
    return "".join(parts)


def _losses(facts: RunFacts, pictures: bool) -> str:
    factors, parameters = facts.written["factors"], facts.parameters
    losses = {f"solution {n}": part for n, part in enumerate(np.asarray(factors["loss"]))}
    if "type_loss" in factors:
        whole = np.asarray(factors["type_loss"])
        if parameters.get("solver") != "adam":
            steps = ROUNDS if parameters.get("n_spots_per_cell", 1) > 1 else 1
            hardened = len(whole) - steps * parameters["entropy_passes"]
            losses["types, before hardening"] = whole[:hardened]
        losses["types"] = whole
    rows = [
        (name, html.number(len(part)), *(html.number(value) for value in part[-1]))
        for name, part in losses.items()
    ]
    table = html.table(("fit", "passes", "loss of cells", "loss of spots"), rows)
    picture = fit_losses(facts.store, key=parameters["key_added"]) if pictures else None
    drawn = "" if picture is None else html.picture(picture, "Losses pass by pass")
    return drawn + table
