"""P9: no block length, worker count or order of completion changes a bit."""

from __future__ import annotations

import random

import dask
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stdist.graph import Blocks, Cluster, InProcess, fold, resume, run_in_memory, start, tiles
from stdist.graph.executors import Failure
from stdist.graph.record import RunRecord
from stdist.store import InputError, Store, open_element
from tests import toy


@given(n_tiles=st.integers(1, 200), level=st.integers(0, 8))
def test_folding_blocks_folds_tiles(n_tiles, level):
    def pair(left, right):
        return (left, right)

    whole = fold(range(n_tiles), pair)
    edges = range(0, n_tiles, 2**level)
    blocks = [fold(range(a, min(n_tiles, a + 2**level)), pair) for a in edges]
    assert fold(blocks, pair) == whole


@given(n_rows=st.integers(1, 10**6), level=st.integers(0, 8))
def test_blocks_and_their_tiles_cover_the_rows_once(n_rows, level):
    blocks = Blocks(n_rows, 1024 << level)
    bounds = [tile for i in range(len(blocks)) for tile in tiles(*blocks.bounds(i))]
    assert bounds == list(tiles(0, n_rows))
    assert bounds[0][0] == 0
    assert bounds[-1][1] == n_rows


@given(length=st.integers(1, 2**20).filter(lambda n: n % 1024 or n.bit_count() > 1))
def test_other_block_lengths_are_refused_with_two_that_work(length):
    with pytest.raises(InputError) as caught:
        Blocks(5, length)
    assert caught.value.code == "block-length"
    for word in caught.value.args[0].split("use ")[1].split(" or "):
        assert Blocks(5, int(word))


class Shuffled:
    """Runs tasks in a random order that respects their inputs."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def resources(self, *, device=True):
        return InProcess().resources(device=device)

    def everywhere(self, function, *arguments):
        return InProcess().everywhere(function, *arguments)

    def run(self, graph, watched, on_done):
        results, left = {}, dict(graph)
        while left:
            ready = [k for k, (_, *a) in left.items() if not any(self._waits(x, left) for x in a)]
            key = self.random.choice(ready)
            function, *arguments = left.pop(key)
            is_key = [isinstance(a, tuple) and a in graph for a in arguments]
            inputs = [results[a] if k else a for a, k in zip(arguments, is_key, strict=True)]
            results[key] = function(*inputs)
            if key in set(watched):
                on_done(key, lambda key=key: results[key])
        return list[Failure](), len(graph)

    @staticmethod
    def _waits(argument, left):
        return isinstance(argument, tuple) and argument in left


def outputs(store):
    """Every output read back, with the values."""
    found = {}
    for key in ("layers/scaled", "layers/doubled", "obs/total"):
        element = open_element(store, key)
        part = element.read(0, element.shape[0])
        found[key] = part.toarray() if hasattr(part, "toarray") else part
    found["varm/turned"] = open_element(store, "varm/turned").array[:]
    toy_values = Store(store).uns("toy")
    return found | {f"uns/{name}": np.asarray(value) for name, value in toy_values.items()}


@pytest.fixture(scope="module")
def reference(base, tmp_path_factory):
    import shutil

    store = shutil.copytree(base, tmp_path_factory.mktemp("reference") / "s.zarr")
    start(toy.scale_program(store), InProcess(), block_length=1024)
    return outputs(store)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        assert found[key].dtype == values.dtype
        assert found[key].tobytes() == values.tobytes(), key


@pytest.mark.parametrize("source", ["X", "layers/sparse"])
@pytest.mark.parametrize("block_length", [1024, 2048, 4096, 65536])
def test_any_block_length_gives_the_same_bits(store, reference, source, block_length):
    start(toy.scale_program(store, source), InProcess(), block_length=block_length)
    assert_same(outputs(store), reference)
    assert reference["uns/norm"].std() > 0


def test_generated_stores_are_the_same_for_any_block_length(base, tmp_path):
    for block_length in (2048, 65536):
        path = tmp_path / f"{block_length}.zarr"
        start(toy.generate_program(path), InProcess(), block_length=block_length)
        for key in ("X", "layers/sparse", "obs/group", "obsm/spatial"):
            one, other = (open_element(p, key).read(0, 5000) for p in (base, path))
            difference = one != other
            assert not (difference.nnz if hasattr(difference, "nnz") else difference.any()), key
        assert (Store(path).obs_names() == Store(base).obs_names()).all()


@settings(max_examples=4)
@given(seed=st.integers(0, 10**6))
def test_any_order_of_tasks_gives_the_same_bits(base, reference, tmp_path_factory, seed):
    import shutil

    store = shutil.copytree(base, tmp_path_factory.mktemp("shuffled") / "s.zarr")
    start(toy.scale_program(store), Shuffled(seed), block_length=1024)
    assert_same(outputs(store), reference)


@pytest.mark.parametrize(
    ("n_workers", "block_length", "source"), [(2, 1024, "X"), (1, 2048, "layers/sparse")]
)
def test_any_cluster_gives_the_same_bits(store, reference, client, n_workers, block_length, source):
    workers = sorted(client.scheduler_info(n_workers=-1)["workers"])[:n_workers]
    program = toy.scale_program(store, source)
    with dask.annotate(workers=workers):
        folder = start(program, Cluster(client), block_length=block_length)
    assert_same(outputs(store), reference)
    assert len({event.worker for event in RunRecord(folder).events()}) == n_workers


def test_a_run_in_memory_gives_the_same_bits(base, reference):
    program = toy.scale_program(base)
    found = run_in_memory(program, InProcess(), block_length=2048)
    for key in ("layers/scaled", "layers/doubled", "obs/total", "varm/turned"):
        values = found[key].toarray() if hasattr(found[key], "toarray") else found[key]
        assert np.ascontiguousarray(values).tobytes() == reference[key].tobytes(), key


def test_anndata_reads_what_was_written(store):
    import warnings

    import anndata

    start(toy.scale_program(store), InProcess(), block_length=1024)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = anndata.read_zarr(store)
    assert (data.layers["sparse"] != data.X).sum() == 0
    assert (data.layers["doubled"] != 2 * data.X).sum() == 0
    assert (data.varm["turned"].T == data.X).all()
    assert (data.obs["total"] == data.X.sum(1)).all()
    assert list(data.obs["group"][:4]) == ["a", "b", "c", "a"]
    assert data.obs_names[4999] == "row4999"


def test_a_resumed_loop_stops_where_it_would_have(store, reference):
    """A state that had converged is not iterated once more."""

    class Dies(InProcess):
        rounds = 0

        def run(self, graph, watched, on_done):
            self.rounds += "round" in next(iter(graph))[0]
            if self.rounds == self.limit:
                raise KeyboardInterrupt
            return super().run(graph, watched, on_done)

    from stdist.store import RunStopped

    executor = Dies()
    executor.limit = 3
    with pytest.raises(RunStopped, match="interrupted"):
        start(toy.scale_program(store), executor, block_length=1024)
    for executor.rounds in (1, -2):
        with pytest.raises(RunStopped, match="interrupted"):
            resume(store, toy.build, executor)
    resume(store, toy.build, InProcess())
    assert_same(outputs(store), reference)
