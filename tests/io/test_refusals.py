"""Every wrong input is refused by its own code, thing, place, remedy; nothing is written."""

from __future__ import annotations

import gzip
import shutil

import anndata
import h5py
import numpy as np
import pytest
import zarr
from scipy import sparse

import stdist.io
from stdist.store import CorruptionError, InputError, StdistError
from tests.io.samples import make_adata, write_sample, write_tenx


def refuse(code, inputs, tmp_path, **options):
    """Expect a refusal; nothing may be left but what was there."""
    output = options.pop("output", tmp_path / "store.zarr")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(InputError) as caught:
        stdist.io.convert(inputs, output, **options)
    error = caught.value
    assert error.code == code, error
    assert error.thing
    assert error.place
    assert error.remedy
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    return error


def small(tmp_path, kind="h5ad-csr", change=None, n_obs=1500):
    adata = make_adata(n_obs, 8, rich=False)
    if change is not None:
        counts = adata.X.toarray()
        change(counts)
        adata.X = sparse.csr_matrix(counts)
    return write_sample(adata, kind, tmp_path, "in")


@pytest.mark.parametrize("kind", ["h5ad-csr", "h5ad-dense", "h5ad-csc", "zarr3"])
@pytest.mark.parametrize(
    ("code", "value"),
    [
        ("counts-negative", -2),
        ("counts-fractional", 1.5),
        ("counts-nonfinite", np.nan),
        ("counts-nonfinite", np.inf),
        ("counts-nonfinite", -np.inf),
        ("counts-overflow", 1e12),
    ],
)
def test_values_that_are_no_counts(code, value, kind, tmp_path):
    def change(counts):
        counts[1234, 5] = counts[1300, 2] = value

    error = refuse(code, small(tmp_path, kind, change), tmp_path)
    if code != "counts-overflow":
        assert "2 counts" in error.thing
        assert "row 1234 (cell 'cell1234'), gene 'gene5'" in error.place


def test_negative_integers(tmp_path):
    adata = make_adata(1500, 8, rich=False)
    adata.X = adata.X.toarray().astype(np.int32)
    adata.X[7, 0] = -1
    error = refuse("counts-negative", write_sample(adata, "h5ad-csr", tmp_path), tmp_path)
    assert "row 7" in error.place


def test_remedy_names_the_layer_that_holds_counts(tmp_path):
    adata = make_adata(300, 8, rich=False)
    adata.layers["umi"] = adata.X.copy()
    adata.X = sparse.csr_matrix(np.log1p(adata.X.toarray()))
    error = refuse("counts-fractional", write_sample(adata, "h5ad-csr", tmp_path), tmp_path)
    assert "counts='layers/umi'" in error.remedy


def test_unknown_element_of_counts(tmp_path):
    error = refuse("counts-missing", small(tmp_path), tmp_path, counts="layers/umi")
    assert "'X'" in error.remedy


def test_file_without_counts(tmp_path):
    path = small(tmp_path)
    with h5py.File(path, "a") as file:
        del file["X"]
    refuse("counts-missing", path, tmp_path)


def test_unknown_kind(tmp_path):
    refuse("kind", small(tmp_path), tmp_path, kind="banana")


def test_duplicated_cells(tmp_path):
    path = small(tmp_path)
    with h5py.File(path, "a") as file:
        index = file["obs"][file["obs"].attrs["_index"]]
        index = index["values"] if isinstance(index, h5py.Group) else index
        index[1400] = "cell3"
    error = refuse("cells-duplicated", path, tmp_path)
    assert "'cell3' (rows 3 and 1400)" in error.thing


def test_cells_duplicated_between_inputs(tmp_path):
    first = small(tmp_path)
    second = write_sample(make_adata(20, 8, rich=False), "h5ad-csr", tmp_path, "other")
    error = refuse("cells-duplicated", [first, second], tmp_path)
    assert "20 cell names" in error.thing
    assert "index_unique" in error.remedy


@pytest.mark.parametrize("kind", ["h5ad-csr", "10x-h5", "mtx-gz"])
@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_duplicated_genes(kind, tmp_path):
    adata = make_adata(50, 8, rich=False)
    adata.var_names = ["actb", "b", "c", "actb", "d", "e", "f", "g"]
    error = refuse("genes-duplicated", write_sample(adata, kind, tmp_path), tmp_path)
    assert "'actb'" in error.thing


