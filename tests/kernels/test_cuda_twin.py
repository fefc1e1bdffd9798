"""The CUDA text against Numba: bit for bit through a C compiler, in counts on a device."""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numba import njit

from stdist.kernels import (
    poisson_factors_cuda,
    poisson_match_cuda,
    poisson_match_numba,
    portable_math,
)
from stdist.kernels.keyed_random import stream_key, uniforms
from stdist.kernels.poisson_match import match_labels, match_soft, rates

COMPILER = shutil.which("gcc") or shutil.which("clang")
NVCC = shutil.which("nvcc")
NONE = np.iinfo(np.int64).max

PROBES = """
KERNEL exps(int64 n, const double *x, double *y) {
    FOR_EACH_ENTRY(i, n) { y[i] = portable_exp(x[i]); }
}
KERNEL logs(int64 n, const double *x, double *y) {
    FOR_EACH_ENTRY(i, n) { y[i] = portable_log(x[i]); }
}
KERNEL uniforms(int64 n, uint64 key, uint64 row_start, double *y) {
    FOR_EACH_ENTRY(i, n) { y[i] = keyed_uniform(key, row_start + (uint64)i); }
}
"""


def _source(count, weight, out):
    return poisson_match_cuda.source_text(*map(np.dtype, (count, weight, out))) + PROBES


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """Compile the header with a C compiler for three element types: a function of them."""
    if COMPILER is None:
        pytest.skip("no C compiler (gcc or clang) on this machine")
    folder = tmp_path_factory.mktemp("twin")

    def build(count, weight, out):
        stem = folder / f"{count}_{weight}_{out}"
        target = stem.with_suffix(".so")
        if not target.exists():
            stem.with_suffix(".c").write_text(_source(count, weight, out))
            command = [COMPILER, "-O2", "-ffp-contract=off", "-shared", "-fPIC", "-Wall", "-Werror",
                       f"-I{poisson_match_cuda.HEADER.parent}", "-o", target,
                       stem.with_suffix(".c"), "-lm"]  # fmt: skip
            subprocess.run(command, check=True)
        return ctypes.CDLL(str(target))

    return build


def _c_arguments(values):
    for value in values:
        if isinstance(value, np.ndarray):
            yield ctypes.c_void_p(value.ctypes.data)
        elif isinstance(value, bool):
            yield ctypes.c_int(value)
        else:
            yield ctypes.c_longlong(value)


def _call(function, *values):
    function.restype = None
    function(*_c_arguments(values))


@njit
def _exps(values, out):
    for i in range(values.size):
        out[i] = portable_math.exp(values[i])


@njit
def _logs(values, out):
    for i in range(values.size):
        out[i] = portable_math.log(values[i])


@pytest.mark.parametrize(("name", "kernel"), [("exps", _exps), ("logs", _logs)])
def test_functions_have_the_same_bits(library, name, kernel):
    rng = np.random.default_rng(0)
    patterns = rng.integers(-(2**63), 2**63 - 1, 500_000).view(np.float64)
    edges = [0.0, -0.0, np.inf, -np.inf, np.nan, 5e-324, 1.0, 709.79, -745.14, 1e-308]
    x = np.concatenate(
        [patterns, rng.uniform(-760, 720, 500_000), rng.lognormal(0, 9, 500_000), edges]
    )
    y, z = np.empty_like(x), np.empty_like(x)
    kernel(x, y)
    _call(getattr(library("u2", "f4", "i4"), name), x.size, x, z)
    numbers = ~np.isnan(y)
    np.testing.assert_array_equal(np.isnan(z), ~numbers)
    np.testing.assert_array_equal(y[numbers].view(np.int64), z[numbers].view(np.int64))


@pytest.mark.parametrize("row_start", [0, 2**32 - 5, 2**63 - 5])
def test_uniforms_have_the_same_bits(library, row_start):
    key = stream_key(1, "match", "Gad1")
    out = np.empty(100_000)
    _call(library("u2", "f4", "i4").uniforms, out.size, int(key.view(np.int64)), row_start, out)
    np.testing.assert_array_equal(out, uniforms(key, row_start, out.size))


def _tile(count, weight, k, scale, n=400, g=150, b=3):
    """Counts from 0 to far outside their means, which range over the kernel's regimes."""
    rng = np.random.default_rng(k)
    source = rng.normal(0, 2.5, (b, g)), rng.normal(0, 0.7, (b, k, g))
    target = rng.normal(0, 2.5, g), rng.normal(0, 0.7, (k, g))
    target[0][:3] = -np.inf, -750.0, -40.0
    source[0][:, 5:7] = -np.inf, -30.0
    weights = rng.dirichlet(np.full(k, 0.3), n).astype(weight)
    batch = rng.integers(0, b, n).astype(np.int32)
    depth = rng.lognormal(np.log(scale), 0.6, n)
    eta = source[0][batch] + np.einsum("nk,nkg->ng", weights.astype(float), source[1][batch])
    counts = rng.poisson(depth[:, None] * np.exp(eta)).astype(float)
    wild = rng.random(counts.shape) < 0.1
    counts[wild] = np.round(
        counts[wild] * rng.lognormal(0, 1, wild.sum()) + rng.integers(0, 40, wild.sum())
    )
    counts = np.minimum(counts, np.iinfo(count).max).astype(count)
    keys = np.array([stream_key(3, "match", f"g{i}") for i in range(g)], np.uint64)
    return counts, weights, batch, depth, source, target, keys


CASES = [("u2", "f4", "i4", 5, 0.3), ("u2", "f4", "i4", 30, 30.0), ("i4", "f8", "i4", 8, 3.0),
         ("u1", "f8", "u1", 4, 3.0)]  # fmt: skip


