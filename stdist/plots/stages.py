"""What the stages of a run were planned to need, and what they needed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stdist.graph.record import RunRecord
from stdist.graph.task import TaskRecord
from stdist.plots.style import AFTER, FAINT, INK, SOFT, Sheet, clean, literal, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLANNED = "#b9c3cc"


def stage_table(run_folder: Path | str) -> pd.DataFrame:
    """Tabulate the plan of a run and what was measured, stage by stage.

    Parameters
    ----------
    run_folder
        Folder of a run record (``<store>/.stdist/runs/<run>``), finished or not.

    Returns
    -------
    pandas.DataFrame
        One row per stage: ``kind``; ``tasks``, ``stored_bytes_read``, ``bytes_written_planned``,
        ``memory_planned``, ``seconds_planned`` from the plan; ``calls`` (finished blocks or
        items), ``bytes_read`` and ``bytes_written`` (decoded), ``memory`` (largest peak of a
        worker), ``seconds`` (wall time in which some task ran) and ``cpu_seconds`` measured, 0
        or NaN for a stage that has not run.

    Examples
    --------
    >>> stage_table("cohort.zarr/.stdist/runs/pca-20260727-1042-1f")  # doctest: +SKIP
    """
    record = RunRecord(Path(run_folder))
    stages = record.read_json("run.json")["plan"]["stages"]
    events: dict[str, list[TaskRecord]] = {}
    for event in record.events():
        events.setdefault(event.stage, []).append(event)
    rows = []
    for stage in stages:
        own = events.get(stage["name"], [])
        rows.append(
            {
                "stage": stage["name"],
                "kind": stage["kind"],
                "tasks": stage["tasks"],
                "calls": len(own),
                "stored_bytes_read": stage["bytes_read"],
                "bytes_read": sum(event.bytes_read for event in own),
                "bytes_written_planned": stage["bytes_written"],
                "bytes_written": sum(event.bytes_written for event in own),
                "memory_planned": stage["memory"],
                "memory": max((e.peak_bytes for e in own), default=np.nan),
                "seconds_planned": stage["seconds"],
                "seconds": busy_seconds(own) if own else np.nan,
                "cpu_seconds": sum(event.cpu_seconds for event in own),
            }
        )
    return pd.DataFrame(rows).set_index("stage")


def busy_seconds(events: Iterable[TaskRecord]) -> float:
    """Time in which at least one of the tasks ran: pauses between attempts do not count.

    Examples
    --------
    >>> task = lambda start, seconds: TaskRecord("s", 0, "w", start, seconds, *[0.0] * 3, 0, 0, 0)
    >>> busy_seconds([task(0.0, 2.0), task(1.0, 2.0), task(9.0, 1.0)])
    4.0
    """
    total, end = 0.0, -np.inf
    for event in sorted(events, key=lambda event: event.started):
        stop = event.started + event.seconds
        total += max(0.0, stop - max(end, event.started))
        end = max(end, stop)
    return total


def stage_timings(run_folder: Path | str) -> Figure:
    """Draw the planned and the measured seconds, memory and bytes of the stages of a run.

    Parameters
    ----------
    run_folder
        Folder of a run record.

    Returns
    -------
    matplotlib.figure.Figure
        One row of bars per stage. Memory is per worker: the plan's upper bound and the measured
        peak. Bytes are decoded.

    Raises
    ------
    InputError
        If matplotlib is not installed.

    Examples
    --------
    >>> run = stdist.tl.crescendo("cohort.zarr", ...)  # doctest: +SKIP
    >>> stage_timings(run)  # doctest: +SKIP
    """
    table = stage_table(run_folder)
    height = 0.46 * len(table)
    sheet = Sheet(10.5, 1.0 + height)
    labels = [literal(short(name, 20)) for name in table.index]
    mebi = 2.0**20
    panels = (
        ("Time", "s", table["seconds_planned"], table["seconds"]),
        ("Peak memory of a worker", "MiB", table["memory_planned"] / mebi, table["memory"] / mebi),
        (
            "Bytes written",
            "MiB",
            table["bytes_written_planned"] / mebi,
            table["bytes_written"] / mebi,
        ),
    )
    for number, (title, unit, planned, measured) in enumerate(panels):
        left = 1.55 + 3.0 * number
        axes = clean(sheet.axes(left, 0.75, 2.25, height))
        _bars(axes, planned.to_numpy(float), measured.to_numpy(float), unit)
        axes.set_yticks(range(len(labels)), labels if number == 0 else [""] * len(labels))
        axes.tick_params(axis="y", length=0, labelsize=9, labelcolor=INK)
        sheet.text(left, 0.42, title, fontsize=9.5, fontweight="bold")
    for left, colour, text in ((1.55, PLANNED, "planned"), (2.45, AFTER, "measured")):
        sheet.text(left, 0.12, "■", color=colour, fontsize=9)
        sheet.text(left + 0.17, 0.12, text, fontsize=9, color=SOFT)
    return sheet.figure


def _bars(axes: Any, planned: np.ndarray, measured: np.ndarray, unit: str) -> None:
    rows = np.arange(len(planned))
    for offset, values, colour in ((-0.19, planned, PLANNED), (0.19, measured, AFTER)):
        lengths = np.nan_to_num(values)
        axes.barh(rows + offset, lengths, height=0.34, color=colour)
        for row, value in zip(rows, values, strict=True):
            text = "not run" if np.isnan(value) else f"{_number(value)} {unit}"
            axes.annotate(
                text,
                (np.nan_to_num(value), row + offset),
                (3, 0),
                textcoords="offset points",
                va="center",
                fontsize=7.5,
                color=SOFT,
            )
    axes.set_xlim(0, max(np.nanmax([*planned, *np.nan_to_num(measured)]), 1e-12))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.spines["left"].set_color(FAINT)


def _number(value: float) -> str:
    return "0" if value == 0 else f"{value:.2g}" if value < 10 else f"{value:,.0f}"