def test_no_shared_gene(tmp_path):
    other = make_adata(20, 8, rich=False, prefix="other")
    other.var_names = [f"x{j}" for j in range(8)]
    inputs = [small(tmp_path), write_sample(other, "h5ad-csr", tmp_path, "other")]
    refuse("genes-disjoint", inputs, tmp_path)


def test_batch_names_and_keys(tmp_path):
    adata = make_adata(20, 8, rich=False)
    adata.obs["batch"] = "one"
    first = write_sample(adata, "h5ad-csr", tmp_path, "first")
    second = small(tmp_path)
    refuse("batch-key-taken", [first, second], tmp_path)
    refuse("batch-names", [first, second], tmp_path, batch_key="run", batch_names=["a"])
    error = refuse("batch-names", [second, second], tmp_path)
    assert "'in' occurs twice" in error.thing


def test_empty_input(tmp_path):
    path = write_sample(make_adata(50, 5, rich=False)[:0].copy(), "h5ad-csr", tmp_path)
    refuse("input-empty", path, tmp_path)


def test_output_and_inputs(tmp_path):
    folder = small(tmp_path, "zarr3")
    refuse("output-in-input", folder, tmp_path, output=folder)
    refuse("output-in-input", folder, tmp_path, output=folder / "store.zarr")
    refuse("output-in-input", folder, tmp_path, output=tmp_path)
    (tmp_path / "there").mkdir()
    refuse("output-exists", folder, tmp_path, output=tmp_path / "there")


def test_foreign_and_missing_files(tmp_path):
    refuse("input-missing", tmp_path / "nothing.h5ad", tmp_path)
    text = tmp_path / "text.h5ad"
    text.write_text("cell,gene\n1,2\n")
    refuse("input-foreign", text, tmp_path)
    (tmp_path / "empty.h5ad").touch()
    refuse("input-truncated", tmp_path / "empty.h5ad", tmp_path)
    (tmp_path / "folder").mkdir()
    refuse("input-foreign", tmp_path / "folder", tmp_path)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["numbers"] = np.arange(3)
    error = refuse("input-foreign", tmp_path / "other.h5", tmp_path)
    assert "numbers" in error.thing
    zarr.create_array(tmp_path / "array.zarr", shape=(3,), dtype="i4")
    refuse("input-truncated", tmp_path / "array.zarr", tmp_path)
    zarr.create_group(tmp_path / "group.zarr")
    refuse("input-foreign", tmp_path / "group.zarr", tmp_path)


def test_old_layout(tmp_path):
    with h5py.File(tmp_path / "old.h5ad", "w") as file:
        file["X"] = np.ones((2, 2))
        for name in ("obs", "var"):
            file[name] = np.array([(b"a",), (b"b",)], dtype=[("index", "S1")])
    refuse("input-legacy", tmp_path / "old.h5ad", tmp_path)


def test_incomplete_mtx_folders(tmp_path):
    for name in ("barcodes.tsv", "features.tsv"):
        folder = small(tmp_path, "mtx")
        (folder / name).unlink()
        error = refuse("input-incomplete", folder, tmp_path)
        assert name in error.thing
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("code", "old", "new"),
    [
        ("input-foreign", "%%MatrixMarket matrix coordinate", "%%MatrixMarket matrix array"),
        ("input-foreign", "integer general", "integer symmetric"),
        ("input-foreign", "integer general", "complex general"),
        ("input-foreign", "8 1500 ", "8 many "),
        ("input-inconsistent", "8 1500 ", "9 1500 "),
        ("input-inconsistent", "8 1500 ", "8 1499 "),
        ("input-truncated", "8 1500 ", "8 1500 9"),
        ("input-inconsistent", "\n1 1 ", "\n99 1 "),
        ("input-inconsistent", "\n1 1 ", "\n0 1 "),
        ("input-truncated", "\n1 1 ", "\n1 x "),
        ("input-truncated", "\n1 1 ", "\n1"),
        ("input-truncated", "\n1 1 ", "\n1 1.5 "),
    ],
)
def test_wrong_matrix_market_text(code, old, new, tmp_path):
    def change(counts):
        counts[0, 0] = 2

    folder = small(tmp_path, "mtx", change)
    text = (folder / "matrix.mtx").read_text()
    assert old in text
    (folder / "matrix.mtx").write_text(text.replace(old, new, 1))
    error = refuse(code, folder, tmp_path)
    assert "matrix.mtx" in error.place


