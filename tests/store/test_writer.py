from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from stdist.store import Output, Staging
from stdist.store.verify import record, verify
from stdist.store.writer import MisalignedWrite, write_rows

ROWS = st.integers(1, 5000)
SHAPE = st.tuples(ROWS, st.integers(1, 70), st.sampled_from([1024, 2048, 4096]))


def staged(folder, output, n_rows, block_length):
    staging = Staging(folder / "s.zarr", "run", new=True)
    staging.prepare()
    staging.create(output, n_rows, block_length)
    return staging.root


@settings(max_examples=25)
@given(shape=SHAPE, kind=st.sampled_from(["dense", "transposed"]), seed=st.integers(0, 9))
def test_blocks_written_by_eight_threads_are_the_source(tmp_path_factory, shape, kind, seed):
    n_rows, n_columns, block = shape
    root = staged(
        tmp_path_factory.mktemp("w"), Output("varm/a", (n_columns,), "uint16", kind), n_rows, block
    )
    source = np.random.default_rng(seed).integers(0, 99, (n_rows, n_columns)).astype("u2")
    source[: block * (seed % 3)] = 0  # blocks of zeros are written too
    axis = int(kind == "transposed")

    def write(first):
        rows = source[first : first + block]
        return write_rows(root, "varm/a", first, rows.T if axis else rows, axis=axis)

    with ThreadPoolExecutor(8) as pool:
        records = [r for part in pool.map(write, range(0, n_rows, block)) for r in part]
    found = zarr.open_array(str(root / "varm/a"), mode="r")[:]
    np.testing.assert_array_equal(found.T if axis else found, source)
    files = [p for p in (root / "varm/a/c").rglob("*") if p.is_file()]
    assert {(root / r.path) for r in records} == set(files)
    assert len(records) == len(files)  # no shard has two owners


@pytest.mark.parametrize(
    ("start", "shape"),
    [
        (512, (1024, 37)),  # begins inside a shard
        (0, (1000, 37)),  # ends inside a shard
        (0, (1024, 36)),  # leaves a column out
        (2048, (1024, 37)),  # reaches beyond the end
        (-1024, (1024, 37)),
        (1024, (0, 37)),
        (0, (1024,)),
    ],
)
def test_a_write_of_less_than_whole_shards_is_refused(tmp_path, start, shape):
    root = staged(tmp_path, Output("X", (37,), "uint16"), 2500, 1024)
    with pytest.raises(MisalignedWrite, match="X"):
        write_rows(root, "X", start, np.ones(shape, "u2"))
    assert not (root / "X/c").exists()


def test_the_last_shard_may_be_short(tmp_path):
    root = staged(tmp_path, Output("X", (37,), "uint16"), 2500, 1024)
    (record,) = write_rows(root, "X", 2048, np.ones((452, 37), "u2"), stage="s")
    assert (record.path, record.shard, record.stage) == ("X/c/2/0", (2, 0), "s")


def test_integers_that_do_not_fit_are_refused(tmp_path):
    root = staged(tmp_path, Output("obs/n", (), "uint16"), 1024, 1024)
    for value in (70000, -1, 0.5):
        with pytest.raises(OverflowError, match="obs/n"):
            write_rows(root, "obs/n", 0, np.full(1024, value))
    write_rows(root, "obs/n", 0, np.full(1024, 7.0))


def test_record_accepts_a_changed_store(store):
    (store / "X/c/0/0").write_bytes(b"changed")
    assert [d.path for d in verify(store)[0]] == ["X/c/0/0"]
    record(store)
    assert verify(store)[0] == []
