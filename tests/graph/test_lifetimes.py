"""Rows of states go when no stage needs them any more, and room is asked for no more of them."""

from __future__ import annotations

import numpy as np

from stdist.graph import Each, InProcess, Map, Program, Reduce, State, start
from stdist.graph.lifetimes import most_row_bytes, spent_states
from stdist.store import Output, Store

STATES = {
    "early": State((3,), "float64"),
    "late": State((), "float64"),
    "kept": State((), "int32"),
    "unused": State((9,), "float64"),
}


def make(rows, *, names):
    n_rows = rows[1] - rows[0]
    states = {name: np.ones((n_rows, *STATES[name].columns), STATES[name].dtype) for name in names}
    return {"n": np.float64(n_rows)} | states


def total(rows, **states):
    return {"n": np.float64(sum(len(rows) for rows in states.values()))}


def look(item, *, runs):
    """How many versions there are of each state."""
    return {name: np.int64(len(list(runs.glob(f"*/state/{name}/*")))) for name in STATES}


def write(rows, *, kept):
    return {"kept": kept}


def test_states_that_no_stage_needs_are_dropped(store):
    n_rows, runs = 5000, {"runs": store / ".stdist" / "runs"}
    program = Program(
        "lifetimes",
        (
            Reduce("begin", make, options={"names": ("early", "kept")}, rows=n_rows,
                   updates=("early", "kept")),
            Reduce("early_sum", total, rows=n_rows, recalls=("early",)),
            Reduce("go_on", make, options={"names": ("late",)}, rows=n_rows, updates=("late",)),
            Each("between", look, options=runs),
            Map("write", write, rows=n_rows, recalls=("kept",),
                writes={"kept": Output("obs/kept", (), "int32")}),
            Reduce("late_sum", total, rows=n_rows, recalls=("late",)),
            Each("after", look, options=runs),
        ),
        target=store,
        results=lambda values: {"uns/seen": {name: dict(values[name])
                                             for name in ("between", "after")}},
        result_keys=("uns/seen",),
        state=STATES,
    )  # fmt: skip
    assert spent_states(program) == [[], ["early"], [], [], [], ["late"], []]
    assert most_row_bytes(program) == 24 + 4
    start(program, InProcess(), block_length=1024)
    seen = Store(store).uns("seen")
    assert seen["between"] == {"early": 0, "kept": 1, "late": 1, "unused": 0}
    assert seen["after"] == {"early": 0, "kept": 1, "late": 0, "unused": 0}
