"""Launches the CUDA kernels of ``poisson_match.cuh`` on tiles in device memory (CuPy)."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

HEADER = Path(__file__).with_name("poisson_match.cuh")

_THREADS = 256
_C_TYPES = {
    "i1": "signed char",
    "i2": "short",
    "i4": "int",
    "i8": "long long",
    "u1": "unsigned char",
    "u2": "unsigned short",
    "u4": "unsigned int",
    "u8": "unsigned long long",
    "f4": "float",
    "f8": "double",
}


def source_text(count: np.dtype, weight: np.dtype, out: np.dtype) -> str:
    """Text of a translation unit: the header with the element types it asks for.

    Examples
    --------
    >>> text = source_text(np.dtype("u2"), np.dtype("f4"), np.dtype("i4"))
    >>> text.splitlines()[0]
    '#define COUNT unsigned short'
    """
    return (
        f"#define COUNT {_C_TYPES[count.str[1:]]}\n"
        f"#define WEIGHT {_C_TYPES[weight.str[1:]]}\n"
        f"#define OUT {_C_TYPES[out.str[1:]]}\n"
        f"#define OUT_MAXIMUM {float(np.iinfo(out).max)!r}\n"
        f'#include "{HEADER.name}"\n'
    )


@cache
def _module(device: int, count: np.dtype, weight: np.dtype, out: np.dtype) -> Any:
    import cupy

    # Contraction to fused multiply-adds would move results away from the processor's.
    options = ("--fmad=false", f"-I{HEADER.parent}")
    return cupy.RawModule(code=source_text(count, weight, out), options=options)


def _launch(name: str, weight: Any, n_states: int, arrays: tuple[Any, ...]) -> None:
    counts, *inputs, keys, row_start, cap, out, status = arrays
    module = _module(counts.device.id, counts.dtype, weight, out.dtype)
    n_cells, n_genes = counts.shape
    blocks = -(-counts.size // _THREADS)
    if blocks == 0:
        return
    shape = (np.int64(n_cells), np.int64(n_genes), np.int64(n_states))
    tail = (keys, np.uint64(row_start), np.int32(cap), out, status)
    with counts.device:
        module.get_function(name)((blocks,), (_THREADS,), (*shape, counts, *inputs, *tail))


def soft(*arrays: Any) -> None:
    """Match a tile whose means follow from soft cluster assignments."""
    weights = arrays[1]
    _launch("match_soft", weights.dtype, weights.shape[1], arrays)


def labelled(*arrays: Any) -> None:
    """Match a tile whose means follow from one label per cell."""
    target_rate = arrays[6]
    _launch("match_labels", np.dtype(np.float32), target_rate.shape[0], arrays)
