"""`stdist plan` and `stdist run`: a command for every program of the registry."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import click

from stdist.cli import show
from stdist.cli.measure import kept_options
from stdist.cli.options import (
    STORE,
    block_option,
    chosen_store,
    cluster_options,
    done,
    executor,
    method_options,
    read_parameters,
)
from stdist.cli.runs import report_if_possible, tell
from stdist.methods.registry import PROGRAMS
from stdist.store import InputError


@click.group
def plan() -> None:
    """Show what a program will cost: tasks, bytes, memory, time. Runs nothing."""


@click.group
def run() -> None:
    """Run a program on a store."""


def _public(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _run_method(name: str, store: Path, options: dict[str, Any]) -> None:
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
            report_if_possible(folder, active.client)
    tell(store, name, parameters)
    done(store)


def _plan_method(name: str, store: Path, options: dict[str, Any]) -> None:
    import dask

    from stdist.graph import check_output, make_plan, resources_for
    from stdist.graph.draw import draw_graph
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


def _add_programs() -> None:
    """Give every program of the registry a command under `plan` and under `run`."""
    for name, entry in PROGRAMS.items():
        if entry.kind == "store":
            continue
        common = [
            click.Option(["--params"], type=click.Path(exists=True), help="TOML file of options."),
        ]
        for group, action, extra in (
            (
                run,
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
                plan,
                _plan_method,
                [
                    click.Option(["--json", "as_json"], is_flag=True, help="Print JSON."),
                    click.Option(["--graph"], type=STORE, help="Draw the task graph: FILE.svg."),
                ],
            ),
        ):
            if entry.kind == "measure" and group is run:
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


_add_programs()
