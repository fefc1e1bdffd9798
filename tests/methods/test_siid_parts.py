"""SIID with several updates in a pass: monotone, the same for any blocks, resumable."""

from __future__ import annotations

import shutil

import anndata
import numpy as np
import pytest
from scipy import sparse

import stdist
from stdist.graph import InProcess, make_plan, resume, start
from stdist.graph.executors import Resources
from stdist.kernels.pair_simulation import pair_model
from stdist.kernels.poisson_factors import Settings, tile_pass
from stdist.kernels.poisson_factors_start import start_factors, start_rows
from stdist.methods.registry import build
from stdist.methods.siid import build_siid, parts
from stdist.store import InputError, RunStopped, Store
from tests.methods.test_siid import dying

FAST = {
    "n_factors": 4,
    "n_restarts": 2,
    "n_solutions": 1,
    "passes": 4,
    "convergence_passes": 5,
    "entropy_passes": 3,
    "sample_cells": 1024,
    "controls": False,
}
PARTS = FAST | {"updates_per_pass": 3}


def pair(n_cells):
    model = pair_model(n_cells=n_cells, n_genes=60, n_panel=40, n_types=4, seed=1)
    found = []
    for slide, n_genes in ((model.cells(0, n_cells), 40), (model.spots(0, model.n_spots), 60)):
        adata = anndata.AnnData(slide.counts)
        adata.var_names = [f"g{i:02d}" for i in range(n_genes)]
        adata.obsm["spatial"] = np.asarray(slide.spatial, np.float64)
        found.append(adata)
    return found


@pytest.fixture
def stores(tmp_path):
    """Five tiles: with blocks of two, parts share some."""
    paths = tmp_path / "cells.zarr", tmp_path / "spots.zarr"
    for adata, path in zip(pair(4500), paths, strict=True):
        stdist.io.write(adata, path)
    return paths


def elements(path):
    store = Store(path)
    return {n: store.element(f"obsm/{n}").read(0, store.n_obs) for n in ("siid", "siid_types")}


def same(found, expected):
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


def test_blocks_and_workers_change_nothing(stores, client):
    cells, spots = map(str, stores)
    found = []
    for length in (1024, 2048, 4096):
        start(build_siid(cells, spots, **PARTS), InProcess(), block_length=length, overwrite=True)
        found.append(elements(cells))
    stdist.tl.siid(cells, spots=spots, client=client, block_length=1024, overwrite=True,
                   progress=False, **PARTS)  # fmt: skip
    for other in (*found[1:], elements(cells)):
        same(other, found[0])
    start(build_siid(cells, spots, **FAST), InProcess(), overwrite=True)
    assert (elements(cells)["siid"] != found[0]["siid"]).any()


def test_the_plan_counts_the_statistics_that_are_kept(stores):
    cells, spots = map(str, stores)
    memory = []
    worker = Resources(n_workers=1, memory=2**32, threads=1, reserved=0)
    for name, options in (("solution0_pass", FAST), ("solution0_pass2", PARTS)):
        found = make_plan(build("siid", {"data": cells, "spots": spots, **options}), worker)
        memory.append({stage.name: stage.memory for stage in found.stages}[name])
    factor_counts = 8 * FAST["n_factors"] * 40
    assert memory[1] >= memory[0] + PARTS["updates_per_pass"] * factor_counts


@pytest.mark.parametrize("calls", [7, 12])
def test_a_run_killed_within_a_pass_is_resumed(stores, tmp_path, calls):
    cells, spots = stores
    other = tmp_path / "other.zarr"
    shutil.copytree(cells, other)
    start(build_siid(str(other), str(spots), **PARTS), InProcess(), block_length=2048)
    broken = dying(build_siid(str(cells), str(spots), **PARTS), calls)
    with pytest.raises(RunStopped):
        start(broken, InProcess(), block_length=2048)
    resume(cells, build, InProcess())
    same(elements(cells), elements(other))


def test_one_tile_has_one_update():
    found = []
    for options in (FAST, PARTS):
        mine, above = pair(700)
        stdist.tl.siid(mine, spots=above, **options)
        found.append({name: mine.obsm[name] for name in ("siid", "siid_types")})
    same(*found)


@pytest.mark.parametrize("options", [{}, {"l2": 1e-3}, {"spot_scale": "tied"},
                                     {"spots_model": "negative_binomial"}])  # fmt: skip
def test_more_updates_reach_a_lower_loss(options):
    """From the same start, in each fit; and no pass raises the loss."""
    ends = []
    for n_updates in (1, 5):
        mine, above = pair(4500)
        stdist.tl.siid(mine, spots=above, shrink=False, **{**FAST, "entropy_passes": 1},
                       updates_per_pass=n_updates, **options)  # fmt: skip
        factors = mine.uns["siid"]["factors"]
        fits = factors["loss"].values[0].sum(1), factors["type_loss"].values[:-1].sum(1)
        assert all((np.diff(loss) < 0).all() for loss in fits)
        ends.append([loss[-1] for loss in fits])
    assert (np.array(ends[1]) < np.array(ends[0])).all()


