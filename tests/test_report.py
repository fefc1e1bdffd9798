from __future__ import annotations

import doctest
import re
import shutil
import sys
import warnings
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import stdist
from stdist.graph import InProcess, run_folders, start
from stdist.graph.record import RunRecord
from stdist.methods.simulate_pair import simulate_pair
from stdist.report import genes, html, siid, write_report
from stdist.report.genes import summarise
from stdist.report.run import RunFacts
from stdist.report.siid_controls import holdout_command
from stdist.store import InputError, RunStopped
from tests import toy

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Check nesting, and collect addresses, headings and text."""

    def __init__(self, path):
        super().__init__()
        self.open, self.addresses, self.images, self.headings, self.words = [], [], 0, [], []
        self.source = path.read_text()
        self.feed(self.source)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.images += tag == "img"
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "h2" in self.open:
            self.headings.append(data)
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(self.words)


def quietly(function, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **options)


def corrected(path, **options):
    settings = {"batch_key": "batch", "clusters": "cell_type"}
    return quietly(stdist.tl.crescendo, path, progress=False, **settings | options)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """A store with a finished Crescendo run; read only."""
    path = tmp_path_factory.mktemp("report") / "cohort.zarr"
    stdist.simulate(path, n_cells=3000, n_genes=40, n_batches=3, n_types=4, progress=False)
    return path, corrected(path)


@pytest.fixture(scope="module")
def page(cohort, tmp_path_factory):
    output = tmp_path_factory.mktemp("page") / "report.html"
    assert write_report(cohort[1], output=output) == output
    return output


def written(adata, path):
    """Write an AnnData as a store, in the encoding that its counts have."""
    kind = "csr" if sparse.issparse(adata.X) else "dense"
    quietly(stdist.io.write, adata, path, kind=kind)
    return path


def small(n=400, batches=("a", "b"), form=np.asarray):
    anndata = pytest.importorskip("anndata")
    rng = np.random.default_rng(5)
    counts = rng.poisson([[2.0, 0.5, 0.0, 1.0]], (n, 4)).astype(np.float32)
    adata = anndata.AnnData(form(counts))
    adata.var_names = ["<b>bold</b>", "B", "none", "D"]
    batch = rng.choice(list(batches), n)
    adata.obs["batch"] = pd.Categorical(batch, categories=[*batches, "never & used"])
    adata.obs["cell_type"] = pd.Categorical(rng.choice(["x", "y"], n), categories=["x", "y", "z"])
    return adata


def test_the_report_needs_nothing_else(page):
    parsed = Page(page)
    assert all(a.startswith(("data:image/png;base64,", "#")) for a in parsed.addresses)
    assert not re.search(r"https?://|<script|@import|url\(", parsed.source)
    assert parsed.images == 4
    assert parsed.headings == [
        *(["Warnings"] if "Warnings" in parsed.headings else []),
        "Quality",
        "Genes before and after",
        "Plan and measurement",
        "Parameters",
        "Provenance",
    ]


def test_the_report_has_the_numbers_of_the_metrics(cohort, page):
    table = stdist.metrics.bvr_cvr(cohort[0], batch_key="batch", label_key="cell_type")
    facts, text = summarise(table), Page(page).text
    assert f"{facts['in_zone']} / {facts['with_batch_variance']}" in text
    for name in ("median_bvr", "median_cvr", "total_ratio", "largest_gene_ratio"):
        assert html.number(facts[name]) in text
    chosen = genes.telling_genes(table)
    assert len(chosen) == 3
    first = table.nlargest(20, "batch_variance_before")
    assert all(name in text for name in [*first.index, *chosen])
    read = pd.read_csv(page.with_name("metrics.csv"), index_col="gene")
    pd.testing.assert_frame_equal(read, table, check_exact=False, rtol=1e-12)


def test_the_report_has_plan_parameters_and_provenance(cohort, page):
    text, run = Page(page).text, RunRecord(cohort[1]).read_json("run.json")
    for word in ("3,000", "40", "done", run["fingerprint"], run["run"], run["versions"]["numpy"]):
        assert word in text
    for stage in run["plan"]["stages"]:
        assert stage["name"] in text
        assert html.in_bytes(stage["memory"]) in text
    assert all(name in text for name in run["parameters"])
    assert f"stdist verify {cohort[0]}" in text


def test_chosen_genes_and_the_default_place(cohort, tmp_path):
    path = shutil.copytree(cohort[0], tmp_path / "moved.zarr")
    run = run_folders(path)[-1]
    output = write_report(run, genes=["gene_0007"])
    assert output == run / "report.html"
    page = Page(output)
    assert "Maps of gene_0007 in each batch" in page.source
    assert str(path) in page.text
    assert "--genes gene_0007" in page.text
    with pytest.raises(InputError, match="not in the data"):
        write_report(run, genes=["absent"])


def test_without_matplotlib_the_report_has_no_pictures_and_says_so(cohort, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    page = Page(write_report(cohort[1], output=tmp_path / "plain.html"))
    assert page.images == 0
    assert "stdist[viz]" in page.text
    assert "Quality" in page.headings
    assert (tmp_path / "metrics.csv").exists()


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
def test_no_coordinates_an_unused_category_and_names_like_tags(tmp_path, form):
    run = corrected(written(small(form=form), tmp_path / "small.zarr"))
    page = Page(write_report(run, genes=["<b>bold</b>", "none"]))
    assert "no obsm entry 'spatial'" in page.text
    assert "<b>bold</b>" in page.text
    assert "<b>bold" not in page.source
    assert "[batch-empty] no cell in batch never & used" in page.text
    assert page.images == 3


def test_one_batch(tmp_path):
    adata = small(batches=("a",))
    adata.obs["batch"] = adata.obs["batch"].cat.remove_unused_categories()
    adata.obsm["spatial"] = np.random.default_rng(0).random((adata.n_obs, 2))
    run = corrected(written(adata, tmp_path / "one.zarr"))
    page = Page(write_report(run))
    assert "one-batch" in page.text
    assert "there are 1 batches and 3 cell types" in page.text
    assert page.images == 3
    assert not (run / "metrics.csv").exists()


def test_soft_clusters_are_measured_only_with_labels(tmp_path):
    adata = small()
    weights = np.random.default_rng(1).dirichlet([1.0, 1.0], adata.n_obs)
    adata.obsm["R"] = weights
    run = corrected(written(adata, tmp_path / "soft.zarr"), clusters="R")
    page = Page(write_report(run))
    assert "write the report again with --label-key" in page.text
    assert page.images == 2
    page = Page(write_report(run, label_key="cell_type"))
    assert "median BVR" in page.text
    with pytest.raises(InputError, match="element"):
        write_report(run, label_key="absent")


def test_other_programs_get_the_parts_that_apply(cohort, tmp_path):
    simulation = run_folders(cohort[0])[0]
    page = Page(write_report(simulation, output=tmp_path / "a.html"))
    assert page.headings == ["Plan and measurement", "Parameters", "Provenance"]
    page = Page(
        write_report(simulation, output=tmp_path / "b.html", batch_key="batch", genes=["gene_0001"])
    )
    assert "Genes" in page.headings
    assert page.images == 3


def test_rounds_of_a_loop(tmp_path):
    adata = small()
    adata.obsm["X_pca"] = np.random.default_rng(2).normal(size=(adata.n_obs, 2))
    path = written(adata, tmp_path / "loop.zarr")
    run = stdist.tl.kmeans(path, n_clusters=3, progress=False)
    page = Page(write_report(run))
    assert "Convergence" in page.headings
    assert "Rounds: " in page.text


FIT = {
    "n_factors": 3,
    "n_restarts": 2,
    "n_solutions": 2,
    "passes": 3,
    "convergence_passes": 4,
    "entropy_passes": 2,
    "sample_cells": 1024,
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Stores of a simulated pair; tests write copies."""
    folder = tmp_path_factory.mktemp("pair")
    paths = folder / "cells.zarr", folder / "spots.zarr"
    simulate_pair(*paths, n_cells=1500, n_genes=30, n_panel=20, n_types=3, progress=False)
    return paths