def test_inconsistent_offsets_and_indices(tmp_path):
    path = small(tmp_path)

    def edited(part, at, value):
        copy = tmp_path / "edited.h5ad"
        shutil.copy(path, copy)
        with h5py.File(copy, "a") as file:
            file["X"][part][at] = value
        return copy

    for part, at, value in (
        ("indptr", 700, 10**6),
        ("indptr", 0, 1),
        ("indptr", 1500, 10**6),
        ("indices", 50, 8),
        ("indices", 50, -1),
    ):
        copy = edited(part, at, value)
        refuse("input-inconsistent", copy, tmp_path)
        copy.unlink()


def test_parts_of_different_length(tmp_path):
    path = small(tmp_path)
    with h5py.File(path, "a") as file:
        file["obsm/short"] = np.ones((7, 2))
    refuse("input-inconsistent", path, tmp_path)
    path = write_tenx(make_adata(20, 8, rich=False), tmp_path / "x.h5")
    with h5py.File(path, "a") as file:
        file["matrix/shape"][0] = 9
    refuse("input-inconsistent", path, tmp_path)


def test_absent_chunks_of_zarr(tmp_path):
    folder = small(tmp_path, "zarr3")
    chunk = next(path for path in (folder / "X" / "data").rglob("*") if path.name.isdigit())
    chunk.unlink()
    refuse("input-truncated", folder, tmp_path)


def test_damaged_store_as_input(tmp_path):
    first = stdist.io.convert(small(tmp_path), tmp_path / "first.zarr")
    (first / "X" / "c" / "0" / "0").unlink()
    with pytest.raises(CorruptionError, match="shard-missing"):
        stdist.io.convert(first, tmp_path / "store.zarr")
    assert not (tmp_path / "store.zarr").exists()


def test_object_without_counts(tmp_path):
    adata = make_adata(20, 8, rich=False)
    adata.X = adata.X * 0.5
    with pytest.raises(InputError, match="counts-fractional"):
        stdist.io.write(adata, tmp_path / "store.zarr")
    with pytest.raises(InputError, match="counts-missing"):
        stdist.io.write(anndata.AnnData(obs=adata.obs, var=adata.var), tmp_path / "store.zarr")
    with pytest.raises(InputError, match="input-memory"):
        stdist.io.convert_program(inputs=[], output="store.zarr")


def pieces(path):
    """Files of an input, the larger ones first."""
    # stdist reads the metadata of each array, not zarr v2's copy of all of them
    files = [p for p in path.rglob("*") if p.is_file() and p.name != ".zmetadata"] or [path]
    return sorted(files, key=lambda file: (-file.stat().st_size, file.name))


@pytest.mark.fault
@pytest.mark.parametrize(
    "kind", ["h5ad-gzip", "h5ad-csr", "h5ad-dense", "zarr2", "zarr3", "10x-h5", "mtx-gz", "mtx"]
)
def test_truncation_anywhere_is_refused(kind, tmp_path):
    """Cut the largest files of each format at several places."""
    path = small(tmp_path, kind, n_obs=2500)
    # the third file of a plain folder can lose the end of a word unnoticed; others cannot
    for file in pieces(path)[: 2 if kind == "mtx" else 3]:
        whole = file.read_bytes()
        for share in (0.0, 0.02, 0.3, 0.5, 0.8, 0.97, 1.0):
            length = min(int(share * len(whole)), len(whole) - 20)
            if length < 0:
                continue
            file.write_bytes(whole[:length])
            with pytest.raises(StdistError) as caught:
                stdist.io.convert(path, tmp_path / "store.zarr")
            assert isinstance(caught.value, InputError), (file, share)
            assert caught.value.code.startswith(("input-", "cells-", "genes-")), caught.value
            assert not list(tmp_path.glob("*.partial"))
            assert not list(tmp_path.glob(".*"))
        file.write_bytes(whole)
    stdist.io.convert(path, tmp_path / "store.zarr")


@pytest.mark.fault
def test_random_bytes_in_a_compressed_file(tmp_path):
    """Damaged gzip text never passes as data."""
    path = small(tmp_path, "mtx-gz") / "matrix.mtx.gz"
    whole = path.read_bytes()
    for seed in range(5):
        rng = np.random.default_rng(seed)
        damaged = bytearray(whole)
        for at in rng.integers(20, len(whole) - 8, 3):
            damaged[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(damaged))
        refuse("input-truncated", path.parent, tmp_path)
    path.write_bytes(gzip.compress(b"no matrix"))
    refuse("input-foreign", path.parent, tmp_path)
