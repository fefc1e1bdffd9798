"""The sections of a report, each from facts to HTML."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from stdist.methods.registry import PROGRAMS
from stdist.plots.stages import stage_table, stage_timings
from stdist.plots.variance import variance_ratios
from stdist.report import html
from stdist.report.genes import summarise
from stdist.report.run import RunFacts

ROWS = 20
LONG = 160
TOLD_BELOW = ("[held-out]", "[checked]", "[imputation-unscored]")
"""Notes that a section of their own says in more detail."""


def title(facts: RunFacts) -> str:
    """Name of the run's method."""
    return facts.program.replace("_", " ").capitalize()


def headline(facts: RunFacts, batch_key: str | None) -> str:
    """Tell what was run on what, how large it was, and how it went."""
    entry = PROGRAMS.get(facts.program)
    created = time.strftime("%Y-%m-%d %H:%M", time.localtime(facts.run["created"]))
    plan, table = facts.run["plan"], stage_table(facts.folder)
    n_cells = plan["n_rows"] if facts.data is None else facts.data.n_obs
    figures: list[tuple[str, Any]] = [("cells", html.number(n_cells))]
    if facts.data is not None:
        figures.append(("genes", html.number(facts.data.n_vars)))
        if batch_key:
            figures.append(("batches", html.number(len(facts.data.labels(batch_key).names))))
    state = facts.state.get("state", "unknown")
    figures += [
        ("wall time" if facts.attempts == 1 else "wall time of the last attempt", _wall(facts)),
        ("peak memory of a worker", html.in_bytes(table["memory"].max())),
        ("state" if facts.attempts == 1 else f"state, {facts.attempts} attempts", state),
    ]
    summary = html.escape(entry.summary) if entry else ""
    return (
        f"<h1>{html.escape(title(facts))}</h1><p>{summary}</p>"
        f"<p>Run <code>{html.escape(facts.run['run'])}</code> on "
        f"<code>{html.escape(str(facts.store))}</code>, begun {created}</p>{html.cards(figures)}"
    )


def _wall(facts: RunFacts) -> str:
    return html.in_seconds(facts.state.get("seconds", np.nan))


def warnings(facts: RunFacts) -> str:
    """What the user should know: an error, or notes on the data."""
    texts = [note for note in facts.notes if not note.startswith(TOLD_BELOW)]
    if not facts.finished:
        error = facts.state.get("error")
        texts.insert(0, f"The run has not finished{f': {error}' if error else '.'}")
    return html.warnings_list(texts) if texts else ""


def parameters(facts: RunFacts) -> str:
    """All parameters of the run."""
    return html.table(("", ""), [(n, _value(v)) for n, v in facts.parameters.items()], text=2)


def _value(value: Any) -> str:
    if value is None:
        return "default"
    if isinstance(value, list):
        shown = ", ".join(map(str, value))
        return f"{len(value)}: {shown[:LONG]}…" if len(shown) > LONG else shown
    return str(value)


def quality(table: pd.DataFrame, label_key: str, pictures: bool) -> str:
    """Variance ratios of all genes: numbers, scatter, and the genes most affected before."""
    facts = summarise(table)
    figures = (
        (
            "genes in the target zone, of those with batch variance",
            f"{facts['in_zone']} / {facts['with_batch_variance']}",
        ),
        ("median BVR", html.number(facts["median_bvr"])),
        ("median CVR", html.number(facts["median_cvr"])),
        ("total counts, after / before", html.number(facts["total_ratio"])),
        ("largest ratio of a gene", html.number(facts["largest_gene_ratio"])),
    )
    first = table.nlargest(ROWS, "batch_variance_before")
    columns = (
        ("batch variance before", "batch_variance_before"),
        ("after", "batch_variance_after"),
        ("BVR", "bvr"),
        ("type variance before", "type_variance_before"),
        ("after", "type_variance_after"),
        ("CVR", "cvr"),
        ("counts before", "counts_before"),
        ("after", "counts_after"),
    )
    rows = [
        (name, *(html.number(row[key]) for _, key in columns), "yes" if row["in_zone"] else "no")
        for name, row in first.iterrows()
    ]
    explained = (
        "BVR is the variance between batches after the correction relative to before, CVR that "
        f"between the cell types of {label_key!r} (Poisson mixed model, offset: depth). Target: "
        "BVR below 1 (batches come together) and CVR of at least 0.5 (cell types stay apart)."
    )
    return (
        html.cards(figures)
        + html.paragraph(explained)
        + (html.picture(variance_ratios(table), "BVR against CVR of all genes") if pictures else "")
        + html.paragraph(
            f"The {len(rows)} genes with the largest batch variance before the correction; all "
            f"{len(table)} are in metrics.csv beside this file.",
        )
        + html.table(("gene", *(head for head, _ in columns), "in zone"), rows)
    )


