"""A strict stand-in for CuPy in host memory: it refuses what a device refuses.

No conversion to NumPy but ``get()``, no mixing with arrays of the host, and only the functions of
NumPy that are listed here, all of which CuPy 14 has with these arguments.
"""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np


def _names(text):
    return text.split()


UFUNCS = _names("""
absolute add bitwise_and bitwise_or divide equal exp floor floor_divide greater greater_equal
invert isfinite isnan left_shift less less_equal log log1p logical_and logical_not logical_or
matmul maximum minimum multiply negative not_equal power remainder sqrt square subtract
""")
FUNCTIONS = _names("""
abs all any argmax argmin argsort bincount broadcast_to clip column_stack concatenate
count_nonzero cumsum diff dot empty_like expand_dims flatnonzero full_like linalg.norm
linalg.solve max mean min moveaxis nonzero ones_like outer ravel reshape searchsorted shape sort
squeeze stack std sum swapaxes take trace transpose tril_indices unique var where zeros_like
""")
CREATION = _names("arange array asarray ascontiguousarray empty eye full ones zeros")
METHODS = _names("""
all any argmax argmin argsort astype copy cumsum dot max mean min nonzero prod ravel reshape
squeeze sum swapaxes take transpose
""")


class ndarray(np.lib.mixins.NDArrayOperatorsMixin):
    """An array of the pretended device."""

    __module__ = "cupy"

    def __init__(self, host):
        assert host.dtype.kind in "biuf", host.dtype
        self._host = host

    def get(self):
        return self._host.copy()

    def __array__(self, *_, **__):
        raise TypeError("implicit conversion to a NumPy array: use get()")

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        if method != "__call__" or ufunc.__name__ not in UFUNCS or set(options) - {"out"}:
            raise TypeError(f"CuPy has no {ufunc.__name__}.{method} with {sorted(options)}")
        return _call(ufunc, inputs, options)

    def __array_function__(self, function, types, arguments, options):
        name = f"{function.__module__}.{function.__name__}".removeprefix("numpy.")
        if name not in FUNCTIONS:
            raise TypeError(f"CuPy has no {name}, or nobody listed it in this file")
        return _call(function, arguments, options)

    def __getattr__(self, name):
        if name in METHODS:
            return lambda *arguments, **options: _call(
                getattr(self._host, name), arguments, options
            )
        raise AttributeError(name)

    def __getitem__(self, place):
        return _device(self._host[_host(place)])

    def __setitem__(self, place, value):
        self._host[_host(place)] = _host(value)

    def __iter__(self):
        return (_device(row) for row in self._host)

    def __len__(self):
        return len(self._host)

    def __bool__(self):
        return bool(self._host)

    def __int__(self):
        return int(self._host)

    def __float__(self):
        return float(self._host)

    def __index__(self):
        return self._host.__index__()

    shape = property(lambda self: self._host.shape)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    dtype = property(lambda self: self._host.dtype)
    flags = property(lambda self: self._host.flags)
    nbytes = property(lambda self: self._host.nbytes)
    T = property(lambda self: _device(self._host.T))


def _host(value):
    if isinstance(value, ndarray):
        return value._host
    if isinstance(value, np.ndarray):
        raise TypeError(f"an array of the host, {value.dtype} {value.shape}, among the device's")
    if isinstance(value, (tuple, list)):
        return type(value)(_host(item) for item in value)
    return value


def _device(value):
    if isinstance(value, (np.ndarray, np.generic)):
        return ndarray(np.asarray(value))
    if isinstance(value, (tuple, list)):
        return tuple(_device(item) for item in value)
    return value


def _call(function, arguments, options):
    options = {name: _host(value) for name, value in options.items()}
    result = function(*_host(tuple(arguments)), **options)
    return _device(result)


def _explicit(value):
    """Creation functions are the door to the device: they take arrays of the host."""
    return value if isinstance(value, np.ndarray) else _host(value)


def _creator(name):
    function = getattr(np, name)

    def create(*arguments, **options):
        return _device(function(*map(_explicit, arguments), **options))

    return create


def _evaluator(function):
    return lambda *arguments, **options: _call(function, arguments, options)


def module(*, available=True, n_bytes=2**34):
    """Return the module, to stand as ``sys.modules["cupy"]``."""
    fake = ModuleType("cupy")
    fake.ndarray, fake.linalg = ndarray, ModuleType("cupy.linalg")
    fake.cuda = ModuleType("cupy.cuda")
    fake.cuda.is_available = lambda: available
    fake.cuda.Device = type("Device", (), {"id": 0, "mem_info": (n_bytes, n_bytes)})
    for name in CREATION:
        setattr(fake, name, _creator(name))
    for name in (*UFUNCS, *FUNCTIONS):
        place, _, last = name.rpartition(".")
        owner = getattr(np, place) if place else np
        setattr(getattr(fake, place) if place else fake, last, _evaluator(getattr(owner, last)))
    return fake


def install(monkeypatch, **options):
    """Make ``import cupy`` find the fake, for one test."""
    fake = module(**options)
    monkeypatch.setitem(sys.modules, "cupy", fake)
    return fake


def assert_agree(cupy, found, expected):
    """Demand equal arithmetic of the fake, and of a device what its rounding allows."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.dtype == expected.dtype
    exact = cupy.ndarray is ndarray
    if found.dtype.kind in "biu":
        assert np.mean(found == expected) >= (1.0 if exact else 1 - 1e-6)
    elif found.dtype.kind == "f":
        scale = np.abs(expected[np.isfinite(expected)]).max(initial=0.0)
        tolerance = 1e-12 if exact else 1e-5
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * scale)
    else:
        np.testing.assert_array_equal(found, expected)
