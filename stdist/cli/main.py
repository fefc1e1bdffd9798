"""Commands and exit codes."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import click

from stdist import __version__
from stdist.cli import show
from stdist.cli.measure import kept_options, measure
from stdist.cli.options import (
    block_option,
    chosen_store,
    cluster_options,
    executor,
    method_options,
    read_parameters,
)
from stdist.store.errors import CorruptionError, InputError, StdistError

EPILOG = (
    "Exit codes: 0 done, 2 bad input or usage, 3 refused by the plan, 4 corruption, "
    "5 stopped but resumable, 1 anything else."
)
STORE = click.Path(path_type=Path)


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="stdist")
def cli() -> None:
    """Out-of-core, distributed spatial transcriptomics."""


cli.add_command(measure)


@cli.command(epilog="Example: stdist convert a.h5ad b.h5ad cohort.zarr --batch-names a,b")
@click.argument("inputs", nargs=-1, required=True, type=click.Path())
@click.argument("output", type=STORE)
@click.option("--counts", default="X", show_default=True, help="X, layers/NAME or raw.")
@click.option("--batch-names", help="One name per input, separated by commas.")
@click.option("--batch-key", default="batch", show_default=True, help="Column for these names.")
@click.option("--index-unique", help="Appended with the batch name to cell names, e.g. '-'.")
@click.option(
    "--gene-names",
    type=click.Choice(["symbols", "ids"]),
    default="symbols",
    show_default=True,
    help="Of 10x inputs.",
)
@click.option("--kind", type=click.Choice(["dense", "csr"]), help="Storage of the counts.")
@cluster_options
@block_option
def convert(
    inputs: tuple[str, ...],
    output: Path,
    batch_names: str | None,
    client: str | None,
    workers: int | None,
    memory: str | None,
    **options: Any,
) -> None:
    """Convert .h5ad, AnnData zarr, 10x .h5 and 10x mtx folders into one store."""
    from stdist import io
    from stdist.graph import choose_progress

    names = None if batch_names is None else batch_names.split(",")
    with executor(client, workers, memory) as where:
        io.convert(
            list(inputs),
            output,
            batch_names=names,
            client=where,
            progress=choose_progress(),
            **options,
        )
    for note in io.notes(output):
        click.echo(f"note: {note}", err=True)
    _done(output)


@cli.command(
    epilog="Example: stdist simulate cohort.zarr --cells 1000000 --genes 500 --batches 8 --seed 1"
)
@click.argument("output", type=STORE)
@click.option("--cells", type=int, required=True, help="Number of cells.")
@click.option("--genes", type=int, default=500, show_default=True, help="Size of the panel.")
@click.option("--batches", type=int, default=4, show_default=True, help="Number of slides.")
@click.option("--types", type=int, default=12, show_default=True, help="Number of cell types.")
@click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same cells.")
@click.option("--density", type=float, default=0.09, show_default=True, help="Share of non-zeros.")
@cluster_options
@block_option
def simulate(
    output: Path,
    cells: int,
    genes: int,
    batches: int,
    types: int,
    seed: int,
    density: float,
    client: str | None,
    workers: int | None,
    memory: str | None,
    block_length: int | None,
) -> None:
    """Simulate a multi-slide cohort with known batch effects, block by block.

    \b
    Counts of cell i (slide b, type t) and gene g are Poisson with mean
        depth_i * rate_tg * exp(batch_bg + interaction_btg),
    depth lognormal, rates lognormal with marker genes per type, effects
    normal and summing to zero over slides; types lie in spatial domains that
    the slides share. Slides are consecutive rows; positions are in um at
    2,800 cells/mm2. The truth is in uns["simulation"]; the equations are in
    stdist.kernels.cohort.
    """
    from stdist.methods.simulate import simulate as run_simulation

    with executor(client, workers, memory) as where:
        run_simulation(
            output,
            n_cells=cells,
            n_genes=genes,
            n_batches=batches,
            n_types=types,
            rng=seed,
            density=density,
            client=where.client,
            block_length=block_length,
        )
    _done(output)


@cli.command(
    "simulate-pair",
    epilog="Example: stdist simulate-pair xenium.zarr visium.zarr --cells 100000 --panel 200",
)
@click.argument("cells_output", metavar="CELLS", type=STORE)
@click.argument("spots_output", metavar="SPOTS", type=STORE)
@click.option("--cells", "n_cells", type=int, required=True, help="Number of cells.")
@click.option("--genes", type=int, default=300, show_default=True, help="Genes of the spots.")
@click.option("--panel", type=int, help="How many of them cells have; default: all.")
@click.option("--types", type=int, default=8, show_default=True, help="Number of cell types.")
@click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same pair.")
@cluster_options
@block_option
def simulate_pair(
    cells_output: Path,
    spots_output: Path,
    n_cells: int,
    genes: int,
    panel: int | None,
    types: int,
    seed: int,
    client: str | None,
    workers: int | None,
    memory: str | None,
    block_length: int | None,
) -> None:
    """Simulate single cells with a panel of genes, and spots with all of them above the cells.

    \b
    Cells are of the type of their square of a checkerboard; counts are Poisson,
    in spots those of the captured cells times a platform factor of the gene.
    The truth is in both stores; the equations are in
    stdist.kernels.pair_simulation.
    """
    from stdist.methods.simulate_pair import simulate_pair as run_simulation

    with executor(client, workers, memory) as where:
        run_simulation(
            cells_output,
            spots_output,
            n_cells=n_cells,
            n_genes=genes,
            n_panel=panel,
            n_types=types,
            rng=seed,
            client=where.client,
            block_length=block_length,
        )
    _done(cells_output)
    _done(spots_output)


@cli.command("filter", epilog="Example: stdist filter cohort.zarr filtered.zarr --min-counts 50")
@click.argument("store", type=STORE)
@click.argument("output", type=STORE)
@click.option("--min-counts", type=float, default=50, show_default=True, help="Of a cell.")
@click.option("--min-genes", type=int, default=50, show_default=True, help="Of a cell.")
@click.option("--max-counts", type=float, default=float("inf"), help="Of a cell.")
@click.option("--min-cells", type=int, default=1, show_default=True, help="Of a gene.")
@cluster_options
@block_option
def filter_command(
    store: Path,
    output: Path,
    client: str | None,
    workers: int | None,
    memory: str | None,
    **options: Any,
) -> None:
    """Copy the cells and genes that pass to a new store."""
    from stdist import pp
    from stdist.store import Store

    Store(store)
    with executor(client, workers, memory) as where:
        pp.filter(store, output, client=where.client, **options)
    _done(output)


@cli.group("plan")
def plan_group() -> None:
    """Show what a program will cost: tasks, bytes, memory, time. Runs nothing."""


@cli.group("run")
def run_group() -> None:
    """Run a program on a store."""


def _public(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


ANSWERS = {
    "siid_align": "message",
    "siid_choose_factors": "n_factors",
    "siid_choose_passes": "passes",
}
"""What programs find that is told at the end of a run: program to name in `uns`."""


def _run_method(name: str, store: Path, options: dict[str, Any]) -> None:
    from stdist.methods.registry import PROGRAMS
    from stdist.store import Store

    Store(store)  # a wrong path is refused before workers start
    where = {key: options.pop(key) for key in ("client", "workers", "memory")}
    runtime = {key: options.pop(key) for key in ("block_length", "overwrite")}
    report = options.pop("report")
    parameters = read_parameters(click.get_current_context(), options.pop("params"), options)
    with executor(**where) as active:
        folder = _public(PROGRAMS[name].function)(
            store, client=active.client, **runtime, **parameters
        )
        if report and PROGRAMS[name].kind == "method":
            _report_if_possible(folder, active.client)
    _tell(store, name, parameters)
    _done(store)


def _tell(store: Path, program: str, parameters: dict[str, Any]) -> None:
    """Print what a finished run has found."""
    from stdist.store import Store

    if program in ANSWERS:
        answer = ANSWERS[program]
        click.echo(f"{answer}: {Store(store).uns(parameters['key_added'])[answer]}")


def _report_if_possible(folder: Path, client: Any) -> None:
    """Write the report of a finished run; a report that fails is no failed run."""
    try:
        _report(folder, client=client)
    except (StdistError, ValueError, OSError) as error:
        click.echo(f"note: the run is done, its report could not be written: {error}", err=True)


def _report(folder: Path, **options: Any) -> Path:
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


def _plan_method(name: str, store: Path, options: dict[str, Any]) -> None:
    import dask

    from stdist.graph import check_output, make_plan, resources_for
    from stdist.graph.draw import draw_graph
    from stdist.methods.registry import PROGRAMS
    from stdist.store import Store

    Store(store)
    where = {key: options.pop(key) for key in ("client", "workers", "memory")}
    block_length, as_json, graph = (
        options.pop(key) for key in ("block_length", "as_json", "graph")
    )
    overwrite = options.pop("overwrite")
    parameters = read_parameters(click.get_current_context(), options.pop("params"), options)
    # nothing runs: workers that are too small are refused by the plan, not killed by Dask
    alive = dask.config.set({"distributed.worker.memory.terminate": False})
    with alive, executor(**where) as active:
        program = PROGRAMS[name].build({"data": str(store), **parameters})
        try:
            check_output(program, overwrite)
        except InputError as error:
            if error.code != "output-exists":
                raise
            click.echo(f"note: {error}", err=True)
        found = make_plan(program, resources_for(program, active), block_length)
    if graph is not None:
        draw_graph(program, found.block_length, graph)
    if as_json:
        show.as_json(found.to_dict())
    else:
        show.plan(found)


def _add_methods() -> None:
    """Give every program of the registry a command under `plan` and under `run`."""
    from stdist.methods.registry import PROGRAMS

    for name, entry in PROGRAMS.items():
        if entry.kind == "store":
            continue
        common = [
            click.Option(["--params"], type=click.Path(exists=True), help="TOML file of options."),
        ]
        for group, action, extra in (
            (
                run_group,
                _run_method,
                [
                    click.Option(
                        ["--report/--no-report"],
                        default=True,
                        help="Write the report of a method at the end.",
                    )
                ],
            ),
            (
                plan_group,
                _plan_method,
                [
                    click.Option(["--json", "as_json"], is_flag=True, help="Print JSON."),
                    click.Option(["--graph"], type=STORE, help="Draw the task graph: FILE.svg."),
                ],
            ),
        ):
            if entry.kind == "measure" and group is run_group:
                continue  # `stdist measure` runs it
            command = _LazyCommand(name, entry, common + extra, action, str(group.name))
            cluster_options(block_option(command))
            group.add_command(command)


class _LazyCommand(click.Command):
    """A command whose options come from the method's public function when it is used."""

    def __init__(self, name: str, entry: Any, params: list, action: Any, verb: str) -> None:
        overwrite = click.Option(["--overwrite"], is_flag=True, help="Replace existing outputs.")
        first = click.Argument(["store"], type=STORE, required=not entry.store_option)
        super().__init__(
            name,
            params=[first, *params, overwrite],
            callback=lambda **options: action(
                name, chosen_store(options, entry.store_option), options
            ),
            help=f"{entry.summary[0].upper()}{entry.summary[1:]}.",
            epilog=f"Example: stdist {verb} {name} {self._example(entry)} {entry.example}",
        )
        self.entry, self.complete = entry, False
        if entry.store_option:
            named = click.Option([f"--{entry.store_option}"], type=STORE, help="The same as STORE.")
            self.params.insert(1, named)

    @staticmethod
    def _example(entry: Any) -> str:
        option = entry.store_option
        return f"--{option} xenium.zarr" if option else "cohort.zarr"

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        if not self.complete:
            at = 2 if self.entry.store_option else 1
            self.params[at:at] = (
                kept_options(self.entry.function)
                if self.entry.kind == "measure"
                else method_options(_public(self.entry.function))
            )
            self.complete = True
        return super().get_params(ctx)


