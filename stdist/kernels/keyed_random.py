"""Random numbers that depend on what they are for, never on who draws them.

A uniform is a hash of a stream's key (seed, purpose, gene) and the global row of a cell.  There
is no state: results do not depend on chunks, workers, order, gene subset or device.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from numba import njit
from numpy.typing import NDArray

# SplitMix64 (Steele, Lea and Flood 2014) with the mixing constants of Stafford's variant 13.
_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_FIRST_FACTOR = np.uint64(0xBF58476D1CE4E5B9)
_SECOND_FACTOR = np.uint64(0x94D049BB133111EB)
_SHIFT_30 = np.uint64(30)
_SHIFT_27 = np.uint64(27)
_SHIFT_31 = np.uint64(31)
_SHIFT_12 = np.uint64(12)
_BITS_OF_ONE = np.uint64(0x3FF0000000000000)
_ONE_LESS_HALF_STEP = 1.0 - 2.0**-53


def stream_key(seed: int, purpose: str, item: str | int, draw: int = 0) -> np.uint64:
    """Key of one random stream, to be combined with a row by :func:`uniform`.

    Parameters
    ----------
    seed
        Any integer.
    purpose
        What the numbers are for; streams of different purposes are independent.
    item
        Gene name or number. The name ``"7"`` and the number 7 give different streams.
    draw
        Number of the draw, where one row needs several uniforms.

    Returns
    -------
    numpy.uint64
        64 bits of the BLAKE2b hash of the four arguments.

    Examples
    --------
    >>> int(stream_key(1, "match", "7")) == int(stream_key(1, "match", "7"))
    True
    >>> int(stream_key(1, "match", "7")) == int(stream_key(1, "match", 7))
    False
    """
    item_text = item if isinstance(item, str) else int(item)
    message = repr((int(seed), purpose, item_text, int(draw))).encode()
    return np.uint64(int.from_bytes(blake2b(message, digest_size=8).digest(), "little"))


@njit(inline="always")
def _mix(bits: np.uint64) -> np.uint64:
    bits = (bits ^ (bits >> _SHIFT_30)) * _FIRST_FACTOR
    bits = (bits ^ (bits >> _SHIFT_27)) * _SECOND_FACTOR
    return bits ^ (bits >> _SHIFT_31)


@njit(inline="always")
def row_hash(row: np.uint64) -> np.uint64:
    """Hash of a global row index (uint64), the part of a uniform that all genes share."""
    return _mix(row + _INCREMENT)


@njit(inline="always")
def uniform_of_hash(key: np.uint64, hashed_row: np.uint64) -> float:
    """Uniform of a stream key and the :func:`row_hash` of a row, both uint64."""
    bits = _mix(key ^ hashed_row)
    # The bit pattern of a double in [1, 2); the difference is exact.
    pattern = np.uint64((bits >> _SHIFT_12) | _BITS_OF_ONE)
    return np.uint64(pattern).view(np.float64) - _ONE_LESS_HALF_STEP


@njit(inline="always")
def uniform(key: np.uint64, row: np.uint64) -> float:
    """Uniform random number of one row of a stream.

    Parameters
    ----------
    key
        uint64 of :func:`stream_key`.
    row
        uint64 global row index of the cell, not its position in a block.

    Returns
    -------
    float
        An odd multiple of 2**-53, so that u and 1 - u are both exact and strictly inside (0, 1).

    Examples
    --------
    >>> key = stream_key(1, "match", "Gad1")
    >>> bool(uniform(key, np.uint64(5)) == uniforms(key, 3, 4)[2])
    True
    """
    return uniform_of_hash(key, row_hash(row))


@njit(nogil=True, cache=True)
def _fill(key: np.uint64, row_start: np.uint64, out: NDArray[np.float64]) -> None:
    for position in range(out.size):
        out[position] = uniform(key, row_start + np.uint64(position))


def uniforms(key: np.uint64, row_start: int, n: int) -> NDArray[np.float64]:
    """Uniform random numbers of consecutive rows of a stream.

    Parameters
    ----------
    key
        uint64 of :func:`stream_key`.
    row_start
        Global index of the first row.
    n
        Number of rows.

    Returns
    -------
    ndarray of float64, shape (n,)
        Strictly inside (0, 1).

    Raises
    ------
    ValueError
        If ``row_start`` or ``n`` is negative.

    Examples
    --------
    >>> key = stream_key(1, "match", "Gad1")
    >>> bool((uniforms(key, 0, 10)[6:] == uniforms(key, 6, 4)).all())
    True
    """
    if row_start < 0 or n < 0:
        message = f"row_start and n must not be negative, not {row_start} and {n}"
        raise ValueError(message)
    out = np.empty(n)
    _fill(np.uint64(key), np.uint64(row_start), out)
    return out
