"""Alignment of spots by the tied likelihood: known shifts are found, and hopeless ones refused."""

from __future__ import annotations

import warnings
from dataclasses import replace

import anndata
import numpy as np
import pytest

import stdist
from stdist.cli.main import main
from stdist.kernels.pair_simulation import pair_model
from stdist.store import InputError, StdistWarning, Store

FAST = {"n_factors": 5, "n_starts": 1, "max_angle": 0.5}


def slide(block):
    adata = anndata.AnnData(block.counts.astype(np.float32))
    adata.var_names = [f"g{g:02d}" for g in range(adata.n_vars)]
    adata.obsm["spatial"] = block.spatial.astype(np.float64)
    return adata


def pair(seed=0, n_cells=2500, square=150.0, **options):
    model = pair_model(
        n_cells=n_cells,
        n_genes=60,
        n_types=5,
        square=square,
        seed=seed,
        mean_total=100.0,
        **options,
    )
    return model, slide(model.cells(0, n_cells)), slide(model.spots(0, model.n_spots))


@pytest.fixture(scope="module")
def tissue():
    return pair()


def quietly(*arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StdistWarning)
        return stdist.tl.siid_align(*arguments, **options)


def misplaced(spots, shift, degrees=0.0):
    """Spots moved, and how far a transform leaves each from where it belongs."""
    true = spots.obsm["spatial"]
    angle, centre = np.deg2rad(degrees), true.mean(axis=0)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    wrong = spots.copy()
    wrong.obsm["spatial"] = (true - centre) @ turn.T + centre + shift

    def errors(transform):
        given = np.column_stack([wrong.obsm["spatial"], np.ones(len(true))])
        return np.linalg.norm((given @ np.asarray(transform).T)[:, :2] - true, axis=1)

    return wrong, errors


@pytest.mark.parametrize("shift", [(20, 0), (0, -40), (-42, 42), (80, 0), (-57, -57), (0, 0)])
def test_a_known_shift_is_found(tissue, shift):
    _, cells, spots = tissue
    wrong, errors = misplaced(spots, shift)
    found = quietly(cells.copy(), spots=wrong, **FAST)
    assert found.recovered, found.message
    assert errors(found.transform).max() < 8.0
    assert found.standard_error <= 6.0


def test_a_small_turn_is_found_and_the_transform_fits_siid(tissue):
    _, cells, spots = tissue
    wrong, errors = misplaced(spots, (30, 25), degrees=1.5)
    found = quietly(cells.copy(), spots=wrong, **{**FAST, "max_angle": 3.0})
    assert found.recovered, found.message
    assert errors(found.transform).max() < 8.0
    again = quietly(cells.copy(), spots=wrong, transform=found.transform.tolist(), **FAST)
    assert again.recovered
    assert errors(again.transform).max() < 8.0
    np.testing.assert_allclose(again.transform, found.transform, atol=20.0)


@pytest.mark.parametrize("case", ["permuted", "another tissue", "no structure"])
def test_what_cannot_be_told_is_not_guessed(tissue, case):
    model, cells, spots = tissue[0], tissue[1], tissue[2].copy()
    if case == "permuted":
        spots.X = spots.X[np.random.default_rng(0).permutation(spots.n_obs)]
    elif case == "another tissue":
        other = pair(seed=1)[0]
        strange = replace(model, tissue=other.tissue)
        spots = slide(strange.spots(0, strange.n_spots))
    else:  # cells of random types: the next section of the tissue has others
        model, cells, _ = pair(square=5.0)
        next_section = replace(model, tissue=replace(model.tissue, seed=9))
        spots = slide(next_section.spots(0, next_section.n_spots))
    given = [[1.0, 0.0, 3.0], [0.0, 1.0, -2.0], [0.0, 0.0, 1.0]]
    with pytest.warns(StdistWarning, match="not-aligned"):
        found = stdist.tl.siid_align(cells.copy(), spots=spots, transform=given, **FAST)
    assert not found.recovered
    assert "because" in found.message
    np.testing.assert_array_equal(found.transform, given)


def test_a_sample_of_windows_of_a_store_gives_the_same_for_any_blocks(tmp_path, client):
    _, cells, spots = pair(n_cells=6500)
    wrong, errors = misplaced(spots, (20, -15))
    paths = tmp_path / "cells.zarr", tmp_path / "spots.zarr"
    stdist.io.write(cells, paths[0])
    stdist.io.write(wrong, paths[1])
    options = {**FAST, "sample_cells": 6000, "max_shift": 40.0, "n_starts": 2}
    quietly(cells, spots=wrong, **options)
    expected = cells.uns["siid_align"]
    assert 10 <= expected["n_spots"] < spots.n_obs
    for number, where in enumerate(({"block_length": 1024}, {"client": client})):
        key = f"run{number}"
        found = quietly(paths[0], spots=paths[1], key_added=key, progress=False, **options, **where)
        stored = Store(paths[0]).uns(key)
        for name in ("transform", "standard_error", "gain", "lead"):
            np.testing.assert_array_equal(stored[name], expected[name])
        assert errors(stored["best_transform"]).max() < 15.0
        assert found.recovered == expected["recovered"]


def test_the_command_line_aligns(tmp_path, tissue, capsys):
    _, cells, spots = tissue
    stdist.io.write(cells, tmp_path / "a.zarr")
    stdist.io.write(misplaced(spots, (40, 0))[0], tmp_path / "b.zarr")
    words = ["run", "siid_align", "--cells", tmp_path / "a.zarr", "--spots", tmp_path / "b.zarr"]
    options = ["--n-factors", 5, "--n-starts", 1, "--max-angle", 0.5, "--workers", 1]
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in (*words, *options)])
    assert not ended.value.code
    found = Store(tmp_path / "a.zarr").uns("siid_align")
    assert found["recovered"]
    assert f"message: {found['message']}\n" in capsys.readouterr().out
    assert np.asarray(found["shift"]) == pytest.approx([-40.0, 0.0], abs=8.0)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"n_factors": 0}, "parameter-range"),
        ({"max_shift": 0.0}, "parameter-range"),
        ({"max_angle": 90.0}, "parameter-range"),
        ({"max_shift": 5000.0}, "parameter-range"),
        ({"sample_cells": 1024}, "sample-small"),
    ],
)
def test_wrong_parameters_are_refused(tissue, options, code):
    _, cells, spots = tissue
    with pytest.raises(InputError) as error:
        stdist.tl.siid_align(cells.copy(), spots=spots, **{"n_factors": 3, **options})
    assert error.value.code == code
