"""Stages used more than once in a program: under names of their own, otherwise the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from stdist.graph.stage import AnyStage, Loop, Rearrange, Reduce
from stdist.graph.state import State


@dataclass(frozen=True)
class _Inside:
    """A function of a stage, which knows names without the scope."""

    func: Callable[..., dict[str, Any]]  # as in a partial function
    taken: Mapping[str, str]
    given: Mapping[str, str]

    def __call__(self, *arguments: Any, **named: Any) -> dict[str, Any]:
        found = self.func(*arguments, **{self.taken.get(k, k): v for k, v in named.items()})
        return {self.given.get(name, name): value for name, value in found.items()}


def scoped(
    scope: str, stages: Iterable[AnyStage], states: Mapping[str, State]
) -> tuple[list[AnyStage], dict[str, State]]:
    """Return the same stages under names of their own, and the states that they update.

    What the stages make, values and states, is called ``scope.name`` outside of their kernels; what
    they only use stays what the program around them has under that name.

    Parameters
    ----------
    scope
        Prefix of the names.
    stages
        Stages of a program; outputs keep their keys.
    states
        States of that program.

    Examples
    --------
    >>> from stdist.graph import Each
    >>> [stage], _ = scoped("again", [Each("fit", dict, uses=("sample",))], {})
    >>> stage.name, stage.uses
    ('again.fit', ('sample',))
    """
    whole = list(stages)
    parts = [part for stage in whole for part in _parts(stage)]
    updated = {name for part in parts for name in getattr(part, "updates", ())}
    made = updated | {stage.name for stage in (*whole, *parts)}
    names = {name: f"{scope}.{name}" for name in made}
    renamed = [_renamed(stage, names) for stage in whole]
    return renamed, {names[name]: states[name] for name in sorted(updated)}


def _parts(stage: AnyStage) -> tuple[Any, ...]:
    return stage.body if isinstance(stage, Loop) else (stage,)


def _renamed(stage: Any, names: Mapping[str, str]) -> Any:
    if isinstance(stage, Loop):
        return replace(
            stage,
            name=names[stage.name],
            initial=names.get(stage.initial, stage.initial),
            body=tuple(_renamed(part, names) for part in stage.body),
        )
    outer = {name: names.get(name, name) for name in (*stage.uses, *stage.recalls)}
    inner = {there: here for here, there in outer.items()}
    changes: dict[str, Any] = {}
    given: dict[str, str] = {}
    if isinstance(stage, (Reduce, Rearrange)):
        given = {name: names[name] for name in stage.updates}
        changes["updates"] = tuple(given.values())
    if isinstance(stage, Reduce) and stage.finalize is not None:
        changes["finalize"] = _Inside(stage.finalize, inner, {})
    return replace(
        stage,
        name=names[stage.name],
        kernel=_Inside(stage.kernel, inner, given),
        uses=tuple(outer[name] for name in stage.uses),
        recalls=tuple(outer[name] for name in stage.recalls),
        **changes,
    )
