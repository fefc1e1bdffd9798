from __future__ import annotations

import sys
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import stdist
from stdist.graph import run_in_memory
from stdist.plots import rasters, stages
from stdist.plots.maps import in_micrometres
from stdist.store import InputError

pytest.importorskip("matplotlib")
PNG = b"\x89PNG"


def cohort(n=1500, n_batches=3, seed=0):
    """Counts of three genes in batches of different depth; gene `never` has none."""
    anndata = pytest.importorskip("anndata")
    rng = np.random.default_rng(seed)
    rates = rng.gamma(2.0, 0.5, (n, 1)) * [0.2, 1.0, 0.0]
    counts = rng.poisson(rates).astype(np.float32)
    adata = anndata.AnnData(counts)
    adata.var_names = ["rare", "common$1$", "never"]
    adata.obs["slide"] = pd.Categorical([f"s{b:02d}" for b in rng.integers(0, n_batches, n)])
    adata.obs["type"] = pd.Categorical(rng.choice(["x", "y"], n), categories=["x", "y", "unused"])
    adata.obsm["spatial"] = rng.random((n, 2)) * [300, 150] - 40
    adata.layers["after"] = np.maximum(counts - 1, 0)
    return adata


@pytest.fixture(scope="module")
def adata():
    return cohort()


def rasterised(data, **options):
    settings = {"genes": ["common$1$", "rare"], "batch_key": "slide", "layers": (None, "after")}
    return rasters.rasterise(data, **settings | options)


def texts(figure):
    return " ".join(text.get_text() for text in figure.texts).replace("\n", " ")


def test_rasters_are_means_at_mean_depth(adata):
    found = rasterised(adata, pixels=12)
    counts, after = np.asarray(adata.X, float), np.asarray(adata.layers["after"], float)
    depth, scale = counts.sum(1), counts.sum() / len(counts)
    for b, name in enumerate(found.batches):
        own = (adata.obs["slide"] == name).to_numpy()
        place = adata.obsm["spatial"][own]
        low, size = place.min(0), (place.max(0) - place.min(0)).max() / 12
        x, y = np.minimum((place - low) // size, 11).astype(int).T
        pixel = (y == 4) & (x == 7)
        assert found.tissue[b, 4, 7] == pixel.sum()
        for layer, values in enumerate((counts, after)):
            for gene, column in enumerate((1, 0)):
                inside = values[own, column]
                expected = inside.sum() / depth[own].sum() * scale
                assert found.mean[layer, gene, b] == pytest.approx(expected, rel=1e-12)
                rate = inside[pixel].sum() / max(1, depth[own][pixel].sum()) * scale
                drawn = found.expression[layer, gene, b, 4, 7]
                assert drawn == pytest.approx(np.log1p(rate), rel=1e-12)


def test_rasters_do_not_depend_on_blocks_or_encoding(adata, monkeypatch):
    whole = rasterised(adata)
    coded = adata.copy()
    coded.X = sparse.csr_matrix(coded.X)
    coded.layers["after"] = sparse.csr_matrix(coded.layers["after"])

    def in_blocks(program, executor):
        return run_in_memory(program, executor, block_length=1024)

    monkeypatch.setattr("stdist.plots.passes.run_in_memory", in_blocks)
    for data in (adata, coded):
        again = rasterised(data)
        for name in ("tissue", "expression", "mean", "size", "cells"):
            np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))


def test_gene_maps_name_genes_batches_and_means(adata):
    figure = stdist.pl.gene_maps(
        adata, genes=["rare", "common$1$", "never"], batch_key="slide", layers=(None, "after")
    )
    words = texts(figure).replace("\\$", "$")
    for word in ("rare", "common$1$", "never", "s00", "s02", "before", "after", "mean 0"):
        assert word in words
    assert "µm" not in words
    assert figure.png().startswith(PNG)


