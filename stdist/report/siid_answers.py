"""What a choice of the number of factors or passes, or an alignment of spots, came to."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from stdist.report import html
from stdist.report.run import RunFacts
from stdist.report.siid_controls import scores_beside_controls

Section = tuple[str, str]


def siid_answers(facts: RunFacts) -> list[Section]:
    """Return the section of a finished choice or alignment, none of another run."""
    shown = {
        "siid_choose_factors": ("Number of factors", _factors),
        "siid_choose_passes": ("Number of passes", _passes),
        "siid_align": ("Alignment", _alignment),
    }
    if facts.program not in shown or not facts.written:
        return []
    name, write = shown[facts.program]
    return [(name, write(facts))]


def _factors(facts: RunFacts) -> str:
    columns = {
        "deviance": "held-out deviance",
        "above_best": "above the best",
        "standard_error": "standard error of this",
        "loss": "loss of the fit",
    }
    text = "The number whose fit explains the molecules held back best."
    return _choice(facts, "n_factors", "factors", text, columns)


def _passes(facts: RunFacts) -> str:
    columns = {
        "r2": "mean R²",
        "below_best": "below the best",
        "standard_error": "standard error of this",
        "single_r2": "mean R² of single solutions",
    }
    found = facts.written
    text = f"The number that imputes {int(found['n_genes'])} genes held out best."
    if "permuted_r2" not in found["table"]:
        return _choice(facts, "passes", "passes", text, columns)
    columns["permuted_r2"] = "mean R² of one with the spots permuted"
    of = f"the fits with {int(found['passes'])} passes"
    scores = scores_beside_controls(found["held_out"], of, facts.notes)
    return _choice(facts, "passes", "passes", text, columns) + "".join(scores)


def _choice(facts: RunFacts, key: str, what: str, text: str, columns: Mapping[str, str]) -> str:
    rows = [
        (str(int(row[key])), *(html.number(row[name]) for name in columns))
        for _, row in facts.written["table"].iterrows()
    ]
    return "".join(
        [
            html.cards([(f"{what} chosen", int(facts.written[key]))]),
            html.paragraph(text),
            html.table((what, *columns.values()), rows),
        ]
    )


def _alignment(facts: RunFacts) -> str:
    found = facts.written
    recovered, message = bool(found["recovered"]), str(found["message"])
    cards = [
        ("recovered", "yes" if recovered else "NO"),
        ("shift of the best move, um", html.number(float(np.hypot(*found["shift"])))),
        ("its angle, degrees", html.number(float(found["angle"]))),
        ("standard error, um", html.number(float(found["standard_error"]))),
        ("spots in the sample", html.number(int(found["n_spots"]))),
    ]
    parts = [html.cards(cards)]
    parts.append(html.paragraph(message) if recovered else html.warnings_list([message]))
    if recovered:
        numbers = ",".join(f"{value:.10g}" for value in np.ravel(found["transform"]))
        parts.append(html.paragraph("Fits and hold-outs take the move so:"))
        parts.append(html.commands([f"--transform={numbers}"]))
    return "".join(parts)
