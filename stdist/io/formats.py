"""Find out what an input is, and open it as a table."""

from __future__ import annotations

from pathlib import Path

import h5py

from stdist.io.anndata_file import open_anndata
from stdist.io.sources import damaged, opened, reading
from stdist.io.table import Table
from stdist.io.tenx import mtx_files, open_tenx_h5, open_tenx_mtx
from stdist.store import InputError

KNOWN = "give an .h5ad file, an AnnData zarr folder, a 10x .h5 file or a 10x mtx folder"
ZARR_FILES = ("zarr.json", ".zgroup", ".zattrs", ".zmetadata")


def detect(path: Path) -> str:
    """Return ``"h5ad"``, ``"zarr"``, ``"10x-h5"`` or ``"10x-mtx"``, judged by content.

    Raises
    ------
    InputError
        ``input-missing``, ``input-foreign`` or ``input-truncated``.
    """
    if not path.exists():
        raise InputError(
            "input-missing", "no such file or folder", place=str(path), remedy="check the path"
        )
    if path.is_dir():
        if any((path / name).exists() for name in ZARR_FILES):
            return "zarr"
        if mtx_files(path):
            return "10x-mtx"
        raise _foreign(path, "the folder holds neither a zarr group nor matrix.mtx")
    if path.stat().st_size == 0:
        raise damaged(str(path), "the file is empty")
    with reading(str(path), "the file"):
        signed = h5py.is_hdf5(path)
    if not signed:
        raise _foreign(path, "not an HDF5 file, whatever its name says")
    with opened(str(path)) as root:
        if any(isinstance(root[n], h5py.Group) and "barcodes" in root[n] for n in root):
            return "10x-h5"
        if "obs" in root or "var" in root or "X" in root:
            return "h5ad"
        members = ", ".join(list(root)[:5]) or "nothing"
    raise _foreign(path, f"an HDF5 file that is neither AnnData nor 10x (it holds {members})")


def _foreign(path: Path, thing: str) -> InputError:
    return InputError("input-foreign", thing, place=str(path), remedy=KNOWN)


def open_table(path: Path | str, scratch: Path | str, *, gene_names: str = "symbols") -> Table:
    """Open any known input as a checked table; of the cells nothing is read.

    Parameters
    ----------
    path
        File or folder.
    scratch
        Folder for what must be sorted on disk first (CSC matrices, coordinate text).
    gene_names
        Of 10x inputs: ``"symbols"`` or ``"ids"``.
    """
    path, scratch = Path(path), Path(scratch)
    kind = detect(path)
    if kind == "10x-h5":
        return open_tenx_h5(path, gene_names).check()
    if kind == "10x-mtx":
        return open_tenx_mtx(path, scratch, gene_names).check()
    return open_anndata(path, scratch).check()
