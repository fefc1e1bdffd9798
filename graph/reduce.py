"""Reductions in a fixed binary tree over tile numbers, so that no schedule can change a bit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np

Statistic = Mapping[str, np.ndarray]
Node = TypeVar("Node")


def add(left: Statistic, right: Statistic) -> dict[str, np.ndarray]:
    """Add two partial statistics, entry by entry."""
    return {name: left[name] + right[name] for name in left}


def concatenate(left: Statistic, right: Statistic) -> dict[str, np.ndarray]:
    """Append the rows of `right` to those of `left`: gathers sampled rows in row order."""
    return {name: np.concatenate([left[name], right[name]]) for name in left}


def add_by_group(left: Statistic, right: Statistic) -> dict[str, np.ndarray]:
    """Add rows of the same ``group``, of which each partial has those that its cells belong to.

    ``group`` holds distinct numbers, ascending; every other entry has one row for each. A tile of
    sorted cells then costs what its one or two groups cost, however many there are.

    Examples
    --------
    >>> one = {"group": np.array([0, 2]), "sum": np.array([1.0, 2.0])}
    >>> two = {"group": np.array([2, 5]), "sum": np.array([10.0, 20.0])}
    >>> add_by_group(one, two)["sum"]
    array([ 1., 12., 20.])
    """
    same = len(left["group"]) == len(right["group"])
    if same and bool((left["group"] == right["group"]).all()):
        return {n: left[n] if n == "group" else left[n] + right[n] for n in left}
    group = np.union1d(left["group"], right["group"])
    found: dict[str, np.ndarray] = {"group": group}
    for name in left:
        if name != "group":
            total = np.zeros((len(group), *left[name].shape[1:]), left[name].dtype)
            for part in (left, right):
                total[np.searchsorted(group, part["group"])] += part[name]
            found[name] = total
    return found


def by_name(**rules: Callable[[Any, Any], Any]) -> ByName:
    """Combine named entries by their own rule (``np.maximum`` ...) and add all others."""
    return ByName(rules)


class ByName:
    """Combine function with a rule per entry; addition where no rule is named."""

    def __init__(self, rules: Mapping[str, Callable[[Any, Any], Any]]) -> None:
        self.rules = dict(rules)

    def __call__(self, left: Statistic, right: Statistic) -> dict[str, np.ndarray]:
        """Combine two partial statistics."""
        rules = self.rules
        return {
            name: rules[name](left[name], right[name])
            if name in rules
            else left[name] + right[name]
            for name in left
        }


def fold(leaves: Iterable[Node | None], combine: Callable[[Node, Node], Node]) -> Node:
    """Combine leaves in the fixed binary tree over their positions.

    Node ``j`` of level ``l`` covers leaves ``j * 2**l .. (j + 1) * 2**l``. Only one pending node
    per level is held, and a run of ``2**m`` aligned leaves folds to a whole subtree: folding
    blocks of tiles, then the blocks, gives the same tree as folding all tiles. A leaf that is None
    keeps its place in the tree and is left out.

    Raises
    ------
    ValueError
        If there is no leaf.

    Examples
    --------
    >>> fold("abcde", lambda left, right: f"({left}{right})")
    '(((ab)(cd))e)'
    >>> fold(["a", None, "c", "d"], lambda left, right: f"({left}{right})")
    '(a(cd))'
    """
    pending: list[tuple[int, Node | None]] = []

    def merge(left: Node | None, right: Node | None) -> Node | None:
        if left is None or right is None:
            return right if left is None else left
        return combine(left, right)

    for leaf in leaves:
        level, node = 0, leaf
        while pending and pending[-1][0] == level:
            node = merge(pending.pop()[1], node)
            level += 1
        pending.append((level, node))
    node = None
    while pending:
        node = merge(pending.pop()[1], node)
    if node is None:
        message = "nothing to fold"
        raise ValueError(message)
    return node
