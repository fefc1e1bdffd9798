"""The command line: the whole way on real data, exit codes, JSON, parameters from TOML."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import anndata
import pandas as pd
import pytest

from stdist.cli import main
from stdist.store import StdistWarning, Store


def run(*arguments, capsys=None):
    """Exit code and printed text of a command."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    text = capsys.readouterr() if capsys is not None else None
    return ended.value.code or 0, text


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "cohort.zarr"
    code, _ = run("simulate", path, "--cells", 20000, "--genes", 40, "--batches", 3, "--seed", 2)
    assert code == 0
    return path


def test_convert_plan_run_status_verify_report_on_real_slides(shared, tmp_path, capsys):
    store = tmp_path / "starmap.zarr"
    code, text = run("convert", shared / "data/starmap_visp_2rep.h5ad", store, capsys=capsys)
    assert (code, text.out.strip()) == (0, str(store))
    what = ["crescendo", store, "--batch-key", "batch", "--clusters", "cell_type"]
    code, text = run("plan", *what, "--json", "--graph", tmp_path / "graph.svg", capsys=capsys)
    plan = json.loads(text.out)
    assert code == 0
    assert plan["fits"]
    assert [stage["name"] for stage in plan["stages"]][:2] == ["strata", "effects"]
    assert (tmp_path / "graph.svg").read_text().startswith("<svg")
    code, _ = run("run", *what, capsys=capsys)
    assert code == 0
    code, text = run("status", store, "--json", capsys=capsys)
    assert [one["state"] for one in json.loads(text.out)] == ["done", "done"]
    code, text = run("verify", store, capsys=capsys)
    assert code == 0
    assert "0 damaged" in text.out
    page = next((store / ".stdist" / "runs").glob("crescendo-*/report.html"))
    assert "BVR" in page.read_text()
    adata = anndata.read_zarr(store)
    assert adata.layers["crescendo"].dtype.kind == "u"
    assert adata.layers["crescendo"].shape == adata.shape


def test_bad_input_is_2_and_names_thing_place_remedy(cohort, tmp_path, capsys):
    what = ["crescendo", tmp_path / "no.zarr", "--batch-key", "b", "--clusters", "c"]
    code, text = run("run", *what, capsys=capsys)
    assert code == 2
    for part in ("[store-unknown]", "where:", "remedy:"):
        assert part in text.err
    assert run("run", "crescendo", cohort, "--batch-key", "batch", capsys=capsys)[0] == 2
    assert run("nonsense", capsys=capsys)[0] == 2
    assert run("convert", tmp_path / "no.h5ad", tmp_path / "out.zarr", capsys=capsys)[0] == 2
    assert not (tmp_path / "out.zarr").exists()
    what = ["crescendo", cohort, "--batch-key", "batch", "--clusters", "nothing"]
    code, text = run("plan", *what, capsys=capsys)
    assert code == 2
    assert "cell_type" in text.err


def test_plan_refuses_with_3_and_names_a_length_that_fits(cohort, capsys):
    what = ["crescendo", cohort, "--batch-key", "batch", "--clusters", "cell_type"]
    code, text = run("plan", *what, "--memory", "200MB", capsys=capsys)
    assert code == 3
    assert "worst" in text.err or "stage" in text.err
    assert "MiB" in text.err


def test_corruption_is_4_and_record_accepts(cohort, tmp_path, capsys):
    import shutil

    store = shutil.copytree(cohort, tmp_path / "damaged.zarr")
    shard = store / "X" / "c" / "0" / "0"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    code, text = run("verify", store, capsys=capsys)
    assert code == 4
    assert "altered: X/c" in text.out
    code, text = run("verify", store, "--json", capsys=capsys)
    assert json.loads(text.out)["damage"][0]["kind"] == "altered"
    assert run("run", "qc", store, capsys=capsys)[0] == 4


