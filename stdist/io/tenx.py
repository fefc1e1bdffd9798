"""Open what CellRanger and its relatives write: .h5 files and folders of ``matrix.mtx``."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stdist.io.csr import CsrSource
from stdist.io.sources import (
    StringSource,
    damaged,
    inconsistent,
    opened,
    read_strings,
    reading,
    stamp_of,
)
from stdist.io.spill import ENTRIES, Entries, SpillSource, spill_names
from stdist.io.table import Table
from stdist.store import InputError

VALUES = {"integer": "int64", "real": "float64", "double": "float64", "pattern": "int64"}


def open_tenx_h5(path: Path, gene_names: str) -> Table:
    """Open a CellRanger .h5 file, version 3 (``matrix``) or 2 (one group per genome).

    The file holds CSC of genes by cells, which is CSR of cells by genes.
    """
    stamp = stamp_of(path)
    with opened(str(path)) as root:
        genomes = [name for name in root if "barcodes" in root[name]]
        if len(genomes) != 1:
            raise InputError(
                "input-foreign",
                f"a 10x file of {len(genomes)} genomes",
                place=str(path),
                remedy="export one genome per file",
            )
        key = genomes[0]
        group = root[key]
        if "features" in group:
            features = group["features"]
            ids, symbols = read_strings(features["id"]), read_strings(features["name"])
            wanted = [name for name in ("feature_type", "genome") if name in features]
            extra = {f"{name}s".replace("genomes", "genome"): features[name] for name in wanted}
            columns = {name: read_strings(node) for name, node in extra.items()}
        else:
            ids, symbols = read_strings(group["genes"]), read_strings(group["gene_names"])
            columns = {}
        shape = [int(length) for length in group["shape"][:]]
    var = _genes(ids, symbols, columns, gene_names)
    matrix = CsrSource(str(path), key, stamp, len(var))
    names = StringSource(str(path), f"{key}/barcodes", stamp)
    if shape != [len(var), names.shape[0]]:
        found = f"{len(var)} genes and {names.shape[0]} cells"
        raise inconsistent(str(path), f"the shape is {shape[0]} x {shape[1]}, there are {found}")
    return Table(str(path), names, var, matrices={"X": matrix})


def _genes(ids: Any, symbols: Any, columns: dict[str, Any], gene_names: str) -> pd.DataFrame:
    index, other, title = (symbols, ids, "gene_ids")
    if gene_names == "ids":
        index, other, title = (ids, symbols, "gene_symbols")
    return pd.DataFrame({title: other, **columns}, index=pd.Index(index, dtype=object))


def mtx_files(folder: Path) -> dict[str, Path]:
    """Find the three files of a 10x folder, compressed or not; empty if it has no matrix."""
    names = {
        "matrix.mtx": "matrix",
        "barcodes.tsv": "barcodes",
        "genes.tsv": "features",
        "features.tsv": "features",
    }
    paths = {folder / f"{name}{end}": names[name] for name in names for end in ("", ".gz")}
    found = {role: path for path, role in paths.items() if path.is_file()}
    return found if "matrix" in found else {}


def open_tenx_mtx(folder: Path, scratch: Path, gene_names: str) -> Table:
    """Open a folder of ``matrix.mtx``, ``barcodes.tsv`` and ``features.tsv`` (or ``genes.tsv``)."""
    files = mtx_files(folder)
    for role in ("barcodes", "features"):
        if role not in files:
            raise InputError(
                "input-incomplete",
                f"the folder has a matrix but no {role}.tsv or {role}.tsv.gz",
                place=str(folder),
                remedy="copy all three files that CellRanger wrote",
            )
    with text_lines(files["features"]) as lines:
        table = [line.rstrip("\r\n").split("\t") for line in lines]
    n_fields = len(table[0]) if table else 0
    if not n_fields or any(len(row) != n_fields for row in table):
        raise damaged(str(files["features"]), "there are no genes, or lines of unequal length")
    fields = list(zip(*table, strict=True))
    columns = {"feature_types": list(fields[2])} if n_fields > 2 else {}
    var = _genes(list(fields[0]), list(fields[min(1, n_fields - 1)]), columns, gene_names)
    with text_lines(files["barcodes"]) as lines:
        barcodes = (line.rstrip("\r\n").split("\t")[0] for line in lines)
        names = spill_names(barcodes, scratch / "names")
    path = str(files["matrix"])
    with text_lines(files["matrix"]) as lines:
        field, genes, cells, n_entries = _header(path, lines)
    if (genes, cells) != (len(var), names.shape[0]):
        found = f"{len(var)} genes and {names.shape[0]} barcodes"
        raise inconsistent(path, f"the matrix is {genes} x {cells} and there are {found}")
    matrix = MtxSource(
        path, "matrix", stamp_of(folder), str(scratch / "X"), cells, genes, field, n_entries
    )
    return Table(str(folder), names, var, matrices={"X": matrix})


@contextmanager
def text_lines(path: Path) -> Iterator[io.TextIOBase]:
    """Open a text file, compressed if its name ends in ``.gz``."""
    with reading(str(path), "the text"):
        opener = gzip.open if path.suffix == ".gz" else io.open
        with opener(path, "rt", encoding="utf-8") as text:
            yield text


def _header(path: str, lines: Iterator[str]) -> tuple[str, int, int, int]:
    """Read the banner, the comments and the size line of a Matrix Market file."""
    banner = next(lines, "").lower().split()
    if banner[:3] != ["%%matrixmarket", "matrix", "coordinate"] or len(banner) != 5:
        raise _foreign(path, "it is not a Matrix Market coordinate file")
    if banner[3] not in VALUES or banner[4] != "general":
        raise _foreign(path, f"a Matrix Market file of kind {banner[3]} {banner[4]}")
    for line in lines:
        if not line.startswith("%") and line.strip():
            sizes = line.split()
            if len(sizes) != 3 or not all(size.isdigit() for size in sizes):
                raise _foreign(path, f"the size line is {line.strip()[:40]!r}")
            return banner[3], *map(int, sizes)  # type: ignore[return-value]
    raise damaged(path, "the file ends before its size line")


def _foreign(path: str, thing: str) -> InputError:
    remedy = "give the files that CellRanger wrote: general coordinate text of integers or reals"
    return InputError("input-foreign", thing, place=path, remedy=remedy)


@dataclass(frozen=True)
class MtxSource(SpillSource):
    """A coordinate text of (gene, cell, value) lines in any order."""

    field: str
    n_entries: int

    @property
    def dtype(self) -> np.dtype:
        """NumPy dtype of the values."""
        return np.dtype(VALUES[self.field])

    def entries(self) -> Iterator[Entries]:
        """Yield parsed lines."""
        seen = 0
        names = ["gene", "cell"] + ([] if self.field == "pattern" else ["value"])
        with text_lines(Path(self.path)) as lines:
            _header(self.path, lines)
            while text := "".join(islice(lines, ENTRIES // 4)):
                frame = pd.read_csv(
                    io.StringIO(text),
                    sep=r"\s+",
                    header=None,
                    names=names,
                    index_col=False,
                    dtype={"gene": "int64", "cell": "int64", "value": self.dtype},
                )
                if frame.isna().to_numpy().any() and "nan" not in text.lower():
                    raise damaged(self.path, f"a line after entry {seen} is not complete")
                seen += len(frame)
                values = np.ones(len(frame)) if self.field == "pattern" else frame["value"]
                cells, genes = (frame[name].to_numpy() - 1 for name in ("cell", "gene"))
                yield cells, genes, np.asarray(values, self.dtype)
        if seen != self.n_entries:
            thing = f"{seen} entries, and the header announces {self.n_entries}"
            raise damaged(self.path, thing)
