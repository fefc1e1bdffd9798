"""A pair of slides is checked before anything is computed: genes, counts, factors, frames."""

from __future__ import annotations

import warnings

import anndata
import numpy as np
import pytest
from scipy import sparse

import stdist
from stdist.graph import run_folders
from stdist.methods.data import open_data
from stdist.methods.siid.pair import Pair
from stdist.methods.siid.spec import SiidSpec
from stdist.store import InputError, StdistWarning

GENES = [f"g{number}" for number in range(6)]
SIZE = np.array([1000.0, 600.0])
"""Extent of the slides in um: 60 spots at a pitch of 100."""


def slide(places, seed=0):
    counts = np.random.default_rng(seed).poisson(2.0, (len(places), len(GENES)))
    adata = anndata.AnnData(sparse.csr_matrix(counts.astype(np.float32)))
    adata.var_names = GENES
    adata.obsm["spatial"] = np.asarray(places, np.float64)
    return adata


@pytest.fixture
def slides():
    grid = np.stack(np.meshgrid(np.arange(50, 1000, 100.0), np.arange(50, 600, 100.0)), axis=-1)
    cells = np.random.default_rng(1).uniform(0, SIZE, (300, 2))
    return slide(cells), slide(grid.reshape(-1, 2), seed=1)


def pair(cells, spots, **options):
    return Pair(open_data(cells), open_data(spots), SiidSpec(**{"n_factors": 3} | options))


def refused(cells, spots, **options):
    with pytest.raises(InputError) as caught:
        pair(cells, spots, **options)
    assert caught.value.place
    assert caught.value.remedy
    return caught.value


def test_a_good_pair_has_nothing_to_note(slides):
    assert pair(*slides).notes == []


def test_a_panel_must_be_left(slides):
    cells, spots = slides
    assert "all shared genes are held out" in str(refused(cells, spots, held_out=GENES))
    assert refused(cells, spots, held_out=["other"]).code == "gene-absent"
    for held_out in (["g1", "g2", "g1"], "g1"):
        assert "held_out is" in str(refused(cells, spots, held_out=held_out))
    assert pair(cells, spots, held_out=cells.var_names[:2]).n_panel == 4
    spots.var_names = [f"ENSG{number}" for number in range(6)]
    error = refused(cells, spots)
    assert error.code == "genes-not-shared"
    for name in ("g0", "ENSG0"):
        assert name in error.place
    spots.var_names = [*GENES[:5], "g0"]
    assert refused(cells, spots).code == "var-names-duplicated"


@pytest.mark.parametrize(
    ("limit", "cells", "spots", "held_out"),
    [("5 spots", 300, 5, []), ("4 cells", 4, 60, []), ("2 genes in the panel", 300, 60, GENES[2:])],
)
def test_more_factors_than_can_be_told_apart_are_refused(slides, limit, cells, spots, held_out):
    mine, above = slides[0][:cells].copy(), slides[1][:spots].copy()
    options = {"held_out": held_out, "max_distance": 1e6}
    error = refused(mine, above, n_factors=7, **options)
    assert error.code == "factors-too-many"
    assert limit in error.thing
    pair(mine, above, n_factors=int(limit[0]), **options)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize(("code", "value"), [("fractional", 0.5), ("negative", -1.0)])
def test_the_first_counts_are_looked_at_and_the_slide_is_named(slides, which, code, value):
    slides[which].X.data[5] = value
    error = refused(*slides)
    assert error.code == f"counts-{code}"
    assert error.place.endswith(f"of the {('cells', 'spots')[which]}")


def test_a_pair_that_is_refused_leaves_no_run(slides, tmp_path):
    path = tmp_path / "cells.zarr"
    stdist.io.write(slides[0], path)
    before = run_folders(path)
    slides[1].X.data[5] = 0.5
    with pytest.raises(InputError, match="fractional"):
        stdist.tl.siid(path, spots=slides[1], n_factors=3, progress=False)
    assert run_folders(path) == before


def test_places_must_be_known(slides):
    for number, adata in enumerate(slides):
        adata.obsm["spatial"][7, 1] = np.nan
        error = refused(*slides)
        assert error.code == "spatial-nonfinite"
        assert "row 7" in error.place
        adata.obsm["spatial"][7, 1] = 300.0
        adata.obsm["wrong"] = np.zeros((adata.n_obs, 3))
        key = ("spatial_key", "spots_spatial_key")[number]
        assert refused(*slides, **{key: "wrong"}).code == "spatial-shape"
        assert refused(*slides, **{key: "absent"}).code == "element-unknown"


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda cells, spots: (cells, spots * 4.7), "spots may be in pixels of 0.213 um"),
        (lambda cells, spots: (cells * 4.7, spots * 4.7), "both slides may be in pixels of 0.213"),
        (lambda cells, spots: (cells, spots / 1e3), "spots may be in pixels of 1e+03 um"),
        (lambda cells, spots: (cells * 4.7, spots), "cells may be in units of about 0.189"),
        (lambda cells, spots: (cells * [3, 1] + 900, spots[:, ::-1] * [1, 3] + 900), "swapped"),
        (lambda cells, spots: (cells, spots + 1e5), "differ in origin by about -1e+05, -1e+05"),
        (lambda cells, spots: (cells, spots[:, ::-1] * [9, 4] + 1e5), "no swap of axes"),
    ],
    ids=[
        "pixels",
        "both in pixels",
        "millimetres",
        "cells in pixels",
        "swapped",
        "shifted",
        "unrelated",
    ],
)
def test_frames_that_do_not_fit_are_refused_with_a_cause(slides, change, cause):
    cells, spots = slides
    places = change(cells.obsm["spatial"], spots.obsm["spatial"])
    cells.obsm["spatial"], spots.obsm["spatial"] = places
    error = refused(cells, spots)
    assert error.code == "cells-unmapped"
    assert cause in error.remedy
    for points in places:
        low, high = points.min(axis=0), points.max(axis=0)
        assert f"x {low[0]:.4g} to {high[0]:.4g}, y {low[1]:.4g} to {high[1]:.4g}" in error.thing


def test_a_transform_has_nine_numbers(slides):
    for transform in ([1.0] * 8, [np.nan] * 9, ["a"] * 9):
        assert "transform is" in str(refused(*slides, transform=transform))


def test_cells_in_millimetres_are_no_single_spot(slides):
    cells, spots = slides
    cells.obsm["spatial"] /= 1e3  # all of them near the first spot
    error = refused(cells, spots)
    assert error.code == "cells-crowded"
    assert "cells at x 0.00" in error.thing
    assert "units of about 90" in error.remedy  # the spots span 900 um


def test_some_cells_without_a_spot_and_spots_without_cells_are_noted(slides):
    cells, spots = slides
    cells = slide(np.concatenate([cells.obsm["spatial"], np.full((30, 2), 5000.0)]))
    spots = slide(np.concatenate([spots.obsm["spatial"], np.full((6, 2), -5000.0)]))
    with warnings.catch_warnings():
        warnings.simplefilter("error", StdistWarning)
        unmapped, empty = pair(cells, spots).notes
    assert "30 of 330 cells (9.1%) have no spot within 100 um: cells at x" in unmapped
    assert "6 of 66 spots (9.1%) have no cell" in empty