def test_parameters_from_toml(cohort, tmp_path, capsys):
    path = tmp_path / "crescendo.toml"
    path.write_text('batch-key = "batch"\nclusters = "cell_type"\nprior-sd = 0.5\n')
    code, _ = run("plan", "crescendo", cohort, "--params", path, capsys=capsys)
    assert code == 0
    path.write_text('batch_key = "batch"\nclusters = "cell_type"\nnonsense = 1\n')
    code, text = run("plan", "crescendo", cohort, "--params", path, capsys=capsys)
    assert code == 2
    assert "nonsense" in text.err
    for broken in ("no = = toml", 'batch_key="batch"\nclusters="cell_type"\nprior_sd="a"\n'):
        path.write_text(broken)
        assert run("plan", "crescendo", cohort, "--params", path, capsys=capsys)[0] == 2
    what = ["plan", "crescendo", cohort, "--batch-key", "batch", "--clusters", "cell_type"]
    for genes in ("", f"@{tmp_path / 'missing.txt'}"):
        assert run(*what, "--genes", genes, capsys=capsys)[0] == 2


@pytest.mark.fault
def test_terminated_run_is_5_and_resumes(tmp_path, capsys):
    store = tmp_path / "big.zarr"
    command = [sys.executable, "-m", "stdist", "simulate", str(store), "--cells", "400000",
               "--genes", "300", "--block-length", "8192"]  # fmt: skip
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    runs = tmp_path / "big.zarr.partial" / ".stdist" / "runs"
    deadline = time.monotonic() + 60
    while not list(runs.glob("*/done/simulate/*.json")) and time.monotonic() < deadline:
        time.sleep(0.1)
    child.send_signal(signal.SIGTERM)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 5, errors
    assert "stdist resume" in errors
    code, text = run("status", store, capsys=capsys)
    assert code == 0
    assert "stopped" in text.out
    code, _ = run("resume", store, capsys=capsys)
    assert code == 0
    assert Store(store).n_obs == 400000
    events = next((store / ".stdist" / "runs").glob("simulate-*")) / "events.jsonl"
    tasks = [json.loads(line) for line in events.read_text().splitlines()]
    assert len([task for task in tasks if task["stage"] == "simulate"]) <= 49 + 2  # in flight


def test_measures_write_tables(cohort, tmp_path, capsys):
    labels = ["--slice-key", "batch", "--label-key", "cell_type"]
    pairs = tmp_path / "pairs.csv"
    names = anndata.read_zarr(cohort).var_names
    pd.DataFrame({"ligand": names[:3], "receptor": names[3:6]}).to_csv(pairs, index=False)
    table = tmp_path / "table.csv"
    code, _ = run("measure", "sci", cohort, *labels, "--pairs", pairs, "--radius", 50,
                  "--type-pairs", "type_00:type_01", "--output", table, capsys=capsys)  # fmt: skip
    assert code == 0
    found = pd.read_csv(table)["sci"]
    assert len(found) == 9  # slices x pairs of genes
    assert found.dropna().between(-1, 1).all()
    code, text = run("measure", "morans-i", cohort, "--genes", names[0], "--slice-key", "batch",
                     capsys=capsys)  # fmt: skip
    assert code == 0
    assert names[0] in text.out
    code, text = run("measure", "sci", cohort, *labels, "--pairs", tmp_path / "none.csv",
                     capsys=capsys)  # fmt: skip
    assert code == 2
    assert "none.csv" in text.err
    few = ["--pairs", pairs, "--n-permutations", 20, "--type-pairs", "type_00:type_01"]
    for layers in ([], ["--layers", "X"]):
        code, _ = run("measure", "ligand-receptor", cohort, *labels, *few, *layers,
                      "--output", table, capsys=capsys)  # fmt: skip
        assert code == 0
        assert {"score", "p_value"} <= set(pd.read_csv(table).columns)
    code, text = run("measure", "sci", cohort, *labels, "--pairs", pairs,
                     "--type-pairs", "type_00", capsys=capsys)  # fmt: skip
    assert code == 2
    assert "type_00" in text.err
    code, text = run("measure", "bvr-cvr", cohort, "--batch-key", "batch", capsys=capsys)
    assert code == 2
    assert "label-key" in text.err


