"""Measures from the command line: tables; only what names a key is kept in the store, too."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click

from stdist.cli.options import (
    STORE,
    block_option,
    chosen_store,
    cluster_options,
    executor,
    method_options,
    read_parameters,
)
from stdist.methods.registry import PROGRAMS


class Entry(NamedTuple):
    """A measure: its function in `stdist.metrics`, what it says, and an example.

    Where a measure takes several data sets, `store_option` names the first.
    """

    function: str
    summary: str
    example: str
    store_option: str = ""


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


PASSED_ON = {
    "stdist.tl.siid_holdout": (
        "stdist.tl.siid",
        {"held_out", "deconvolve"},
    )
}
"""Function whose other parameters a measure passes on, and those that have no meaning there."""
NO_TEXT = ("fold_of_gene",)
"""Parameters that have no form on a command line."""


@click.group("measure")
def measure() -> None:
    """Measure a correction, or what neighbouring cells express."""


class _Measure(click.Command):
    """A command whose options come from the measure's function when it is used."""

    def __init__(self, name: str, entry: Entry) -> None:
        first = entry.store_option
        params: list[click.Parameter] = [
            click.Argument(["store"], type=STORE, required=not first),
            click.Option(["--output"], type=STORE, help="FILE.csv"),
        ]
        if first:
            params.insert(1, click.Option([f"--{first}"], type=STORE, help="The same as STORE."))
        where = f"--{first} xenium.zarr" if first else "cohort.zarr"
        super().__init__(
            name,
            params=params,
            callback=lambda **options: self._run(chosen_store(options, first), **options),
            help=f"{entry.summary[0].upper()}{entry.summary[1:]}.",
            epilog=f"Example: stdist measure {name} {where} {entry.example} --output table.csv",
        )
        self.function, self.complete = entry.function, False
        cluster_options(self)

    def _public(self) -> Callable[..., Any]:
        return _function(self.function)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        if not self.complete:
            self.params[1:1] = self._options()
            self.complete = True
        return super().get_params(ctx)

    def _options(self) -> list[click.Option]:
        return method_options(self._public())

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


class _KeptMeasure(_Measure):
    """A measure that is a program, too: its table is kept in the store."""

    def __init__(self, name: str, entry: Entry) -> None:
        super().__init__(name, entry)
        flag = click.Option(["--overwrite"], is_flag=True, help="Replace what is kept.")
        self.params.append(flag)
        block_option(self)

    def _options(self) -> list[click.Option]:
        return kept_options(self.function)


def kept_options(function: str) -> list[click.Option]:
    """Options of a measure that is a program, and those of the fit that it passes on."""
    own = [option for option in method_options(_function(function)) if option.name not in NO_TEXT]
    path, without = PASSED_ON[function]
    known = {option.name for option in own} | without
    return own + [o for o in method_options(_function(path)) if o.name not in known]


def _function(name: str) -> Callable[..., Any]:
    """Find a function of `stdist.metrics`, or one named with its module."""
    module, _, function = name.rpartition(".")
    found: Callable[..., Any] = getattr(
        importlib.import_module(module or "stdist.metrics"), function
    )
    return found


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """Options as the functions take them: pairs A:B, the name X for the main matrix."""
    if "type_pairs" in options:
        options["type_pairs"] = [tuple(pair.split(":")) for pair in options["type_pairs"]]
    if "layers" in options:
        options["layers"] = [None if layer == "X" else layer for layer in options["layers"]]
    return options


def _table(found: Any) -> tuple[Any, str]:
    from stdist.methods.siid.holdout import HoldoutScores
    from stdist.metrics.hvg import HvgConservation

    if isinstance(found, HoldoutScores):
        shown = found.summary[["genes", "r2", "pearson", "advantage", "beaten"]]
        note = shown.round(4).to_string()
        if found.types is not None:
            note += f"\n\n{found.types.round(4).to_string(index=False)}"
        return found.scores.set_index(["fold", "gene", "method"]), note
    if hasattr(found, "to_dataframe"):
        return found.to_dataframe(), ""
    if isinstance(found, HvgConservation):
        return found.genes, f"share of highly variable genes kept: {found.score:.3f}"
    absent = found.attrs.get("absent")
    return found, f"{len(absent)} pairs have a gene that is absent" if absent else ""


for _name, _entry in MEASURES.items():
    measure.add_command(_Measure(_name, _entry))
for _name, _program in PROGRAMS.items():
    if _program.kind == "measure":
        _shown = Entry(_program.function, _program.summary, _program.example, _program.store_option)
        measure.add_command(_KeptMeasure(_name.replace("_", "-"), _shown))