@pytest.mark.parametrize("cap", [True, False])
@pytest.mark.parametrize(("count", "weight", "out", "k", "scale"), CASES)
def test_compiled_c_gives_the_same_counts_and_status(library, count, weight, out, k, scale, cap):
    counts, weights, batch, depth, source, target, keys = _tile(count, weight, k, scale)
    n, g = counts.shape
    twin = library(count, weight, out)
    labels = weights.argmax(1).astype(np.int32)
    rate = rates(*source), rates(*target)
    soft = (counts, weights, batch, depth, depth[::-1].copy(), *source, *target, keys, 77, cap)
    labelled = (counts, labels, batch, depth, depth[::-1].copy(), *rate, keys, 77, cap)
    for kernel, function, arguments in (
        (poisson_match_numba.soft, twin.match_soft, soft),
        (poisson_match_numba.labelled, twin.match_labels, labelled),
    ):
        results = [(np.zeros((n, g), out), np.full(3, NONE)) for _ in range(2)]
        kernel(*arguments, *results[0])
        _call(function, n, g, k, *arguments, *results[1])
        np.testing.assert_array_equal(results[0][0], results[1][0])
        np.testing.assert_array_equal(results[0][1], results[1][1])
        assert (results[0][1][poisson_match_numba.OVERFLOW] < NONE) == (out == "u1")
        assert (results[0][0] != counts).mean() > 0.2


def test_compiled_c_reports_the_same_first_problems(library):
    counts, weights, batch, depth, source, target, keys = _tile("i4", "f8", 8, 3.0)
    counts[17, 3] = counts[9, 140] = -1
    target[0][60] = np.nan
    source[0][1, 20] = 800.0
    n, g = counts.shape
    arguments = (counts, weights, batch, depth, depth, *source, *target, keys, 0, True)
    results = [(np.zeros((n, g), "i4"), np.full(3, NONE)) for _ in range(2)]
    poisson_match_numba.soft(*arguments, *results[0])
    _call(library("i4", "f8", "i4").match_soft, n, g, 8, *arguments, *results[1])
    np.testing.assert_array_equal(results[0][1], results[1][1])
    assert results[0][1][poisson_match_numba.BAD_MEAN] in (20, 60)
    assert results[0][1][poisson_match_numba.NEGATIVE_COUNT] == 9 * g + 140


UNITS = {
    "match": (_source("u2", "f4", "i4"), (b"match_soft", b"match_labels")),
    "factors": (poisson_factors_cuda.source_text(), (b"improve_rows", b"sum_genes")),
}


@pytest.mark.skipif(NVCC is None, reason="no nvcc on this machine")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("unit", UNITS)
def test_nvcc_compiles_the_kernels(unit, architecture, tmp_path):
    (tmp_path / "twin.cu").write_text(UNITS[unit][0])
    command = [NVCC, f"-arch={architecture}", "-cubin", "--fmad=false", "-Werror", "all-warnings",
               f"-I{poisson_match_cuda.HEADER.parent}", "-o", tmp_path / "twin.cubin",
               tmp_path / "twin.cu"]  # fmt: skip
    subprocess.run(command, check=True)
    assert (tmp_path / "twin.cubin").read_bytes()[:4] == b"\x7fELF"


def _nvrtc():
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(p) for p in spec.submodule_search_locations] if spec else []
    found = [path for folder in folders for path in folder.glob("**/lib/libnvrtc.so.*")]
    if not found:
        return None
    for builtins in found[0].parent.glob("libnvrtc-builtins.so.*"):
        ctypes.CDLL(str(builtins))  # libnvrtc asks for it by name only
    return ctypes.CDLL(str(found[0]))


@pytest.mark.parametrize("unit", UNITS)
def test_nvrtc_compiles_the_kernels(unit):
    """CuPy compiles with NVRTC, which has no headers of the C library."""
    nvrtc = _nvrtc()
    if nvrtc is None:
        pytest.skip("nvidia-cuda-nvrtc is not installed")
    program = ctypes.c_void_p()
    text, entries = UNITS[unit]
    source = text.encode()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"twin.cu", 0, None, None) == 0
    options = [b"--gpu-architecture=compute_80", b"--fmad=false",
               f"-I{poisson_match_cuda.HEADER.parent}".encode()]  # fmt: skip
    status = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * 3)(*options))
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    assert status == 0, log.value.decode()
    nvrtc.nvrtcGetPTXSize(program, ctypes.byref(size))
    ptx = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetPTX(program, ptx)
    assert all(b".entry " + entry in ptx.value for entry in entries)
    assert b"fma.rn.f64" not in ptx.value


@pytest.mark.gpu
@pytest.mark.parametrize(("count", "weight", "out", "k", "scale"), CASES[:3])
def test_device_gives_the_counts_of_the_processor(count, weight, out, k, scale):
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    if not cupy.cuda.is_available():
        pytest.skip("no NVIDIA device here")
    counts, weights, batch, depth, source, target, keys = _tile(count, weight, k, scale, n=20_000)
    labels = weights.argmax(1)
    soft = (counts, weights, batch, depth, *source, *target, keys)
    labelled = (counts, labels, batch, depth, rates(*source), rates(*target), keys)
    for match, arguments in ((match_soft, soft), (match_labels, labelled)):
        expected = match(*arguments, 77, out=np.empty(counts.shape, out))
        result = match(*map(cupy.asarray, arguments), 77, out=cupy.empty(counts.shape, out))
        assert isinstance(result, cupy.ndarray)
        assert (result.get() == expected).mean() >= 1 - 1e-6