def test_many_batches_show_the_largest_and_a_known_unit_its_bar():
    adata = cohort(n_batches=11)
    adata.uns["spatial_unit"] = "micrometre"
    assert in_micrometres(adata)
    words = texts(stdist.pl.gene_maps(adata, genes="rare", batch_key="slide", layers=(None,)))
    assert "8 largest of 11 batches" in words
    assert "µm" in words
    sizes = adata.obs["slide"].value_counts()
    drawn = sizes.index.map(lambda name: name in words).to_numpy()
    assert drawn.sum() == 8
    assert sizes[drawn].min() >= sizes[~drawn].max()


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"genes": ["rare", "absent"]}, "gene-absent"),
        ({"genes": []}, "gene-absent"),
        ({"genes": "rare", "spatial_key": "place"}, "element-unknown"),
        ({"genes": "rare", "spatial_key": "line"}, "spatial-shape"),
        ({"genes": "rare", "batch_key": "batch"}, "element-unknown"),
        ({"genes": "rare", "layers": ("nowhere",)}, "element-unknown"),
    ],
)
def test_wrong_requests_are_refused(adata, options, code):
    adata = adata.copy()
    adata.obsm["line"] = np.zeros((adata.n_obs, 1))
    with pytest.raises(InputError) as error:
        stdist.pl.gene_maps(adata, **{"batch_key": "slide", "layers": (None,)} | options)
    assert error.value.code == code


def test_counts_by_batch_with_and_without_types(adata):
    options = {"genes": ["rare", "never"], "batch_key": "slide", "layers": (None, "after")}
    figure = stdist.pl.counts_by_batch(adata, label_key="type", **options)
    dots = figure.axes[0].collections
    assert len(dots) == 3
    counts, depth = np.asarray(adata.X, float), np.asarray(adata.X, float).sum(1)
    own = ((adata.obs["slide"] == "s01") & (adata.obs["type"] == "y")).to_numpy()
    expected = counts[own, 0].sum() / depth[own].sum() * depth.mean()
    assert dots[1].get_offsets()[1, 1] == pytest.approx(expected)
    figure.png()
    figure = stdist.pl.counts_by_batch(adata, **options)
    shares = figure.axes[0].lines[0].get_ydata()
    assert shares.sum() == pytest.approx(1)
    assert shares[0] == pytest.approx((counts[adata.obs["slide"] == "s00", 0] == 0).mean())
    figure.png()


def ratios(**columns):
    table = pd.DataFrame(columns, index=[f"g{i}" for i in range(len(columns["bvr"]))])
    table["no_batch_variance"] = table["bvr"].isna()
    table["in_zone"] = (table["bvr"] < 1) & ~(table["cvr"] < 0.5)
    return table


def test_variance_ratios_count_the_zone_and_keep_extremes_on_the_edge():
    table = ratios(
        bvr=[0.1, 1e-22, 0.0, 300.0, 0.2, np.nan, 0.3], cvr=[1, 0.9, 99, 0.001, 0.4, 1, np.nan]
    )
    figure = stdist.pl.variance_ratios(table)
    words = texts(figure)
    assert "4 of 6 genes with batch variance are in the target zone (67%)" in words
    assert "1 genes with no batch variance before (g5)" in words
    assert "1 genes with no cell-type variance before (g6)" in words
    axes = figure.axes[0]
    drawn = np.concatenate([points.get_offsets() for points in axes.collections[1:]])
    for limits, values in zip((axes.get_xlim(), axes.get_ylim()), drawn.T, strict=True):
        assert (values >= limits[0]).all()
        assert (values <= limits[1]).all()
    assert len(np.unique(drawn, axis=0)) == 5
    figure.png()


def test_variance_ratios_of_nothing():
    figure = stdist.pl.variance_ratios(ratios(bvr=[np.nan], cvr=[np.nan]))
    assert "0 of 0 genes" in texts(figure)
    figure.png()


def test_stages_planned_and_measured(store):
    from stdist.graph import InProcess, start
    from tests import toy

    run = start(toy.scale_program(store, "layers/sparse"), InProcess(), block_length=1024)
    table = stages.stage_table(run)
    assert (table["calls"] > 0).all()
    assert table["memory"].gt(0).all()
    assert table["seconds"].gt(0).all()
    assert any(name.endswith(":assemble") for name in table.index)
    words = [label.get_text() for label in stdist.pl.stage_timings(run).axes[0].get_yticklabels()]
    assert words == [stages.short(name, 20) for name in table.index]


