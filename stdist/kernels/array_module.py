"""The array library of a kernel's arguments: NumPy, or CuPy where they are on a GPU."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np


def array_module(values: Any) -> Any:
    """Return the library to create arrays with beside `values`; CuPy is imported only for its own.

    Examples
    --------
    >>> array_module([1.0, 2.0]).__name__
    'numpy'
    """
    if type(values).__module__.partition(".")[0] == "cupy":
        return import_module("cupy")
    return np


def host_array(values: Any) -> Any:
    """Return an array in host memory; one that is there is not copied."""
    return values if array_module(values) is np else values.get()
