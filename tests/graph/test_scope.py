"""The same stages twice in a program: apart from each other, and the same as alone."""

from __future__ import annotations

import numpy as np

from stdist.graph import Each, InProcess, Loop, Program, Reduce, State, run_in_memory, scoped

STATE = {"carried": State((), "float64")}


def number(item, *, value):
    return {"x": np.float64(value)}


def begin(rows, *, first):
    return {"total": np.zeros(1), "carried": np.full(rows[1] - rows[0], first["x"])}


def go_on(rows, *, carried, factor, growing):
    grown = carried + factor["x"] * (1 + growing["total"])
    return {"total": np.array([grown.sum()]), "carried": grown}


def finish(total, *, factor, growing):
    return {"total": total["total"] / factor["x"]}


def never(previous, current):
    return False


def body(first):
    return [
        Each("first", number, options={"value": first}),
        Reduce("began", begin, uses=("first",), rows=5, updates=("carried",)),
        Loop(
            "growing",
            (
                Reduce(
                    "grow", go_on, uses=("factor", "growing"), finalize=finish, rows=5,
                    recalls=("carried",), updates=("carried",),
                ),
            ),
            "began",
            never,
            3,
        ),
    ]  # fmt: skip


def total(stages, states, *names):
    factor = Each("factor", number, options={"value": 2.0})
    program = Program(
        "twice",
        (factor, *stages),
        results=lambda values: {name: float(values[name]["total"][0]) for name in names},
        state=states,
    )
    return run_in_memory(program, InProcess())


def test_scopes_share_what_they_use_and_keep_apart_what_they_make():
    stages, states = body(1.0), dict(STATE)
    for scope, first in (("a", 3.0), ("b", 5.0)):
        more, own = scoped(scope, body(first), STATE)
        stages, states = stages + more, states | own
    (inner,), own = scoped("c", [scoped("d", body(7.0), STATE)[0][0]], STATE)
    assert (inner.name, own) == ("c.d.first", {})
    found = total(stages, states, "growing", "a.growing", "b.growing")
    for name, first in (("growing", 1.0), ("a.growing", 3.0), ("b.growing", 5.0)):
        alone = total(body(first), STATE, "growing")
        assert found[name] == alone["growing"]
    assert len(set(found.values())) == 3
