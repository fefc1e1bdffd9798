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


def fold(leaves: Iterable[Node], combine: Callable[[Node, Node], Node]) -> Node:
    """Combine leaves in the fixed binary tree over their positions.

    Node ``j`` of level ``l`` covers leaves ``j * 2**l .. (j + 1) * 2**l``. Only one pending node
    per level is held, and a run of ``2**m`` aligned leaves folds to a whole subtree: folding
    blocks of tiles, then the blocks, gives the same tree as folding all tiles.

    Raises
    ------
    ValueError
        If there is no leaf.

    Examples
    --------
    >>> fold("abcde", lambda left, right: f"({left}{right})")
    '(((ab)(cd))e)'
    """
    pending: list[tuple[int, Node]] = []
    for leaf in leaves:
        level, node = 0, leaf
        while pending and pending[-1][0] == level:
            node = combine(pending.pop()[1], node)
            level += 1
        pending.append((level, node))
    if not pending:
        message = "nothing to fold"
        raise ValueError(message)
    _, node = pending.pop()
    while pending:
        node = combine(pending.pop()[1], node)
    return node
