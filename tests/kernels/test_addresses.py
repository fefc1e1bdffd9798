"""The last bit of a result does not depend on where in memory its arrays are.

Compiled loops ask at run time whether what they write is near what they read, and do without
vectors then. That must not change the order of a sum.
"""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest

import stdist.kernels
from stdist.kernels.harmony_numba import assign_rows

GAPS = (0, 8, 24, 64, 200, 1 << 16)
"""Bytes between arrays."""


def reordered_functions():
    """Functions whose sums the compiler may reorder."""
    for path in sorted(Path(stdist.kernels.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and any(
                "reassoc" in ast.unparse(decorator) for decorator in node.decorator_list
            ):
                yield f"{path.stem}.{node.name}", node


def innermost_loops(function):
    """Loops without a loop in them: those that become vectors."""
    for loop in ast.walk(function):
        if isinstance(loop, ast.For | ast.While):
            inside = [node for statement in loop.body for node in ast.walk(statement)]
            if not any(isinstance(node, ast.For | ast.While) for node in inside):
                yield loop, inside


def sums_where_it_stores(loop, inside):
    """Whether a loop adds up a value and writes to an array, or adds up in one place of it."""
    added = [node.target for node in inside if isinstance(node, ast.AugAssign)]
    targets = [t for node in inside if isinstance(node, ast.Assign) for t in node.targets]
    stores = [target for target in (*added, *targets) if isinstance(target, ast.Subscript)]
    if stores and any(isinstance(target, ast.Name) for target in added):
        return True
    counter = ast.unparse(loop.target) if isinstance(loop, ast.For) else None
    places = [{n.id for n in ast.walk(t.slice) if isinstance(n, ast.Name)} for t in stores]
    return any(counter not in names for names in places)


def test_no_loop_stores_where_its_sum_may_be_reordered():
    found = list(reordered_functions())
    assert len(found) > 3
    for name, function in found:
        for loop, inside in innermost_loops(function):
            assert not sums_where_it_stores(loop, inside), f"{name}: {ast.unparse(loop)}"


@pytest.mark.parametrize("n_clusters", [3, 16, 100])
def test_clusters_have_the_same_bits_wherever_their_arrays_are(n_clusters):
    rng = np.random.default_rng(0)
    arrays = [
        rng.normal(size=(64, 20)).astype(np.float32),
        rng.integers(0, 4, 64).astype(np.int32),
        rng.normal(size=(20, n_clusters)).astype(np.float32),
        rng.normal(size=(4, n_clusters)).astype(np.float32),
        np.zeros((64, n_clusters), np.float32),
    ]
    found = []
    for gap in GAPS:
        near = placed(arrays, gap)
        found.append((assign_rows(*near), near[-1]))
    for total, weights in found[1:]:
        assert total == found[0][0]
        np.testing.assert_array_equal(weights, found[0][1])


def placed(arrays, gap):
    """Copies of arrays, one after the other in one buffer."""
    space = np.zeros(sum(a.nbytes + gap + 8 for a in arrays) // 8 + 1)
    moved, at = [], 0
    for array in arrays:
        found = space.view(np.uint8)[at : at + array.nbytes].view(array.dtype)
        found = found.reshape(array.shape)
        found[...] = array
        moved.append(found)
        at += -(-(array.nbytes + gap) // 8) * 8
    return moved