def stages(facts: RunFacts, pictures: bool) -> str:
    """Plan against measured, stage by stage."""
    table = stage_table(facts.folder)
    total = max(table["seconds"].sum(), facts.state.get("seconds", 0.0), 1e-9)
    groups = (("", 2), ("Tasks", 2), ("Read", 2), ("Written", 2), ("Memory", 3), ("Time", 3))
    head = (
        "stage", "kind", "planned", "done", "stored", "decoded", "planned", "measured",
        "planned", "measured", "ratio", "planned", "measured", "share",
    )  # fmt: skip
    rows = [
        (
            name,
            row["kind"],
            html.number(row["tasks"]),
            html.number(row["calls"]),
            html.in_bytes(row["stored_bytes_read"]),
            html.in_bytes(row["bytes_read"]),
            html.in_bytes(row["bytes_written_planned"]),
            html.in_bytes(row["bytes_written"]),
            html.in_bytes(row["memory_planned"]),
            html.in_bytes(row["memory"]),
            html.number(row["memory"] / row["memory_planned"], 2),
            html.in_seconds(row["seconds_planned"]),
            html.in_seconds(row["seconds"]),
            "–" if np.isnan(row["seconds"]) else f"{row['seconds'] / total:.0%}",
        )
        for name, row in table.iterrows()
    ]
    plan = facts.run["plan"]
    workers = f"{plan['n_workers']} workers with {plan['threads']} threads each"
    if plan["n_workers"] * plan["threads"] == 1:
        workers = "one worker with one thread"
    note = (
        f"On {workers}, in blocks of {plan['block_length']:,} rows. Memory is per worker: an upper "
        "bound planned before the run, and the largest peak. Where the run shared its process with "
        "the caller (no cluster), the peak includes what the caller held. Planned time is a guess; "
        "measured is the time in which a task of the stage ran, and its share of the run. Stored "
        "bytes are compressed. A reduction also plans the tasks that combine its blocks; a loop is "
        "planned for its largest number of rounds."
    )
    picture = html.picture(stage_timings(facts.folder), "Planned and measured") if pictures else ""
    return picture + html.table(head, rows, text=2, groups=groups) + html.paragraph(note, note=True)


def provenance(facts: RunFacts, arguments: Iterable[str]) -> str:
    """Versions, fingerprint, and what to type next."""
    store = shlex.quote(str(facts.store))
    rows = [("fingerprint", facts.run["fingerprint"]), ("block length", facts.run["block_length"])]
    rows += list(facts.run["versions"].items())
    lines = [] if facts.finished else [f"stdist resume {store}     # continue this run"]
    lines += [
        f"stdist verify {store}     # compare every file with its recorded hash",
        f"stdist report {' '.join([store, *arguments])}     # write this report again",
    ]
    meaning = (
        "The fingerprint hashes the method, its parameters, its inputs and the versions: equal "
        "fingerprints mean equal results, bit by bit."
    )
    return (
        html.table(("", ""), rows, text=2)
        + html.paragraph(meaning, note=True)
        + html.commands(lines)
    )