def test_a_pair_of_slides_from_simulation_to_imputation(tmp_path, capsys):
    cells, spots = tmp_path / "cells.zarr", tmp_path / "spots.zarr"
    code, text = run("simulate-pair", cells, spots, "--cells", 1500, "--genes", 30, "--panel", 20,
                     "--types", 3, "--workers", 1, capsys=capsys)  # fmt: skip
    assert code == 0
    assert text.out.split() == [str(cells), str(spots)]
    with warnings.catch_warnings():
        warnings.simplefilter("always", StdistWarning)
        code, text = run("plan", "siid", "--cells", cells, "--spots", spots, capsys=capsys)
    assert code == 0, text.err
    assert "n_factors is not given and 20" in text.err
    what = ["siid", "--cells", cells, "--spots", spots, "--n-factors", 3]
    few = ["--n-solutions", 2, "--n-restarts", 2, "--passes", 3, "--convergence-passes", 3,
           "--entropy-passes", 2, "--sample-cells", 1024, "--workers", 1]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("always", StdistWarning)
        code, text = run("run", *what, *few, capsys=capsys)
    assert code == 0, text.err
    assert "[control-permuted]" in text.err  # two genes tell nothing of positions
    assert text.out.strip() == str(cells)
    assert "report: " in text.err
    code, text = run("run", "siid_impute", cells, "--genes", "gene_0002,gene_0025",
                     "--spots", spots, "--workers", 1, capsys=capsys)  # fmt: skip
    assert code == 0, text.err
    adata = anndata.read_zarr(cells)
    assert adata.obsm["imputed"].shape == (1500, 2)
    assert list(adata.uns["imputed"]["genes"]["scale"]) == ["cells", "spots"]
    table = tmp_path / "scores.csv"
    what = ["measure", "siid-holdout", "--cells", cells, "--spots", spots, "--n-factors", 3,
            "--n-solutions", 2, "--n-restarts", 2, "--passes", 2, "--sample-cells", 1024,
            "--n-folds", 4, "--folds", "2", "--workers", 1]  # fmt: skip
    code, text = run("plan", "siid_holdout", *what[2:], capsys=capsys)
    assert code == 0, text.err
    assert "fold2.permuted.score" in text.out
    what += ["--output", table]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StdistWarning)  # a fit this short beats nothing
        code, text = run(*what, capsys=capsys)
    assert code == 0, text.err
    assert text.out.strip() == str(table)
    assert "beaten" in text.err
    scores = pd.read_csv(table)
    assert set(scores["fold"]) == {2}
    kept = anndata.read_zarr(cells).uns["siid_holdout"]["scores"]
    assert list(kept["r2"]) == pytest.approx(list(scores["r2"]))
    code, text = run("report", cells, capsys=capsys)
    assert code == 0, text.err
    page = Path(text.out.strip())
    assert page.parent.name.startswith("siid_holdout-")
    assert "spots permuted" in page.read_text()
    code, text = run("verify", cells, capsys=capsys)
    assert "0 damaged" in text.out
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StdistWarning)  # one of two is at the edge
        what = ["siid_choose_passes", "--cells", cells, "--spots", spots, "--n-factors", 3,
                "--passes", "1,2", "--n-restarts", 1, "--n-solutions", 1,
                "--folds", "0", "--workers", 1]  # fmt: skip
        code, text = run("run", *what, capsys=capsys)
    assert code == 0, text.err
    chosen = int(anndata.read_zarr(cells).uns["siid_passes"]["passes"])
    assert text.out.split("\n")[:2] == [f"passes: {chosen}", str(cells)]


def test_the_first_of_two_stores_by_place_or_by_option(cohort, tmp_path, capsys):
    more = ["--spots", tmp_path / "none.zarr", "--n-factors", 3]
    for given in ([cohort], ["--cells", cohort]):  # both are read: the spots are what is missing
        code, text = run("plan", "siid", *given, *more, "--workers", 1, capsys=capsys)
        assert code == 2
        assert "none.zarr" in text.err
        assert "[store-unknown]" in text.err
    for given in ([], [cohort, "--cells", cohort]):
        code, text = run("plan", "siid", *given, *more, capsys=capsys)
        assert code == 2
        assert "give the store once: as STORE or with --cells" in text.err
    assert run("plan", "qc", capsys=capsys)[0] == 2
    code, text = run("simulate-pair", tmp_path / "a.zarr", cohort, "--cells", 10, "--workers", 1,
                     capsys=capsys)  # fmt: skip
    assert code == 2
    assert "[output-exists]" in text.err
    assert not (tmp_path / "a.zarr").exists()
