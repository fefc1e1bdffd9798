"""CSR matrices inside HDF5 files and zarr folders, checked and put in canonical order."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from stdist.io.sources import ArraySource, Facts, NodeSource, inconsistent, node_facts, opened
from stdist.store import TILE_ROWS

BAND = 2**20
"""Offsets that are looked at together."""


@functools.lru_cache(maxsize=64)
def tile_entries(path: str, key: str, stamp: str) -> np.ndarray:
    """Stored entries of each tile of rows of a CSR matrix, from its offsets, read in bands."""
    name = f"{key}/indptr"
    length = node_facts(path, name, stamp).shape[0]
    edges, last = [], 0
    with opened(path, f"array {name!r}") as root:
        for first in range(0, length, BAND):
            band = np.asarray(root[name][first : first + BAND]).astype(np.int64)
            if (first == 0 and band[0] != 0) or band[0] < last or np.any(np.diff(band) < 0):
                raise inconsistent(path, f"the row offsets {name!r} do not increase from 0")
            edges.append(band[::TILE_ROWS])
            last = int(band[-1])
        stored = min(root[f"{key}/{part}"].shape[0] for part in ("data", "indices"))
    if last > stored:
        raise inconsistent(path, f"{name!r} counts {last} entries and {stored} are stored")
    return np.diff(np.append(np.concatenate(edges), last))


def densest(entries: np.ndarray, rows: int) -> int:
    """Stored entries of the densest aligned run of `rows` rows, from those of the tiles."""
    step = max(1, rows // TILE_ROWS)
    return int(np.add.reduceat(entries, np.arange(0, len(entries), step)).max(initial=0))


@dataclass(frozen=True)
class CsrSource(NodeSource):
    """A group of ``data``, ``indices`` and ``indptr``: CSR, or 10x's CSC of genes by cells."""

    n_columns: int

    csr = True

    @property
    def facts(self) -> Facts:
        """Facts of the stored values."""
        return node_facts(self.path, f"{self.key}/data", self.stamp)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the matrix."""
        indptr = node_facts(self.path, f"{self.key}/indptr", self.stamp)
        return indptr.shape[0] - 1, self.n_columns

    def read(self, start: int, stop: int) -> sparse.csr_matrix:
        """Return rows ``start:stop`` as a canonical CSR matrix."""
        indptr = self._part("indptr", start, stop + 1).astype(np.int64)
        first, last = int(indptr[0]), int(indptr[-1])
        if np.any(np.diff(indptr) < 0):
            raise inconsistent(self.path, f"the row offsets of {self.key!r} decrease")
        data, indices = self._part("data", first, last), self._part("indices", first, last)
        if len(data) != last - first or len(indices) != last - first:
            raise inconsistent(self.path, f"{self.key!r} has fewer entries than its offsets say")
        return canonical_csr(
            self.path, data, indices, indptr - first, (stop - start, self.n_columns)
        )

    def _part(self, name: str, start: int, stop: int) -> np.ndarray:
        return ArraySource(self.path, f"{self.key}/{name}", self.stamp).read(start, stop)

    def row_entries(self) -> int:
        """Bound on the entries per row of any block."""
        return -(-densest(tile_entries(self.path, self.key, self.stamp), TILE_ROWS) // TILE_ROWS)

    def read_bytes(self, rows: int) -> int:
        """Bytes held while the densest run of `rows` rows is read and put in order."""
        entries = densest(tile_entries(self.path, self.key, self.stamp), rows)
        indices = node_facts(self.path, f"{self.key}/indices", self.stamp)
        return (
            entries * (self.dtype.itemsize + indices.dtype.itemsize + 4)
            + 24 * rows
            + 2 * self.facts.chunk_bytes
        )

    def stored_bytes(self) -> int:
        """Bytes on disk."""
        parts = (node_facts(self.path, f"{self.key}/{p}", self.stamp) for p in ("data", "indices"))
        return sum(part.stored_bytes for part in parts)


def canonical_csr(
    path: str, data: np.ndarray, indices: np.ndarray, indptr: np.ndarray, shape: tuple[int, int]
) -> sparse.csr_matrix:
    """Build a CSR matrix with sorted, unique column numbers, after checking their range."""
    if len(indices) and not 0 <= indices.min() <= indices.max() < shape[1]:
        raise inconsistent(path, f"a column number lies outside the {shape[1]} genes")
    if data.dtype == np.float16:
        data = data.astype(np.float32)
    indices = indices.astype(np.int32 if shape[1] < 2**31 else np.int64, copy=False)
    matrix = sparse.csr_matrix((data, indices, indptr), shape=shape)
    matrix.sum_duplicates()
    return matrix
