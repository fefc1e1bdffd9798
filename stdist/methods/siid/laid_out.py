"""A pair in tiles of spots with all their cells: the stages that lay it out."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from stdist.graph import Each, Rearrange, Reduce, State
from stdist.methods.siid.pair import Pair
from stdist.methods.siid.places import (
    lay_out,
    place_cells,
    place_spots,
    refuse_empty,
    total_counts,
)
from stdist.preprocess.bound import TileWorkspace

FLOAT = 8


class LaidOut:
    """What every fit of a pair begins with."""

    def __init__(self, pair: Pair) -> None:
        self.pair, self.spec = pair, pair.spec
        self.n_genes, self.n_factors = len(pair.genes), self.spec.n_factors
        self.places = pair.layout.n_rows
        self.cell_entries = pair.row_entries["cells"] * pair.n_panel / pair.cells.n_vars
        self.spot_entries = pair.row_entries["spots"] * self.n_genes / pair.spots.n_vars

    def states(self) -> dict[str, State]:
        """Rows that stay with the blocks, and the spot that goes back to the cells."""
        spot_share = self.spot_entries * self.pair.spots.n_obs / max(1, self.places)
        return {
            "cells": State((self.pair.n_panel,), "float32", entries=self.cell_entries),
            "spots": State((self.n_genes,), "float32", entries=spot_share),
            "origin": State((), "int64"),
            "spot": State((), "int16"),
            "spot_number": State((), "int32"),
            "spot_origin": State((), "int64"),
            "spot_back": State((), "int32"),
        }

    def lay_out(self) -> list[Any]:
        """Return all of the stages."""
        number = np.arange(self.pair.spots.n_obs)
        return [self.layout(number), self.place_cells(), self.place_spots(), self.total_counts()]

    def layout(self, number: np.ndarray) -> Each:
        """Where cells and spots go; `number` is the spot at whose place each spot's counts are."""
        layout = self.pair.layout
        tables = {
            "points": self.pair.places,
            "place": layout.place,
            "first_row": layout.first_row,
            "spot_row": layout.spot_row,
            "spot_number": number,
        }
        return Each("layout", lay_out, options=tables)

    def place_cells(self) -> Rearrange:
        """Send cells to the places of their spots."""
        pair = self.pair
        return Rearrange(
            "place_cells",
            place_cells,
            {"counts": pair.counts, "spatial": pair.spatial},
            ("layout",),
            {"columns": pair.panel_columns, "max_distance": float(self.spec.max_distance)},
            workspace=TileWorkspace(64 + int(24 * self.cell_entries)),
            nanoseconds=2000.0,
            updates=("cells", "origin", "spot", "spot_number"),
            places=self.places,
        )

    def place_spots(self) -> Rearrange:
        """Send the counts of spots to their places."""
        return Rearrange(
            "place_spots",
            place_spots,
            {"counts": self.pair.spot_counts},
            ("layout",),
            {"columns": self.pair.spot_columns},
            workspace=TileWorkspace(64 + int(24 * self.spot_entries)),
            nanoseconds=2000.0,
            updates=("spots", "spot_origin"),
            places=self.places,
        )

    def total_counts(self) -> Reduce:
        """Refuse slides without a count to fit, before any fit."""
        errors = {slide: self.pair.without_counts(slide) for slide in ("cells", "spots")}
        return Reduce(
            "total_counts",
            total_counts,
            options={"n_panel": self.pair.n_panel},
            finalize=partial(refuse_empty, errors=errors),
            workspace=TileWorkspace(int(12 * self.spot_entries)),
            partial_bytes=2 * FLOAT,
            nanoseconds=self.cell_entries,
            rows=self.places,
            recalls=("cells", "spots"),
        )