@cli.command(epilog="Example: stdist resume cohort.zarr")
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
            _report_if_possible(folder, where.client)
    _tell(store, facts["program"], facts["parameters"])
    _done(store)


@cli.command(epilog="Example: stdist status cohort.zarr --json")
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


@cli.command(epilog="Example: stdist verify cohort.zarr")
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


@cli.command(epilog="Example: stdist report cohort.zarr --label-key cell_type --genes Gad1,Slc17a7")
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
    done = [folder for folder in run_folders(store) if folder not in waiting]
    chosen = [folder for folder in done if run in (None, folder.name)]
    if not chosen:
        raise InputError(
            "run-unknown",
            "no finished run" if run is None else f"no finished run {run!r}",
            place=str(store),
            remedy="`stdist status` lists the runs of a store",
        )
    with executor(client, workers, memory) as where:
        path = _report(
            chosen[-1],
            output=output,
            batch_key=batch_key,
            label_key=label_key,
            genes=None if genes is None else genes.split(","),
            client=where.client,
        )
    _done(path)


@cli.command(
    epilog="Example: stdist demo --data slides.h5ad --batch-key batch --clusters cell_type"
)
@click.option("--out", type=STORE, default=Path("stdist-demo"), show_default=True, help="Folder.")
@click.option("--data", type=click.Path(), help="An .h5ad of several slides; default: simulate.")
@click.option("--batch-key", default="batch", show_default=True, help="Column with the slide.")
@click.option("--clusters", help="Column or obsm entry; default: k-means labels are made.")
@click.option("--cells", type=int, default=30_000, show_default=True, help="Cells to simulate.")
@cluster_options
def demo(
    out: Path,
    data: str | None,
    batch_key: str,
    clusters: str | None,
    cells: int,
    client: str | None,
    workers: int | None,
    memory: str | None,
) -> None:
    """Show everything on one small cohort: convert, plan, run Crescendo, measure, report."""
    from stdist.cli.demo import run_demo

    with executor(client, workers, memory) as where:
        path = run_demo(where, out, data, batch_key, clusters, cells, echo=click.echo)
    _done(path)


def _done(path: Path) -> None:
    click.echo(str(path))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with the documented code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    warnings.showwarning = _show_warning
    _add_methods()
    try:
        code = cli.main(args=arguments, prog_name="stdist", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except StdistError as error:
        click.echo(f"stdist: {error}", err=True)
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("stdist: interrupted; `stdist status` shows what can be resumed", err=True)
        code = 5
    except Exception as error:  # noqa: BLE001 - the last resort of a command line
        if os.environ.get("STDIST_DEBUG"):
            traceback.print_exc()
        message = f"stdist: {type(error).__name__}: {error} (STDIST_DEBUG=1 shows where)"
        click.echo(message, err=True)
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _show_warning(message: Any, category: type[Warning], *_: Any) -> None:
    from stdist.store import StdistWarning

    if issubclass(category, StdistWarning):
        click.echo(f"note: {message}", err=True)
