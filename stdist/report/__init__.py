"""The report of a run: one HTML file that needs nothing else, and the measures as CSV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from stdist.cluster import active_client, connect
from stdist.graph.plan import MINIMUM_BLOCK
from stdist.metrics import bvr_cvr
from stdist.plots.convergence import convergence
from stdist.plots.groups import counts_by_batch
from stdist.plots.maps import gene_maps
from stdist.plots.style import require_matplotlib
from stdist.report import html, sections
from stdist.report.genes import telling_genes, uneven_genes
from stdist.report.run import RunFacts
from stdist.report.siid import siid_sections
from stdist.report.siid_answers import siid_answers
from stdist.store import InputError
from stdist.store.manifest import write_atomically

__all__ = ["write_report"]

NO_PICTURES = (
    "This report has no pictures: matplotlib is not installed "
    "(pip install 'stdist[viz]', then write the report again)."
)


def write_report(
    run_folder: Path | str,
    *,
    output: Path | str | None = None,
    batch_key: str | None = None,
    label_key: str | None = None,
    genes: Sequence[str] | None = None,
    spatial_key: str = "spatial",
    client: Any = None,
) -> Path:
    """Write the report of a run: parameters, warnings, quality, maps, plan against measured.

    Parameters
    ----------
    run_folder
        Folder of the run record, as the public functions return it; finished or not.
    output
        File to write; default ``report.html`` in the run folder. ``metrics.csv`` goes beside it.
    batch_key
        Column of ``obs`` with the batch; default: the run's.
    label_key
        Column of ``obs`` with the cell type, for the variance ratios; default: the run's
        `clusters`, if they are a column of ``obs``.
    genes
        Genes to draw; default: the three with the largest batch variance before, among those
        with more counts than the median.
    spatial_key
        Entry of ``obsm`` with the coordinates; without it no maps are drawn.
    client
        `distributed.Client`; default as in `stdist.tl.crescendo`.

    Returns
    -------
    Path
        The HTML file: pictures inside, no script, nothing loaded from a network.

    Raises
    ------
    InputError
        If the folder is no run record, or a key or gene that is given does not exist.

    Notes
    -----
    Without matplotlib the report is the same without pictures, and says so.

    Examples
    --------
    >>> run = stdist.tl.crescendo("cohort.zarr", ...)  # doctest: +SKIP
    >>> write_report(run)  # doctest: +SKIP
    PosixPath('cohort.zarr/.stdist/runs/crescendo-20260727-104200-1f2e/report.html')
    """
    facts = RunFacts(run_folder)
    output = facts.folder / "report.html" if output is None else Path(output)
    batch = facts.batch_key(batch_key)
    labels = facts.label_key(label_key)
    pictures = _can_draw()
    with _cluster(client, facts) as client:
        table = _measures(facts, batch, labels, client)
        drawn = _drawn_genes(facts, genes, batch, table, client) if pictures else []
        maps = _maps(facts, drawn, batch, labels, spatial_key, client)
        own = siid_sections(facts, genes, pictures, client) + siid_answers(facts)
    if table is not None:
        text = table.to_csv(index_label="gene").encode()
        write_atomically(output.with_name("metrics.csv"), text)
    parts = [
        ("Warnings", sections.warnings(facts)),
        (
            "Quality",
            _unmeasured(facts, batch, labels)
            if table is None
            else sections.quality(table, str(labels), pictures),
        ),
        ("Genes before and after" if len(facts.layers) == 2 else "Genes", maps),
        *own,
        ("Convergence", _convergence(facts, pictures)),
        ("Plan and measurement", sections.stages(facts, pictures)),
        ("Parameters", sections.parameters(facts)),
        ("Provenance", sections.provenance(facts, _arguments(batch_key, label_key, genes))),
    ]
    header = sections.headline(facts, batch) + ("" if pictures else html.paragraph(NO_PICTURES))
    text = html.page(f"stdist: {sections.title(facts)}", header, parts)
    write_atomically(output, text.encode())
    return output


def _can_draw() -> bool:
    try:
        require_matplotlib()
    except InputError:
        return False
    return True


@contextmanager
def _cluster(client: Any, facts: RunFacts) -> Iterator[Any]:
    """Use one cluster for all passes of a report."""
    small = facts.run["plan"]["n_rows"] <= MINIMUM_BLOCK
    if client is not None or small or not facts.finished or active_client() is not None:
        yield client
    else:
        with connect() as own:
            yield own


def _groups(facts: RunFacts, *keys: str | None) -> list[int]:
    assert facts.data is not None
    return [len(facts.data.labels(key).names) if key else 0 for key in keys]


def _corrects(facts: RunFacts) -> bool:
    return facts.finished and facts.data is not None and len(facts.layers) == 2


def _measures(
    facts: RunFacts, batch: str | None, labels: str | None, client: Any
) -> pd.DataFrame | None:
    if not _corrects(facts) or batch is None or labels is None:
        return None
    if min(_groups(facts, batch, labels)) < 2:
        return None
    before, after = facts.layers
    try:
        return bvr_cvr(
            facts.store,
            layer=str(after),
            before=before,
            batch_key=batch,
            label_key=labels,
            client=client,
        )
    except InputError as error:
        if error.code != "groups-unusable":
            raise
        return None


def _unmeasured(facts: RunFacts, batch: str | None, labels: str | None) -> str:
    """Say why a correction was not measured."""
    if not _corrects(facts):
        return ""
    if labels is None:
        return html.paragraph(
            "The variance ratios need cell types: write the report again with --label-key."
        )
    batches, types = _groups(facts, batch, labels)
    return html.paragraph(
        f"Not measured: the variance ratios need two batches and two cell types that occur in "
        f"several batches; there are {batches} batches and {types} cell types."
    )


def _drawn_genes(
    facts: RunFacts,
    genes: Sequence[str] | None,
    batch: str | None,
    table: pd.DataFrame | None,
    client: Any,
) -> list[str]:
    if facts.data is None or not facts.finished or batch is None:
        return []
    if genes is not None:
        return [genes] if isinstance(genes, str) else list(genes)
    if not _corrects(facts):
        return []
    if table is not None:
        return telling_genes(table)
    return uneven_genes(facts.data, facts.layers[0], batch, client)


def _maps(
    facts: RunFacts,
    genes: list[str],
    batch: str | None,
    labels: str | None,
    spatial_key: str,
    client: Any,
) -> str:
    """Maps where there are coordinates, and counts by batch (and cell type)."""
    if not genes or facts.data is None or batch is None:
        return ""
    options: dict[str, Any] = {
        "genes": genes,
        "batch_key": batch,
        "layers": facts.layers,
        "client": client,
    }
    parts = []
    if spatial_key in facts.data.obsm_keys():
        figure = gene_maps(facts.store, spatial_key=spatial_key, **options)
        parts.append(html.picture(figure, f"Maps of {', '.join(genes)} in each batch"))
    else:
        parts.append(html.paragraph(f"No maps: the store has no obsm entry {spatial_key!r}."))
    figure = counts_by_batch(facts.store, label_key=labels, **options)
    parts.append(html.picture(figure, f"Counts of {', '.join(genes)} by batch"))
    return "".join(parts)


def _convergence(facts: RunFacts, pictures: bool) -> str:
    rounds, objective = facts.written.get("n_iterations"), facts.objective
    parts = []
    if rounds is not None:
        limit = facts.parameters.get("max_iterations")
        how = "stopped at the largest number of rounds" if rounds == limit else "settled"
        parts.append(html.paragraph(f"Rounds: {int(rounds)} ({how})."))
    if objective is not None:
        first, last = html.number(float(objective[0]), 6), html.number(float(objective[-1]), 6)
        parts.append(html.paragraph(f"Objective: {first} after the first round, {last} at last."))
        parts.append(
            html.picture(convergence(objective.tolist()), "Objective by round") if pictures else ""
        )
    return "".join(parts)


def _arguments(batch: str | None, labels: str | None, genes: Sequence[str] | None) -> list[str]:
    """Options of the command line that write this report again."""
    import shlex

    chosen = [genes] if isinstance(genes, str) else list(genes or [])
    pairs = [("--batch-key", batch), ("--label-key", labels), ("--genes", ",".join(chosen))]
    return [part for name, value in pairs if value for part in (name, shlex.quote(value))]
