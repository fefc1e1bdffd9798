from __future__ import annotations

import shutil

import numpy as np
import pytest

from stdist.graph import InProcess, start
from stdist.store import CorruptionError, Store, open_element
from stdist.store.verify import verify
from tests import toy


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[int(position * (len(data) - 1))] ^= 1
    path.write_bytes(data)


def damage(store):
    return [(d.path, d.kind) for d in verify(store)[0]]


FILES = [
    "zarr.json",  # with the consolidated metadata
    "obs/zarr.json",
    "X/zarr.json",
    "X/c/1/0",
    "obs/_index/c/0",
    "obs/group/codes/c/2",
    "obs/group/categories/c/0",
    "layers/sparse/zarr.json",
    "layers/sparse/data/c/0",
    "layers/sparse/indices/c/0",
    "layers/sparse/indptr/c/0",
    "var/_index/c/0",
    "uns/seed/zarr.json",
]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("position", [0.0, 0.5, 1.0])
def test_a_flipped_bit_is_named(store, name, position):
    assert damage(store) == []
    flip(store / name, position)
    assert damage(store) == [(name, "altered")]


@pytest.mark.parametrize("position", [0.0, 0.02, 0.5, 1.0])
def test_a_damaged_manifest_is_named(store, position):
    flip(store / ".stdist/manifest.jsonl", position)
    with pytest.raises(CorruptionError, match="manifest") as caught:
        verify(store)
    assert caught.value.code == "manifest-damaged"
    with pytest.raises(CorruptionError):
        open_element(store, "X").read(0, 10)


def test_without_a_manifest_there_is_nothing_to_verify(store):
    (store / ".stdist/manifest.jsonl").unlink()
    with pytest.raises(CorruptionError, match="manifest"):
        verify(store)


def test_truncated_missing_and_swapped_files_are_named(store):
    shard, other = store / "X/c/0/0", store / "X/c/3/0"
    data = shard.read_bytes()
    shard.write_bytes(data[:-1])
    assert damage(store) == [("X/c/0/0", "truncated")]
    shard.unlink()
    assert damage(store) == [("X/c/0/0", "missing")]
    shard.write_bytes(other.read_bytes())
    other.write_bytes(data)
    assert damage(store) == [("X/c/0/0", "swapped"), ("X/c/3/0", "swapped")]
    shutil.rmtree(store / "obs/group")
    names = [name for name, kind in damage(store) if kind == "missing"]
    assert "obs/group/codes/c/0" in names


def test_a_stale_shard_of_another_run_is_named(store, tmp_path):
    other = tmp_path / "other.zarr"
    start(toy.generate_program(other, seed=5), InProcess(), block_length=1024)
    shutil.copyfile(other / "X/c/1/0", store / "X/c/1/0")
    ((name, kind),) = damage(store)
    assert name == "X/c/1/0"
    assert kind in ("altered", "truncated")


def test_files_of_others_are_listed_and_damage_knows_its_stage(store):
    import zarr

    zarr.open_group(str(store / "obsm"), mode="r+").create_array("X_pca", data=np.ones((5000, 2)))
    flip(store / "X/c/0/0", 0.5)
    found, unrecorded, _ = verify(store)
    assert found[0].shard == (0, 0)
    assert found[0].stage
    assert "obsm/X_pca/zarr.json" in unrecorded


def swap(a, b):
    aside = a.with_name("aside")
    a.rename(aside)
    b.rename(a)
    aside.rename(b)


HARM = {
    "flipped": lambda s: flip(s / "X/c/1/0", 0.5),
    "index": lambda s: flip(s / "X/c/1/0", 1.0),
    "missing": lambda s: (s / "X/c/1/0").unlink(),
    "empty": lambda s: (s / "X/c/1/0").write_bytes(b""),
    "swapped": lambda s: swap(s / "X/c/1/0", s / "X/c/2/0"),
}


def test_damaged_metadata_are_noticed_by_an_open_element(store):
    element = open_element(store, "X")
    before = element.read(0, 10)
    text = (store / "X/zarr.json").read_text()
    (store / "X/zarr.json").write_text(text.replace("uint16", "int16"))
    with pytest.raises(CorruptionError, match=r"X/zarr\.json"):
        element.read(0, 10)
    (store / "X/zarr.json").write_text(text)
    np.testing.assert_array_equal(element.read(0, 10), before)


@pytest.mark.parametrize("harm", HARM)
def test_a_damaged_shard_is_never_read(store, harm):
    element = open_element(store, "X")
    element.read(0, 5000)  # fills every cache
    HARM[harm](store)
    with pytest.raises(CorruptionError, match=r"X/c/1/0"):
        element.read(1500, 1600)
    np.testing.assert_array_equal(element.read(0, 1024), element.read(0, 1024))


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("X/zarr.json", lambda s: open_element(s, "X").read(0, 9)),
        ("layers/sparse/data/c/0", lambda s: open_element(s, "layers/sparse").read(0, 9)),
        ("layers/sparse/indices/c/0", lambda s: open_element(s, "layers/sparse").read(0, 9)),
        ("layers/sparse/indptr/c/0", lambda s: open_element(s, "layers/sparse").read(0, 9)),
        ("obs/group/codes/c/0", lambda s: open_element(s, "obs/group").read(0, 9)),
        ("obs/group/categories/c/0", lambda s: open_element(s, "obs/group").categories),
        ("obs/_index/c/0", lambda s: Store(s).obs_names()),
        ("var/_index/c/0", lambda s: Store(s).var_names),
    ],
)
@pytest.mark.parametrize("harm", ["flip", "remove"])
def test_every_reader_checks(store, name, read, harm):
    before = read(store)
    assert before is not None
    flip(store / name, 0.5) if harm == "flip" else (store / name).unlink()
    with pytest.raises(CorruptionError, match=name.rsplit("/c/")[0].removesuffix("/zarr.json")):
        read(store)


def test_a_run_over_damaged_input_stops_and_can_be_resumed(store):
    from stdist.graph import resume, unfinished

    intact = (store / "X/c/2/0").read_bytes()
    (store / "X/c/2/0").unlink()
    with pytest.raises(CorruptionError, match="X/c/2/0"):
        start(toy.scale_program(store, rounds=2), InProcess(), block_length=1024)
    assert not (store / "layers/scaled").exists()
    assert len(unfinished(store)) == 1
    (store / "X/c/2/0").write_bytes(intact)
    resume(store, toy.build, InProcess())
    assert damage(store) == []
    total = open_element(store, "obs/total").read(0, 5000)
    np.testing.assert_array_equal(total, open_element(store, "X").read(0, 5000).sum(1))