def test_convergence():
    line = stdist.pl.convergence([3.0, 2.0]).axes[0].lines[0]
    assert line.get_xdata().tolist() == [1, 2]


def test_convergence_of_harmony_marks_the_iterations():
    history = {"inner_objective": np.array([9.0, 7, 6, 5, 4.5, 4]), "rounds": np.array([3, 2])}
    line, ends = stdist.pl.convergence(history).axes[0].lines
    assert line.get_xdata().tolist() == [0, 1, 2, 3, 4, 5]
    assert ends.get_xdata().tolist() == [3, 5]
    assert ends.get_ydata().tolist() == [5.0, 4.0]
    with pytest.raises(InputError, match="no rounds"):
        stdist.pl.convergence({"inner_objective": [1.0]})


def cross_correlations(n_pairs, seed=0):
    """A result of `stdist.metrics.sci`; the first value is not defined."""
    xarray = pytest.importorskip("xarray")
    index = np.random.default_rng(seed).normal(0, 0.1, (2, 2, n_pairs))
    index[0, 0, 0] = np.nan
    genes = np.array([f"g{pair}" for pair in range(n_pairs)], dtype=object)
    coordinates = {
        "slice": ["s1", "s2"],
        "source": ("types", ["a", "b"]),
        "target": ("types", ["b", "a"]),
        "gene": ("genes", genes),
        "neighbor_gene": ("genes", genes[::-1]),
    }
    n_cells = ("slice", "types"), np.full((2, 2), 50)
    sci = ("slice", "types", "genes"), index
    return xarray.Dataset({"sci": sci, "n_cells": n_cells}, coordinates)


def test_cross_correlations_before_and_after():
    before, after = cross_correlations(30), cross_correlations(30)
    after["sci"].values[1, 0, 7] = 0.9
    figure = stdist.pl.sci_before_after(before, after)
    words = texts(figure)
    assert "119 cross-correlations before and after" in words
    assert "1 are not defined" in words
    assert "g7 – g22" in words
    assert "a → b, s2" in words
    points = figure.axes[0].collections[0].get_offsets()
    assert len(points) == 119
    assert np.abs(points).max() <= figure.axes[0].get_xlim()[1]
    figure.png()


def test_many_cross_correlations_become_a_raster():
    figure = stdist.pl.sci_before_after(cross_correlations(3000), cross_correlations(3000, seed=1))
    assert not figure.axes[0].collections
    counted = np.expm1(figure.axes[0].images[0].get_array()).sum()
    assert counted == pytest.approx(11999)  # the same value is undefined in both
    assert figure.png().startswith(PNG)


def test_cross_correlations_of_different_questions_are_refused():
    with pytest.raises(InputError, match="differ in 'gene'"):
        stdist.pl.sci_before_after(cross_correlations(30), cross_correlations(31))


def test_a_missing_matplotlib_is_named(adata, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for draw in (
        lambda: stdist.pl.gene_maps(adata, genes="rare", batch_key="slide"),
        lambda: stdist.pl.counts_by_batch(adata, genes="rare", batch_key="slide"),
        lambda: stdist.pl.convergence([1.0]),
        lambda: stdist.pl.sci_before_after(cross_correlations(3), cross_correlations(3)),
    ):
        with pytest.raises(InputError, match=r"stdist\[viz\]"):
            draw()


def test_two_replicates_of_real_tissue(shared):
    anndata = pytest.importorskip("anndata")
    path = shared / "data" / "starmap_visp_2rep.h5ad"
    if not path.exists():
        pytest.skip(f"needs {path}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata = anndata.read_h5ad(path)
    genes = [gene for gene in ("Pcp4", "Cux2", "Sst") if gene in adata.var_names][:2]
    genes = genes or list(adata.var_names[:2])
    found = rasters.rasterise(adata, genes=genes, batch_key="batch", layers=(None,))
    assert found.tissue.sum() == adata.n_obs
    assert (found.expression[0].max(axis=(2, 3)) > 0).all()
    figure = stdist.pl.gene_maps(adata, genes=genes, batch_key="batch", layers=(None,))
    assert figure.png().startswith(PNG)
