"""What a choice of the number of factors, or an alignment of spots, came to."""

from __future__ import annotations

import numpy as np

from stdist.report import html
from stdist.report.run import RunFacts

Section = tuple[str, str]


def siid_answers(facts: RunFacts) -> list[Section]:
    """Return the section of a finished choice or alignment, none of another run."""
    shown = {
        "siid_choose_factors": ("Number of factors", _choice),
        "siid_align": ("Alignment", _alignment),
    }
    if facts.program not in shown or not facts.written:
        return []
    name, write = shown[facts.program]
    return [(name, write(facts))]


def _choice(facts: RunFacts) -> str:
    table = facts.written["table"]
    columns = {
        "deviance": "held-out deviance",
        "above_best": "above the best",
        "standard_error": "standard error of this",
        "loss": "loss of the fit",
    }
    rows = [
        (str(int(row["n_factors"])), *(html.number(row[name]) for name in columns))
        for _, row in table.iterrows()
    ]
    return "".join(
        [
            html.cards([("factors chosen", int(facts.written["n_factors"]))]),
            html.paragraph("The number whose fit explains the molecules held back best."),
            html.table(("factors", *columns.values()), rows),
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
