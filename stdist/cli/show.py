"""How plans, statuses and checks are printed."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from stdist.graph import Plan
    from stdist.store.verify import Damage


def size(n_bytes: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n_bytes < 1024 or unit == "GiB":
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return ""


def span(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def as_json(value: Any) -> None:
    """Print JSON."""
    click.echo(json.dumps(value, indent=2, default=str))


def table(rows: list[list[str]], numbers: int) -> None:
    """Print aligned columns; all but the first `numbers` are right-aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for n, row in enumerate(rows):
        cells = [
            cell.ljust(width) if i < numbers else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo("  ".join(cells).rstrip())
        if n == 0:
            click.echo("  ".join("-" * width for width in widths))


def plan(found: Plan) -> None:
    """Print a plan."""
    memory = "unlimited memory" if found.worker_memory is None else size(found.worker_memory)
    click.echo(
        f"{found.program}: {found.n_rows} rows in blocks of {found.block_length}; "
        f"{found.n_workers} workers of {memory}, {found.threads} thread each"
    )
    rows = [["stage", "kind", "tasks", "read", "write (decoded)", "memory/worker", "time (guess)"]]
    rows += [
        [
            stage.name,
            stage.kind,
            str(stage.tasks),
            size(stage.bytes_read),
            size(stage.bytes_written),
            size(stage.memory),
            span(stage.seconds),
        ]
        for stage in found.stages
    ]
    table(rows, 2)
    total = sum(stage.seconds for stage in found.stages)
    click.echo(
        f"peak {size(found.worst.memory)} per worker (stage {found.worst.name}); "
        f"about {span(total)} in all"
    )
    if found.note:
        click.echo(found.note)


def runs(found: list[dict[str, Any]]) -> None:
    """Print the runs of a store."""
    for run in found:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(run["created"]))
        took = "" if run["seconds"] is None else f" in {span(run['seconds'])}"
        click.echo(f"{run['run']}  {run['state']}{took}  (began {when})")
        if run["state"] != "done":
            for stage in run["stages"]:
                click.echo(f"    {stage['name']}: {stage['done']}/{stage['tasks']}")
            if run["error"]:
                click.echo(f"    {run['error']}")
    if not found:
        click.echo("no runs")


def damage(store: Path, found: list[Damage], unrecorded: list[str], n_files: int) -> None:
    """Print what `verify` found."""
    for one in found:
        shard = "" if one.shard is None else f" (shard {', '.join(map(str, one.shard))})"
        click.echo(f"{one.kind}: {one.path}{shard}: {one.detail}")
    if unrecorded:
        click.echo(
            f"note: {len(unrecorded)} files were not written by stdist, e.g. {unrecorded[0]}"
        )
    click.echo(f"{store}: {n_files} files checked, {len(found)} damaged")