def test_a_pair_of_slides_has_genes_spots_and_losses(pair, tmp_path, monkeypatch):
    cells = shutil.copytree(pair[0], tmp_path / "cells.zarr")
    spots = shutil.copytree(pair[1], tmp_path / "spots.zarr")
    held_out = ["gene_0003", "gene_0017"]
    fit = FIT | {"held_out": held_out}
    run = quietly(stdist.tl.siid, cells, spots=spots, progress=False, **fit)
    page = Page(write_report(run))
    own = ["Imputed genes", "Against simple controls", "Types in the spots", "Losses"]
    assert [name for name in page.headings if name != "Warnings"][:4] == own
    assert page.images == 4
    assert re.search("imputed maps of (gene_0003, gene_0017|gene_0017, gene_0003)", page.source)
    adata = stdist.io.open(cells)
    imputed = stdist.tl.imputed_layer(adata, genes=held_out).compute()
    counts = np.asarray(adata[:, held_out].X)
    r2 = [np.corrcoef(imputed[:, n], counts[:, n])[0, 1] ** 2 for n in range(2)]
    total = adata.X.compute()[:, ~adata.var_names.isin(held_out)].sum(axis=1)
    alone = [np.corrcoef(total, counts[:, n])[0, 1] ** 2 for n in range(2)]
    for found in (*r2, *alone, np.mean(r2), np.mean(alone)):
        assert html.number(found) in page.text
    scores = adata.uns["siid"]["held_out"]
    for name, mean in scores.drop(columns="solution 1").mean().items():
        assert html.number(mean) in page.text, name
    assert "best restart alone, spots permuted" in page.text
    assert f"stdist measure siid-holdout --cells {cells} --spots {spots}" in page.text
    factors = adata.uns["siid"]["factors"]
    assert html.number(factors["loss"][1, -1].sum() - factors["loss"][1, -1, 1]) in page.text
    assert html.number(np.nanmean(factors["spot_proportion_hard"][:, 2])) in page.text
    page = Page(write_report(run, genes=["gene_0029"]))
    assert "imputed maps of gene_0029" in page.source
    shutil.rmtree(spots)
    page = Page(write_report(run))
    assert "No maps: the spots are no longer at" in page.text
    assert page.images == 3
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert Page(write_report(run)).images == 0


