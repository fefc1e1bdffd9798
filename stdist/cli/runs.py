"""Commands about the runs on a store: resume, status, verify, report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stdist.cli import show
from stdist.cli.options import STORE, cluster_options, done, executor
from stdist.store.errors import CorruptionError, InputError, StdistError


@click.command(epilog="Example: stdist resume cohort.zarr")
@click.argument("store", type=STORE)
@click.option("--discard", is_flag=True, help="Drop the unfinished run instead.")
@cluster_options
def resume(
    store: Path, discard: bool, client: str | None, workers: int | None, memory: str | None
) -> None:
    """Continue an interrupted run; finished shards are kept."""
    from stdist import graph
    from stdist.methods.registry import PROGRAMS, build

    if discard:
        dropped = graph.discard(store)
        click.echo(f"dropped {', '.join(dropped)}" if dropped else "nothing to drop")
        return
    with executor(client, workers, memory) as where:
        folder = graph.resume(store, build, where, progress=graph.choose_progress())
        facts = graph.RunRecord(folder).read_json("run.json")
        if PROGRAMS[facts["program"]].kind == "method":
            report_if_possible(folder, where.client)
    tell(store, facts["program"], facts["parameters"])
    done(store)


@click.command(epilog="Example: stdist status cohort.zarr --json")
@click.argument("store", type=STORE)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(store: Path, as_json: bool) -> None:
    """List the runs on a store and how far they got."""
    from stdist.graph.status import describe_runs
    from stdist.store import Store
    from stdist.store.staging import partial_path

    if not partial_path(store).exists():
        Store(store)
    found = describe_runs(store)
    if as_json:
        show.as_json(found)
    else:
        show.runs(found)


@click.command(epilog="Example: stdist verify cohort.zarr")
@click.argument("store", type=STORE)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--record", is_flag=True, help="Accept the present content as right.")
def verify(store: Path, as_json: bool, record: bool) -> None:
    """Compare every byte of a store with its manifest."""
    from stdist.store import verify as checks

    if record:
        try:
            click.echo(f"{checks.record(store)} files recorded")
        except OSError as error:
            raise InputError(
                "store-unwritable",
                f"the manifest cannot be written ({error.strerror})",
                place=str(store),
                remedy="record where the store can be written",
            ) from error
        return
    found, unrecorded, n_files = checks.verify(store)
    if as_json:
        show.as_json(
            {
                "store": str(store),
                "files": n_files,
                "damage": [vars(one) for one in found],
                "unrecorded": unrecorded,
            }
        )
    else:
        show.damage(store, found, unrecorded, n_files)
    if found:
        raise SystemExit(CorruptionError.exit_code)


@click.command(
    epilog="Example: stdist report cohort.zarr --label-key cell_type --genes Gad1,Slc17a7"
)
@click.argument("store", type=STORE)
@click.option("--run", "run", help="Name of the run; default: the newest finished one.")
@click.option("--output", type=STORE, help="HTML file; default: report.html of the run.")
@click.option("--batch-key", help="Column of obs with the batch.")
@click.option("--label-key", help="Column of obs with the cell type, for BVR and CVR.")
@click.option("--genes", help="Genes to map, separated by commas.")
@cluster_options
def report(
    store: Path,
    run: str | None,
    output: Path | None,
    batch_key: str | None,
    label_key: str | None,
    genes: str | None,
    client: str | None,
    workers: int | None,
    memory: str | None,
) -> None:
    """Write the report of a run: parameters, plan against measured, quality, maps."""
    from stdist.graph import run_folders, unfinished

    waiting = set(unfinished(store))
    finished = [folder for folder in run_folders(store) if folder not in waiting]
    chosen = [folder for folder in finished if run in (None, folder.name)]
    if not chosen:
        raise InputError(
            "run-unknown",
            "no finished run" if run is None else f"no finished run {run!r}",
            place=str(store),
            remedy="`stdist status` lists the runs of a store",
        )
    with executor(client, workers, memory) as where:
        path = _write(
            chosen[-1],
            output=output,
            batch_key=batch_key,
            label_key=label_key,
            genes=None if genes is None else genes.split(","),
            client=where.client,
        )
    done(path)


def tell(store: Path, program: str, parameters: dict[str, Any]) -> None:
    """Print what a finished run has found."""
    from stdist.methods.registry import PROGRAMS
    from stdist.store import Store

    answer = PROGRAMS[program].answer
    if answer:
        click.echo(f"{answer}: {Store(store).uns(parameters['key_added'])[answer]}")


def report_if_possible(folder: Path, client: Any) -> None:
    """Write the report of a finished run; a report that fails is no failed run."""
    try:
        _write(folder, client=client)
    except (StdistError, ValueError, OSError) as error:
        click.echo(f"note: the run is done, its report could not be written: {error}", err=True)


def _write(folder: Path, **options: Any) -> Path:
    from stdist.report import write_report

    try:
        path = write_report(folder, **options)
    except OSError as error:
        raise InputError(
            "report-unwritable",
            f"the report cannot be written ({error.strerror})",
            place=str(options.get("output") or folder),
            remedy="name a file that can be written: --output FILE.html",
        ) from error
    click.echo(f"report: {path}", err=True)
    return path
