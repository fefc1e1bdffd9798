"""The section of a SIID report that sets imputation beside simple controls."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from stdist.methods.data import StoreData
from stdist.methods.siid.spec import SiidSpec
from stdist.methods.siid.verdicts import holdout_options
from stdist.plots.siid_scores import CONTROLS, holdout_scores, kept_scores, scores_by_gene
from stdist.report import html
from stdist.report.run import RunFacts
from stdist.store import InputError

ROWS = 20
PLACED = ("layer", "spots_layer", "spatial_key", "spots_spatial_key", "max_distance", "transform")
"""Parameters that say where the data are, which a hold-out must share with the fit."""
FITTED = (
    *("n_solutions", "n_restarts", "sample_cells", "passes", "solver", "learning_rate", "epochs"),
    *("entropy_schedule", "spots_model", "spot_scale", "platform_scaling", "shrink", "l2"),
    *("n_spots_per_cell", "updates_per_pass", "rng"),
)
"""Parameters that say how it is fitted, which it must share too."""
NAMES = {
    "siid": "SIID",
    "permuted": "SIID, spots permuted",
    "A": "counts of the spot (A)",
    "B": "counts of the spot, scaled to the cell (B)",
    "C_expression": "A over neighbours in expression (C)",
    "C_space": "A over neighbours in space (C)",
    "D_expression": "B over neighbours in expression (D)",
    "D_space": "B over neighbours in space (D)",
    "total": "total count of the cell",
}
COLUMNS = {
    "r2": "mean R²",
    "pearson": "mean Pearson",
    "advantage": "SIID better by",
    "standard_error": "standard error of this",
}
ALONE = {
    "solution 0": "SIID, best restart alone",
    "permuted": "SIID, best restart alone, spots permuted",
}
"""Single solutions that a fit scores itself."""
LABELS = NAMES | ALONE


def controls(facts: RunFacts, pictures: bool) -> str:
    """Scores of genes held out: of the fit, and of the stored hold-out or how to get it."""
    assert facts.data is not None
    key = f"{facts.parameters['key_added']}_holdout"
    own = _of_the_fit(facts)
    try:
        kept = kept_scores(facts.data, key)
    except InputError:
        if _shared_genes(facts) < 2:
            return html.paragraph("Of one gene none can be held out: how well is not known.")
        text = (
            "This command scores all genes of the panel in folds, beside more controls:"
            if own
            else "How well this fit imputes genes is not known; this command tells, for genes held "
            "out in folds:"
        )
        return "".join([*own, html.paragraph(text), html.commands([holdout_command(facts)])])
    other = [html.warnings_list(found)] if (found := _differences(facts, kept["params"])) else []
    return "".join([*own, *other, of_the_holdout(facts.data, key, kept, pictures)])


def _differences(facts: RunFacts, params: Mapping[str, Any]) -> list[str]:
    """Parameters that a hold-out does not share with the fit, in words."""
    default = SiidSpec(n_factors=1)
    found = []
    for name in ("spots", "n_factors", *FITTED, *PLACED):
        usual = getattr(default, name, None)
        mine, its = (
            np.ravel(usual if (value := given.get(name)) is None else value).tolist()
            for given in (facts.parameters, params)
        )
        if mine != its:
            found.append(f"{name}: {_listed(its)}, in the fit {_listed(mine)}")
    if not found:
        return []
    return [f"The hold-out below has other parameters than the fit. {'; '.join(found)}."]


def _listed(values: list[Any]) -> str:
    return ", ".join(map(str, values))


def _of_the_fit(facts: RunFacts) -> list[str]:
    """Genes held out of the fit or of one beside it."""
    for name, of in (("held_out", "this fit"), ("check", "a second fit beside this one")):
        if (table := facts.written.get(name)) is not None:
            return scores_beside_controls(table, of, facts.notes)
    return []


def scores_beside_controls(table: pd.DataFrame, of: str, notes: list[str]) -> list[str]:
    """R² by gene of an imputation, of its solutions and of controls, and what they come to."""
    shown = [name for name in ("siid", "B", "total", *ALONE) if name in table]
    parts = [
        html.paragraph(f"Mean R² over the {len(table)} genes held out of {of}."),
        html.cards([(LABELS[name], html.number(table[name].mean())) for name in shown]),
        *_warnings(notes),
    ]
    if "permuted" in table:
        text = (
            "With the counts of each spot at the place of another one solution is fitted, to be "
            "compared with that of the best restart. A difference in mean R² below that of single "
            "solutions, or below two standard errors over the genes, is none."
        )
        parts.append(html.paragraph(text))
    head = ("gene", *(f"R² of {LABELS[name]}" for name in shown))
    rows = [(gene, *map(html.number, row[shown])) for gene, row in table.iloc[:ROWS].iterrows()]
    return [*parts, html.table(head, rows)]


def _shared_genes(facts: RunFacts) -> int:
    """Number of genes that cells and spots of a fit share."""
    held = facts.written.get("held_out")
    panel = int(np.sum(facts.written["factors"]["in_panel"]))
    return panel + (0 if held is None else len(held))


def holdout_command(facts: RunFacts) -> str:
    """Command line that scores the imputation of a run by folds of held-out genes."""
    parameters = facts.parameters
    words = ["stdist", "measure", "siid-holdout", "--cells", str(facts.store)]
    words += ["--spots", str(parameters["spots"])]
    options = holdout_options(int(parameters["n_factors"]), _shared_genes(facts))
    for name, number in options.items():
        words += [f"--{name.replace('_', '-')}", str(number)]
    default = SiidSpec(n_factors=1)
    for name in (*FITTED, *PLACED):
        value = parameters.get(name)
        if value is False:
            words.append(f"--no-{name.replace('_', '-')}")
        elif value is not None and value != getattr(default, name):
            text = ",".join(str(v) for v in np.ravel(value)) if isinstance(value, list) else value
            words += [f"--{name.replace('_', '-')}", str(text)]
    if parameters["key_added"] != default.key_added:
        words += ["--key-added", f"{parameters['key_added']}_holdout"]
    return shlex.join(words)


def of_the_holdout(data: StoreData, key: str, kept: Mapping[str, Any], pictures: bool) -> str:
    """Scores of a stored hold-out."""
    summary, wide = kept["summary"], scores_by_gene(kept["scores"])
    parameters = kept["params"]
    folds = [str(fold) for fold in np.atleast_1d(parameters["folds"])]
    parts = [
        html.paragraph(
            f"{len(wide)} genes of fold{'s' if len(folds) > 1 else ''} {', '.join(folds)}, imputed "
            f"by a fit with {int(parameters['n_factors'])} factors that was not shown the cells' "
            "counts of them."
        ),
        *_warnings(kept.get("notes")),
    ]
    if pictures and any(name in wide for name in CONTROLS):
        parts.append(html.picture(holdout_scores(data.path, key=key), "R² of SIID and of controls"))
    rows = [
        (
            NAMES.get(str(name), str(name)),
            *(html.number(row[column]) for column in COLUMNS),
            _word(row["beaten"]),
        )
        for name, row in summary.iterrows()
    ]
    head = ("method", *COLUMNS.values(), "beaten")
    parts.append(html.table(head, rows))
    spread = html.number(float(summary.loc["siid", "seed_range"]))
    parts.append(
        html.paragraph(
            f"Beaten: SIID is better by more than the mean R² of its seeds differs ({spread}), and "
            "than two standard errors over the genes."
        )
    )
    if "types" in kept:
        parts += _types(kept["types"])
    shown = [name for name in ("siid", *CONTROLS) if name in wide]
    genes = wide.nlargest(ROWS, "siid")
    parts.append(html.paragraph(f"The {len(genes)} genes with the largest R² of {len(wide)}."))
    body = [(gene, *map(html.number, row[shown])) for gene, row in genes.iterrows()]
    parts.append(html.table(("gene", *(f"R² of {NAMES[name]}" for name in shown)), body))
    return "".join(parts)


def _types(types: pd.DataFrame) -> list[str]:
    text = (
        "Mean Jensen-Shannon divergence (nat) of the spots between proportions of types found and "
        "known, after factors are matched to types."
    )
    rows = [
        (str(row["fold"]), str(row["assignment"]), html.number(row["js"]), str(row["n_spots"]))
        for _, row in types.iterrows()
    ]
    return [html.paragraph(text), html.table(("fold", "assignment", "divergence", "spots"), rows)]


def _warnings(notes: Any) -> list[str]:
    texts = [] if notes is None else [str(note) for note in np.atleast_1d(notes)]
    wanted = [text for text in texts if text.startswith("[control-")]
    return [html.warnings_list(wanted)] if wanted else []


def _word(beaten: Any) -> str:
    if pd.isna(beaten):
        return ""
    return "yes" if beaten else "NO"
