"""Arrays of a block go back to the machine when they are freed.

glibc keeps arrays of up to 32 MB for later once such have been freed, in every thread's arena: a
process that reads blocks in a few threads then holds several times what it uses. Dask's nannies
start their workers with a setting against this; here it is made in every process that runs tasks.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
TRIM_THRESHOLD, MMAP_THRESHOLD = 2**16, 2**20
"""Bytes: that of Dask's nannies; and above arrays of a tile, below those of a block."""


@cache
def return_freed_memory() -> None:
    """Give freed arrays back at once in this process, where its C library is glibc."""
    with suppress(AttributeError, OSError):
        library = ctypes.CDLL(None)
        library.mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD)
        library.mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD)
