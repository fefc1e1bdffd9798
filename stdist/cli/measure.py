"""Measures from the command line: tables that add nothing to the store."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click

from stdist.cli.options import (
    cluster_options,
    executor,
    method_options,
    read_parameters,
)


class Entry(NamedTuple):
    """A measure: its function in `stdist.metrics`, what it says, and an example."""

    function: str
    summary: str
    example: str


MEASURES = {
    "bvr-cvr": Entry(
        "bvr_cvr",
        "batch- and cell-type-variance ratios of all genes",
        "--layer crescendo --batch-key batch --label-key cell_type",
    ),
    "hvg-conservation": Entry(
        "hvg_conservation",
        "share of the highly variable genes that stay so",
        "--layer crescendo",
    ),
    "morans-i": Entry(
        "morans_i",
        "spatial autocorrelation of genes in each slice",
        "--slice-key batch --radius 30",
    ),
    "sci": Entry(
        "sci",
        "spatial cross-correlation of genes between neighbouring cell types",
        "--label-key cell_type --slice-key batch --pairs pairs.csv",
    ),
    "ligand-receptor": Entry(
        "ligand_receptor",
        "ligand-receptor pairs between neighbours, with permutation tests",
        "--label-key cell_type --pairs pairs.csv --layers X,crescendo",
    ),
}


@click.group("measure")
def measure() -> None:
    """Measure a correction, or what neighbouring cells express."""


class _Measure(click.Command):
    """A command whose options come from the measure's function when it is used."""

    def __init__(self, name: str, entry: Entry) -> None:
        super().__init__(
            name,
            params=[
                click.Argument(["store"], type=click.Path(path_type=Path)),
                click.Option(["--output"], type=click.Path(path_type=Path), help="FILE.csv"),
            ],
            callback=self._run,
            help=f"{entry.summary[0].upper()}{entry.summary[1:]}.",
            epilog=f"Example: stdist measure {name} cohort.zarr {entry.example} --output table.csv",
        )
        self.function, self.complete = entry.function, False
        cluster_options(self)

    def _public(self) -> Callable[..., Any]:
        from stdist import metrics

        return getattr(metrics, self.function)  # type: ignore[no-any-return]

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        if not self.complete:
            self.params[1:1] = method_options(self._public())
            self.complete = True
        return super().get_params(ctx)

    def _run(self, store: Path, output: Path | None, **options: Any) -> None:
        from stdist.store import Store

        Store(store)  # a wrong path is refused before workers start
        merged = read_parameters(click.get_current_context(), None, options)
        options = {name: value for name, value in merged.items() if value is not None}
        where = {key: options.pop(key, None) for key in ("client", "workers", "memory")}
        with executor(**where) as active:
            found = self._public()(store, client=active.client, **_plain(options))
        table, note = _table(found)
        if note:
            click.echo(note, err=True)
        table.to_csv(output or sys.stdout)
        if output is not None:
            click.echo(str(output))


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """Options as the functions take them: pairs A:B, the name X for the main matrix."""
    if "type_pairs" in options:
        options["type_pairs"] = [tuple(pair.split(":")) for pair in options["type_pairs"]]
    if "layers" in options:
        options["layers"] = [None if layer == "X" else layer for layer in options["layers"]]
    return options


def _table(found: Any) -> tuple[Any, str]:
    from stdist.metrics.hvg import HvgConservation

    if hasattr(found, "to_dataframe"):
        return found.to_dataframe(), ""
    if isinstance(found, HvgConservation):
        return found.genes, f"share of highly variable genes kept: {found.score:.3f}"
    absent = found.attrs.get("absent")
    return found, f"{len(absent)} pairs have a gene that is absent" if absent else ""


for _name, _entry in MEASURES.items():
    measure.add_command(_Measure(_name, _entry))