def test_plain_steps_never_raise_the_free_energy(monkeypatch):
    """In float64 and dense: of each part with the posterior of its own last visit.

    Profiles are what the posteriors and the rows of all parts make them, in one gauge.
    """
    monkeypatch.setattr(parts, "LARGEST_EXPONENT", 1.0)
    rng = np.random.default_rng(3)
    n_genes, n_panel, h, n_parts = 12, 7, 3, 3
    options = {"n_panel": n_panel, "settings": Settings(rounds=1), "platform_scaling": True}
    tiles, rows = [], []
    for number in range(n_parts):
        spot = np.repeat(np.arange(3), 4)
        X, V = rng.poisson(2.0, (12, n_panel)), rng.poisson(9.0, (3, n_genes))
        tiles.append((sparse.csr_array(X.astype(float)), sparse.csr_array(V.astype(float)), spot))
        rows.append(start_rows(*tiles[-1], np.arange(12) + 100 * number, h, 0))
    profile = sum(np.asarray(tile[1].sum(axis=0), float) for tile in tiles)
    now = {"Q": start_factors(profile, h, 0), "phi": np.ones(n_genes)}
    panel = np.arange(n_genes) < n_panel
    posteriors, owed = [None] * n_parts, np.ones((n_parts, h))

    def rates(number, state):
        """Mean counts by factor, of cells and of spots."""
        p = rows[number].p * owed[number]
        of_spot = np.zeros((3, h))
        np.add.at(of_spot, tiles[number][2], rows[number].m[:, None] * p)
        in_cells = (rows[number].n[:, None] * p)[:, :, None] * state["Q"][None, :, panel]
        return in_cells, of_spot[:, :, None] * (state["Q"] * state["phi"])[None]

    def visit(number, state):
        posteriors[number] = [
            each / each.sum(axis=1, keepdims=True) for each in rates(number, state)
        ]
        cells, spots, spot = tiles[number]
        gauge = state.get("gauge")
        rows[number], found = tile_pass(
            cells, spots, spot, rows[number], state["Q"], state["phi"], options["settings"], gauge
        )
        owed[number] = 1.0
        return found

    def energy(state):
        total = 0.0
        for number, tile in enumerate(tiles):
            counts = (each.toarray()[:, None] for each in tile[:2])
            for y, z, mean in zip(counts, posteriors[number], rates(number, state), strict=True):
                total += (mean - y * z * np.log(mean / z)).sum()
        return total

    found = [visit(number, now) for number in range(n_parts)]
    total = {name: np.stack([each[name] for each in found]) for name in found[0]}

    def profiles(state):
        """The exact minimum over Q, platform factors as they are."""
        counts, of_cells, of_spots = np.zeros((h, n_genes)), np.zeros(h), np.zeros(h)
        for number, (X, V, _) in enumerate(tiles):
            for y, z in zip((X.toarray(), V.toarray()), posteriors[number], strict=True):
                counts[:, : y.shape[1]] += (y[:, None] * z).sum(axis=0)
            p = rows[number].p * owed[number]
            of_cells += (rows[number].n[:, None] * p).sum(axis=0)
            of_spots += (rows[number].m[:, None] * p).sum(axis=0)
        return counts / (of_cells[:, None] * panel + of_spots[:, None] * state["phi"])

    start_of = {name: np.stack([value]) for name, value in now.items()} | {"loss": np.zeros(1)}
    now = parts.first_parts(total, number=0, restarts=start_of, **options)
    owed[:] = now["gauge"]
    energies = [energy(now)]
    for _ in range(6):
        for number in range(n_parts):
            before = now
            statistics = visit(number, before)
            energies.append(energy(before))
            wanted = profiles(before)
            now = parts.advance_part(statistics, part=(number, n_parts), now=before, **options)
            ends = number == n_parts - 1
            scale = now["gauge"][:, None] if ends else 1.0
            np.testing.assert_allclose(now["Q"] * scale, wanted, rtol=1e-7)  # kernels add 1e-8
            if ends:
                owed[:] = now["gauge"]
            energies.append(energy(now))
    steps = np.diff(energies)
    assert (steps <= 1e-9 * np.abs(energies[0])).all()
    assert energies[-1] < energies[0] - 10.0


@pytest.mark.parametrize(
    "change", [{"updates_per_pass": 0}, {"n_spots_per_cell": 2}, {"solver": "adam"}]
)
def test_what_has_no_parts_is_refused(change):
    mine, above = pair(700)
    options = PARTS if "solver" not in change else {"n_factors": 4, "updates_per_pass": 3}
    with pytest.raises(InputError, match="updates_per_pass"):
        stdist.tl.siid(mine, spots=above, **{**options, **change})
