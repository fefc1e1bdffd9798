"""From which stage to which a program needs the rows of its states."""

from __future__ import annotations

from stdist.graph.stage import Loop, Map, Program, Rearrange, Reduce


def lifetimes(program: Program) -> dict[str, tuple[int, int]]:
    """Numbers of the first and the last stage that has each state.

    What a pass that writes recalls is needed to the end: its blocks may be written again.
    """
    found: dict[str, tuple[int, int]] = {}
    for number, stage in enumerate(program.stages):
        for part in stage.body if isinstance(stage, Loop) else (stage,):
            last = len(program.stages) if isinstance(part, Map) else number
            updates = part.updates if isinstance(part, (Reduce, Rearrange)) else ()
            for name in (*part.recalls, *updates):
                first, before = found.get(name, (number, number))
                found[name] = first, max(last, before)
    return found


def spent_states(program: Program) -> list[list[str]]:
    """Names of the states that no stage after each needs."""
    spent: list[list[str]] = [[] for _ in program.stages]
    for name, (_, last) in lifetimes(program).items():
        if last < len(spent):
            spent[last].append(name)
    return spent


def most_row_bytes(program: Program) -> int:
    """Bytes of a row of all states that are needed at once, where they are most."""
    needed = [0] * (len(program.stages) + 1)
    for name, (first, last) in lifetimes(program).items():
        for number in range(first, last + 1):
            needed[number] += program.state[name].row_bytes
    return max(needed)
