"""Where kernels run: in host memory, or on an NVIDIA GPU through CuPy.

A kernel whose stage says ``on_device`` accepts either. On a GPU it gets CuPy arrays for all
numbers: blocks, rows of state, values of earlier stages and options move there, CSR rows become
dense tile by tile unless its stage says ``keep_csr``, and text stays. Partial sums are added on the
device; what leaves a task is in host memory again. Results of the two differ in their last bits.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from scipy import sparse

from stdist.store import InputError

CPU, CUDA = "cpu", "cuda"
SETTING = "stdist.device"
"""Dask's configuration, or the environment variable ``DASK_STDIST__DEVICE``."""


def configured_device() -> str:
    """Name of the device that this process is configured for; touches none."""
    import dask

    return dask.config.get(SETTING, CPU)


def chosen_device() -> tuple[str, int | None]:
    """Device that this process is configured for, and its memory in bytes (None: the host's).

    Raises
    ------
    InputError
        If it is none that stdist knows, or this process has no CuPy or no NVIDIA device.
    """
    device = configured_device()
    if device == CPU:
        return CPU, None
    if device != CUDA:
        raise InputError(
            "device-unknown",
            f"{device!r} is no device",
            place=f"{SETTING} in Dask's configuration",
            remedy=f'use "{CPU}" or "{CUDA}"',
        )
    try:
        import cupy
    except ImportError as error:
        raise InputError(
            "extra-missing",
            f"CuPy cannot be imported ({error})",
            place=f'{SETTING} is "{CUDA}"',
            remedy="pip install 'stdist[gpu]' on every worker",
        ) from error
    if not cupy.cuda.is_available():
        raise InputError(
            "cuda-driver",
            "no usable NVIDIA driver or device on this machine",
            place=f'{SETTING} is "{CUDA}"',
            remedy=f'run where `nvidia-smi` works, or set {SETTING} to "{CPU}"',
        )
    return CUDA, int(cupy.cuda.Device().mem_info[1])


class Memory(Hashable, Protocol):
    """The memory in which a kernel finds its arguments."""

    def take(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """Bring arguments there."""

    def give(self, results: Mapping[str, Any], csr: Container[str] = ()) -> dict[str, Any]:
        """Bring results into host memory; those named in `csr` as CSR rows."""


class Host:
    """Host memory: arguments and results are there already."""

    def take(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """Return them as they are."""
        return dict(arrays)

    def give(self, results: Mapping[str, Any], csr: Container[str] = ()) -> dict[str, Any]:
        """Return them as they are; kernels make CSR rows of CSR rows themselves."""
        return dict(results)


@dataclass(frozen=True)
class Gpu:
    """Memory of the worker's NVIDIA device, where CSR rows become dense unless `keep_csr`."""

    keep_csr: bool = False

    def take(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """Copy numbers to the device."""
        rows = CsrRows if self.keep_csr else DeviceRows
        return {name: _to_device(value, rows) for name, value in arrays.items()}

    def give(self, results: Mapping[str, Any], csr: Container[str] = ()) -> dict[str, Any]:
        """Copy results to the host; of CSR rows only what is not zero."""
        return {
            name: _to_csr(value) if name in csr else _to_host(value)
            for name, value in results.items()
        }


HOST, GPU = Host(), Gpu()


def memory_of(device: str, *, on_device: bool, keep_csr: bool = False) -> Memory:
    """Memory for the kernel of a stage in a run on `device`."""
    return Gpu(keep_csr) if device == CUDA and on_device else HOST


def _to_device(value: Any, rows: Callable[[sparse.csr_matrix], Any]) -> Any:
    import cupy

    if sparse.issparse(value):
        return rows(value)
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
        return value
    # CuPy takes scalars of the host, but no arrays without dimensions
    return cupy.asarray(value) if value.ndim else value[()]


def _to_host(value: Any) -> Any:
    import cupy

    return value.get()[()] if isinstance(value, cupy.ndarray) else value


def _to_csr(dense: Any) -> sparse.csr_matrix:
    import cupy

    rows, columns = cupy.nonzero(dense)
    data = dense[rows, columns].get()
    entries = cupy.count_nonzero(dense, axis=1).get()
    offsets = np.concatenate([[0], np.cumsum(entries)])
    parts = (data, columns.astype(np.int32).get(), offsets)
    return sparse.csr_matrix(parts, shape=dense.shape)


class CsrRows:
    """CSR rows on the device, of which a slice is the same."""

    def __init__(self, rows: sparse.csr_matrix) -> None:
        import cupy

        if not rows.has_canonical_format:
            rows = rows.copy()
            rows.sum_duplicates()
        self.shape, self.offsets = rows.shape, np.asarray(rows.indptr, np.int64)
        self.indices, self.data = cupy.asarray(rows.indices), cupy.asarray(rows.data)

    @property
    def indptr(self) -> Any:
        """Where each row begins."""
        import cupy

        return cupy.asarray(self.offsets)

    def __getitem__(self, rows: slice) -> Any:
        """Return some rows."""
        found = object.__new__(CsrRows)
        first, last, _ = rows.indices(self.shape[0])
        offsets = self.offsets[first : last + 1]
        entries = slice(int(offsets[0]), int(offsets[-1]))
        found.shape, found.offsets = (last - first, self.shape[1]), offsets - offsets[0]
        found.indices, found.data = self.indices[entries], self.data[entries]
        return found


class DeviceRows(CsrRows):
    """CSR rows on the device, of which a slice is a dense array there."""

    def __getitem__(self, rows: slice) -> Any:
        """Return some rows, dense."""
        import cupy

        found = super().__getitem__(rows)
        entries = cupy.arange(len(found.data))
        row = cupy.searchsorted(found.indptr, entries, side="right") - 1
        dense = cupy.zeros(found.shape, found.data.dtype)
        dense[row, found.indices] = found.data
        return dense