def test_a_fit_without_types_or_held_out_genes_says_what_its_scores_mean(pair, tmp_path):
    cells = shutil.copytree(pair[0], tmp_path / "cells.zarr")
    fit = FIT | {"deconvolve": False, "controls": False}
    run = quietly(stdist.tl.siid, cells, spots=pair[1], progress=False, **fit)
    page = Page(write_report(run))
    assert "Types in the spots" not in page.headings
    assert "How well this fit imputes genes is not known" in page.text
    assert "stdist measure siid-holdout --cells" in page.text
    assert page.images == 3


def test_a_hold_out_is_set_beside_its_controls_in_the_report_of_the_fit(pair, tmp_path):
    cells = shutil.copytree(pair[0], tmp_path / "cells.zarr")
    fit = FIT | {"deconvolve": False, "key_added": "mine"}
    run = quietly(stdist.tl.siid, cells, spots=pair[1], progress=False, **fit)
    assert "--key-added mine_holdout" in Page(write_report(run)).text
    few = {**fit, "key_added": "mine_holdout", "n_folds": 4, "folds": [1], "passes": 1}
    few["n_factors"] = 1  # imputes the total of the cell, which is a control
    found = quietly(stdist.tl.siid_holdout, cells, spots=pair[1], progress=False, **few)
    pages = [Page(write_report(folder)) for folder in (run, run_folders(cells)[-1])]
    for page in pages:  # of the fit, and of the scoring itself
        assert "Against simple controls" in page.headings
        assert "stdist measure" not in page.text
        assert "held out of a second fit beside this one" in page.text
        text = "The hold-out below has other parameters than the fit. n_factors: 1, in the fit 3"
        assert text in page.text
        assert f"passes: 1, in the fit {FIT['passes']}" in page.text
        assert page.images == 4
        for _, row in found.summary.iterrows():
            assert html.number(row["r2"]) in page.text
        told = [note for note in found.notes if note.startswith("[control-")]
        assert told
        assert all(note in page.text for note in told)
    impute = stdist.tl.siid_impute(cells, key="mine", genes=["gene_0001"], progress=False)
    assert "Against simple controls" in Page(write_report(impute)).headings
    command = holdout_command(RunFacts(run))
    changed = RunFacts(run)
    changed.parameters |= {"layer": "raw counts", "transform": [[1, 0, 5], [0, 1, 0], [0, 0, 1]]}
    longer = holdout_command(changed)
    assert longer.startswith(command.partition(" --key-added")[0])
    assert "--layer 'raw counts' --transform 1,0,5,0,1,0,0,0,1" in longer
    changed.parameters |= {"updates_per_pass": 4, "shrink": True, "layer": None}
    assert "--updates-per-pass 4 --transform" in holdout_command(changed)
    changed.parameters |= {"spots_model": "negative_binomial", "shrink": False}
    changed.parameters |= {"updates_per_pass": 1}
    assert "--spots-model negative_binomial --no-shrink --transform" in holdout_command(changed)


def test_a_hold_out_without_a_fit_has_a_report_of_its_scores(pair, tmp_path):
    cells = shutil.copytree(pair[0], tmp_path / "cells.zarr")
    few = {**FIT, "key_added": "alone", "n_folds": 4, "folds": [1], "progress": False}
    few["proportions"] = "true_type_total"
    found = quietly(stdist.tl.siid_holdout, cells, spots=pair[1], **few)
    page = Page(write_report(run_folders(cells)[-1]))
    assert page.headings.count("Against simple controls") == 1
    for value in (*found.summary["r2"], *found.types["js"]):
        assert html.number(value) in page.text


def test_nothing_to_draw_without_controls(pair):
    adata = stdist.io.open(pair[0]).to_memory()
    with pytest.raises(InputError, match="scores-absent"):
        stdist.pl.holdout_scores(adata)
    scores = pd.DataFrame({"gene": ["a"], "method": ["siid"], "r2": [0.5]})
    adata.uns["siid_holdout"] = {"scores": scores}
    with pytest.raises(InputError, match="no scores of controls"):
        stdist.pl.holdout_scores(adata)


def test_an_unfinished_run_says_why_and_how_to_resume(store, tmp_path):
    folder = tmp_path / "script"
    folder.mkdir()
    program = toy.copy_program(store, folder, {"0": ("error", 99)})
    with pytest.raises(RunStopped):
        start(program, InProcess(), block_length=1024)
    waiting = run_folders(store)[-1]
    page = Page(write_report(waiting))
    assert "has not finished" in page.text
    assert f"stdist resume {store}" in page.text


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="no run record"):
        write_report(tmp_path)


def test_examples():
    assert doctest.testmod(html).failed == 0
    assert doctest.testmod(genes).failed == 0
    assert doctest.testmod(siid).failed == 0
