"""Stores of a simulated pair: what the kernel draws, in any blocks."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from stdist.graph import InProcess, resume, start, unfinished
from stdist.kernels.pair_simulation import PairModel, pair_model
from stdist.methods.registry import build
from stdist.methods.simulate_pair import simulate_pair, simulate_pair_program
from stdist.store import InputError, RunStopped, Store

SIZE = {"n_cells": 5000, "n_genes": 12, "n_panel": 7, "n_types": 3}


@pytest.mark.parametrize("length", [1024, 4096])
def test_the_stores_hold_what_the_kernel_draws(tmp_path, length):
    paths = tmp_path / "cells.zarr", tmp_path / "spots.zarr"
    simulate_pair(*paths, **SIZE, rng=3, shift=[20.0, 5.0], block_length=length, progress=False)
    model = pair_model(**SIZE, seed=3, shift=[20.0, 5.0])
    cells, spots = (Store(path) for path in paths)
    assert (cells.n_obs, cells.n_vars, spots.n_vars) == (5000, 7, 12)
    drawn, above = model.cells(0, 5000), model.spots(0, model.n_spots)

    def read(store, key):
        return store.element(key).read(0, store.n_obs)

    np.testing.assert_array_equal(read(cells, "X"), drawn.counts.toarray())
    np.testing.assert_array_equal(read(cells, "obsm/spatial"), drawn.spatial)
    np.testing.assert_array_equal(read(cells, "obs/true_spot"), drawn.spot)
    np.testing.assert_array_equal(read(cells, "obs/cell_type"), drawn.cell_type)
    np.testing.assert_array_equal(read(spots, "X"), above.counts.toarray())
    np.testing.assert_array_equal(read(spots, "obsm/spatial"), above.spatial)
    np.testing.assert_array_equal(read(spots, "obs/true_n_cells"), above.n_cells)
    np.testing.assert_allclose(read(spots, "obsm/true_type_total"), above.type_total, rtol=1e-6)
    truth = spots.uns("simulation")
    np.testing.assert_array_equal(truth["profiles"], model.profiles)
    np.testing.assert_array_equal(truth["platform_factor"], model.platform_factor)
    assert list(cells.var_names) == list(spots.var_names[:7])


def test_a_whole_transcriptome_is_sparse(tmp_path):
    paths = tmp_path / "cells.zarr", tmp_path / "spots.zarr"
    size = {"n_cells": 300, "n_genes": 5000, "n_panel": 20, "n_types": 2}
    simulate_pair(*paths, **size, progress=False)
    model = pair_model(**size, seed=0)
    found = Store(paths[1]).element("X").read(0, model.n_spots)
    assert sparse.issparse(found)
    assert (found != model.spots(0, model.n_spots).counts).nnz == 0


def test_a_simulation_is_resumed(tmp_path, monkeypatch):
    draw, target = PairModel.cells, tmp_path / "cells.zarr"

    def dies(model, first, last):
        if first == 2048:
            raise KeyboardInterrupt
        return draw(model, first, last)

    monkeypatch.setattr(PairModel, "cells", dies)
    with pytest.raises(RunStopped):
        start(simulate_pair_program(str(target), "cells", **SIZE), InProcess(), block_length=1024)
    assert len(unfinished(target)) == 1
    monkeypatch.setattr(PairModel, "cells", draw)
    resume(target, build, InProcess())
    expected = pair_model(**SIZE).cells(0, 5000).counts.toarray()
    np.testing.assert_array_equal(Store(target).element("X").read(0, 5000), expected)


def test_refusals_leave_nothing(tmp_path):
    paths = tmp_path / "cells.zarr", tmp_path / "spots.zarr"
    with pytest.raises(InputError, match="n_panel=99"):
        simulate_pair(*paths, **SIZE | {"n_panel": 99})
    simulate_pair(*paths, **SIZE, progress=False)
    with pytest.raises(InputError, match="output-exists"):
        simulate_pair(tmp_path / "new.zarr", paths[1], **SIZE)
    assert not (tmp_path / "new.zarr").exists()
