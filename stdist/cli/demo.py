"""`stdist demo`: the whole way from counts to a report, on one small cohort."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from stdist.store import InputError, Store

if TYPE_CHECKING:
    from stdist.graph import Cluster

CLUSTERS = 12


def run_demo(
    executor: Cluster,
    out: Path,
    data: str | None,
    batch_key: str,
    clusters: str | None,
    n_cells: int,
    *,
    echo: Callable[[str], None],
) -> Path:
    """Simulate or convert, plan, run Crescendo, measure, report; return the report's path.

    Raises
    ------
    InputError
        If the folder exists.
    """
    if out.exists():
        raise InputError(
            "output-exists",
            "the folder of the demo exists",
            place=str(out),
            remedy="remove it, or choose another with --out",
        )
    try:
        return _show(executor, out, data, batch_key, clusters, n_cells, echo)
    except InputError:
        shutil.rmtree(out, ignore_errors=True)  # so that the corrected command can run
        raise


def _show(
    executor: Cluster,
    out: Path,
    data: str | None,
    batch_key: str,
    clusters: str | None,
    n_cells: int,
    echo: Callable[[str], None],
) -> Path:
    from stdist import io, pp, tl
    from stdist.cli import show
    from stdist.graph import make_plan, resources_for
    from stdist.methods.registry import PROGRAMS
    from stdist.methods.simulate import simulate
    from stdist.report import write_report

    client = executor.client
    store = out / "cohort.zarr"
    if data is None:
        echo(f"1. simulate {n_cells} cells on 4 slides -> {store}")
        simulate(store, n_cells=n_cells, n_genes=300, n_batches=4, client=client)
        clusters = clusters or "cell_type"
    else:
        echo(f"1. convert {data} -> {store}")
        io.convert(data, store, client=executor)
    Store(store).element(f"obs/{batch_key}")  # a wrong key is refused before the long part
    if clusters is None:
        echo(f"   cluster: normalise, {CLUSTERS} k-means clusters of 20 principal components")
        genes = Store(store).n_vars
        pp.normalize_total(store, log1p=True, client=client)
        pp.pca(store, layer="normalized", n_comps=min(20, genes), client=client)
        tl.kmeans(store, n_clusters=CLUSTERS, client=client)
        clusters = "kmeans"
    echo("2. plan")
    parameters = {"data": str(store), "batch_key": batch_key, "clusters": clusters}
    program = PROGRAMS["crescendo"].build(parameters)
    show.plan(make_plan(program, resources_for(program, executor)))
    echo("3. run Crescendo")
    folder = tl.crescendo(store, batch_key=batch_key, clusters=clusters, client=client)
    assert folder is not None
    echo("4. measure and report")
    return write_report(folder, output=out / "report.html", client=client)
