"""Commands that make a store: of files, of nothing, of another store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stdist.cli.options import STORE, block_option, cluster_options, done, executor


@click.command(epilog="Example: stdist convert a.h5ad b.h5ad cohort.zarr --batch-names a,b")
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
    done(output)


@click.command(
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
    done(output)


@click.command(
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
    done(cells_output)
    done(spots_output)


@click.command("filter", epilog="Example: stdist filter cohort.zarr filtered.zarr --min-counts 50")
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
    done(output)
