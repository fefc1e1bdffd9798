"""What is known of a run: its record, its store, and what it wrote."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from stdist.graph.record import RunRecord
from stdist.methods.data import StoreData
from stdist.store import InputError


class RunFacts:
    """A recorded run and the store that it worked on.

    Raises
    ------
    InputError
        If the folder is no run record.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        record = RunRecord(self.folder)
        self.run = record.read_json("run.json")
        if not self.run:
            raise InputError(
                "run-unknown",
                "no run record (a folder with run.json)",
                place=str(self.folder),
                remedy="`stdist status STORE` lists the runs of a store and their folders",
            )
        self.state = record.read_json("state.json")
        self.attempts = int(record.read_json("attempts.json").get("attempts", 1))
        self.parameters: dict[str, Any] = self.run["parameters"]
        self.program: str = self.run["program"]

    @property
    def store(self) -> Path:
        """The store, where it is now: it may have been moved since the run."""
        return self.folder.resolve().parents[2]

    @property
    def finished(self) -> bool:
        """True if the results are in the store."""
        return self.state.get("state") == "done"

    @cached_property
    def data(self) -> StoreData | None:
        """The store's elements; None while a run that creates it has not finished."""
        try:
            data = StoreData(self.store)
            return data if min(data.n_obs, data.n_vars) > 0 else None
        except (InputError, KeyError, FileNotFoundError):
            return None

    @cached_property
    def written(self) -> dict[str, Any]:
        """Entry of ``uns`` that the run wrote."""
        key = self.parameters.get("key_added") or self.program
        key = {"X_pca": "pca"}.get(key, key)
        if self.data is None or not self.finished or not self.data.store.has(f"uns/{key}"):
            return {}
        value = self.data.store.uns(key)
        return dict(value) if isinstance(value, dict) else {}

    @property
    def notes(self) -> list[str]:
        """What the run found worth knowing in the data."""
        notes = self.written.get("notes")
        return [] if notes is None else [str(note) for note in np.atleast_1d(notes)]

    @property
    def objective(self) -> np.ndarray | None:
        """Objective after each round of a loop, where the method recorded it."""
        values = self.written.get("objective")
        if values is None:
            return None
        values = np.asarray(values)
        return values if values.ndim == 1 and values.dtype.kind in "fiu" and len(values) else None

    @property
    def layers(self) -> tuple[str | None, ...]:
        """Layers to compare: counts before and after, where the program corrects counts."""
        before = self.parameters.get("layer")
        if self.program == "crescendo":
            return (before, self.parameters["key_added"])
        return (before,)

    def batch_key(self, given: str | None) -> str | None:
        """Column of the batches: the given one, else the run's."""
        found = given or self.parameters.get("batch_key")
        return found[0] if isinstance(found, list) else found

    def label_key(self, given: str | None) -> str | None:
        """Column of the cell types: the given one, else the labels that the run worked with."""
        clusters = self.parameters.get("clusters")
        if given or self.data is None or clusters not in self.data.obs_keys():
            return given
        return clusters
