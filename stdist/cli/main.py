"""The command line: all commands, and exit codes."""

from __future__ import annotations

import os
import signal
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import click

from stdist import __version__
from stdist.cli import runs, stores
from stdist.cli.measure import measure
from stdist.cli.options import STORE, cluster_options, done, executor
from stdist.cli.programs import plan, run
from stdist.store.errors import StdistError

EPILOG = (
    "Exit codes: 0 done, 2 bad input or usage, 3 refused by the plan, 4 corruption, "
    "5 stopped but resumable, 1 anything else."
)


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="stdist")
def cli() -> None:
    """Out-of-core, distributed spatial transcriptomics."""


@click.command(
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
    done(path)


for command in (
    stores.convert,
    stores.simulate,
    stores.simulate_pair,
    stores.filter_command,
    plan,
    run,
    measure,
    runs.resume,
    runs.status,
    runs.verify,
    runs.report,
    demo,
):
    cli.add_command(command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with the documented code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    warnings.showwarning = _show_warning
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
