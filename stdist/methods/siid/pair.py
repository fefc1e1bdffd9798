"""The two slides of a pair: which genes, which spot above which cell, and where both are kept."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from scipy import sparse

from stdist.kernels.spot_layout import SpotLayout, crowded_spots, spot_layout
from stdist.kernels.spot_map import nearest_spots, transformed
from stdist.methods.checks import check_counts
from stdist.methods.data import UNIQUE_BAND, Data
from stdist.methods.siid.frames import describe_frames, likely_cause, spacing
from stdist.methods.siid.pair_spec import PairSpec
from stdist.store import TILE_ROWS, InputError, Source
from stdist.store.elements import row_entries

MOST_UNMAPPED, MANY_UNMAPPED = 0.5, 0.05
"""Shares of cells without a spot that are refused, and that are warned of."""


class Pair:
    """Cells and spots, checked.

    Raises
    ------
    InputError
        If the slides share no gene, the panel is empty or smaller than the number of factors,
        coordinates are wrong or in different frames, what the first rows hold is no counts, or a
        sparse slide is empty.
    """

    def __init__(self, cells: Data, spots: Data, spec: PairSpec) -> None:
        self.cells, self.spots, self.spec = cells, spots, spec
        self.counts = cells.matrix(spec.layer)
        self.spot_counts = spots.matrix(spec.spots_layer)
        self.spatial = _coordinates(cells, spec.spatial_key)
        self._match_genes()
        self._check_factors()
        for slide, counts in (("cells", self.counts), ("spots", self.spot_counts)):
            first = 0, min(TILE_ROWS, counts.shape[0])  # all others are checked when they are read
            check_slide(counts.read(*first), first, slide)
        for slide, entries in self.row_entries.items():
            if not entries:
                raise self.without_counts(slide)
        places = _coordinates(spots, spec.spots_spatial_key).read(0, spots.n_obs)
        self.places = _finite(places, spec.spots_spatial_key, spots.place, 0)
        if spec.matrix is not None:
            self.places = transformed(self.places, spec.matrix)
        self._map()

    def _match_genes(self) -> None:
        """Genes of the model: the panel in the order of the cells, then what is held out."""
        mine = [str(name) for name in self.cells.var_names]
        theirs = {str(name): number for number, name in enumerate(self.spots.var_names)}
        shared = [name for name in mine if name in theirs]
        held = self.spec.held
        unknown = [name for name in held if name not in theirs]
        if unknown:
            raise InputError(
                "gene-absent",
                f"{len(unknown)} genes to hold out are not in the spots, first {unknown[0]!r}",
                place=self.spots.place,
                remedy="name genes of the spots",
            )
        panel = [name for name in shared if name not in set(held)]
        if not panel:
            raise InputError(
                "genes-not-shared",
                "cells and spots share no gene" if not shared else "all shared genes are held out",
                place=f"{self.cells.place} ({', '.join(mine[:3])}, ...) and {self.spots.place} "
                f"({', '.join(list(theirs)[:3])}, ...)",
                remedy="name the genes of both slides alike: symbols or identifiers",
            )
        number = {name: column for column, name in enumerate(mine)}
        self.genes = np.array([*panel, *held], dtype=object)
        self.n_panel = len(panel)
        self.panel_columns = np.array([number[name] for name in panel])
        self.spot_columns = np.array([theirs[name] for name in self.genes])
        self.only_in_cells = [name for name in mine if name not in theirs]

    def _check_factors(self) -> None:
        """Refuse more factors than either slide can tell apart."""
        limits = {
            "spots": self.spots.n_obs,
            "cells": self.cells.n_obs,
            "genes in the panel": self.n_panel,
        }
        kind = min(limits, key=lambda name: limits[name])
        if self.spec.n_factors > limits[kind]:
            raise InputError(
                "factors-too-many",
                f"n_factors is {self.spec.n_factors}, and there are {limits[kind]} {kind}",
                place=self.spots.place if kind == "spots" else self.cells.place,
                remedy=f"give at most {limits[kind]}, and better far fewer",
            )

    def _map(self) -> None:
        """Count the cells of each spot, in one pass over the coordinates."""
        n_cells, n_spots = self.cells.n_obs, self.spots.n_obs
        self.nearest_cells = np.zeros(n_spots, np.int64)
        self.mapped_cells = np.zeros(n_spots, np.int64)
        low, high = np.full(2, np.inf), np.full(2, -np.inf)
        for start in range(0, n_cells, UNIQUE_BAND):
            points = self.cell_places((start, min(n_cells, start + UNIQUE_BAND)))
            low, high = np.minimum(low, points.min(axis=0)), np.maximum(high, points.max(axis=0))
            found = nearest_spots(points, self.places, self.spec.max_distance)
            self.nearest_cells += np.bincount(found.nearest, minlength=n_spots)
            self.mapped_cells += np.bincount(found.spot[found.spot >= 0], minlength=n_spots)
        self.unmapped = n_cells - int(self.mapped_cells.sum())
        self.corners = np.array([low, high])
        if self.unmapped > MOST_UNMAPPED * n_cells:
            some = self.cell_places((0, min(n_cells, UNIQUE_BAND)))
            raise InputError(
                "cells-unmapped",
                f"{self.unmapped} of {n_cells} cells are more than {self.spec.max_distance:g} um "
                f"from any spot: {describe_frames(self.corners, self.places)}",
                place=f"obsm {self.spec.spatial_key!r} of {self.cells.place} and "
                f"{self.spec.spots_spatial_key!r} of {self.spots.place}",
                remedy="bring both slides into one frame (transform) and one unit (um); "
                + likely_cause(some, self.corners, self.places, self.spec.max_distance),
            )
        extent = float(np.ptp(self.corners, axis=0).max())
        if n_spots > 1 and 0 < extent < spacing(self.places):
            raise InputError(
                "cells-crowded",
                f"all cells lie within {extent:.4g} um, less than between two spots: "
                f"{describe_frames(self.corners, self.places)}",
                place=f"obsm {self.spec.spatial_key!r} of {self.cells.place} and "
                f"{self.spec.spots_spatial_key!r} of {self.spots.place}",
                remedy="bring both slides into one unit (um); the cells may be in units of about "
                f"{np.ptp(self.places, axis=0).max() / extent:.3g} um",
            )
        crowded = crowded_spots(self.nearest_cells)
        if len(crowded):
            raise InputError(
                "spot-crowded",
                f"{len(crowded)} spots have more than 1024 cells nearest to them, the first "
                f"{self.nearest_cells[crowded[0]]}",
                place=f"spot {crowded[0]} of {self.spots.place}",
                remedy="use smaller spots, or filter out cells far from every spot",
            )

    def like(self, **changes: Any) -> Pair:
        """Return the pair with other parameters of the fit, or other genes held out."""
        other = copy(self)
        other.spec = replace(self.spec, **changes)
        other._match_genes()
        other._check_factors()
        return other

    @cached_property
    def row_entries(self) -> dict[str, int]:
        """Bounds on the stored counts of a row of the cells and of the spots."""
        return {"cells": row_entries(self.counts), "spots": row_entries(self.spot_counts)}

    def without_counts(self, slide: str) -> InputError:
        """Error of a slide, cells or spots, that has no counts to fit."""
        data, layer = (
            (self.cells, self.spec.layer)
            if slide == "cells"
            else (self.spots, self.spec.spots_layer)
        )
        return InputError(
            "counts-none",
            f"the {slide} have no count of the {self.n_panel} genes that are shared and not held "
            "out",
            place=f"{'X' if layer is None else f'layer {layer!r}'} of {data.place}",
            remedy="name the layer with raw counts (layer, spots_layer), or give other slides",
        )

    def cell_places(self, rows: tuple[int, int]) -> np.ndarray:
        """Coordinates of some cells, float64."""
        return _finite(self.spatial.read(*rows), self.spec.spatial_key, self.cells.place, rows[0])

    def first_counts(self) -> np.ndarray:
        """Counts of the panel's genes in the first cells and in the first spots, ``(2, n_panel)``.

        Float64.
        """
        found = []
        for slide, counts, columns in (
            ("cells", self.counts, self.panel_columns),
            ("spots", self.spot_counts, self.spot_columns[: self.n_panel]),
        ):
            first = 0, min(TILE_ROWS, counts.shape[0])
            own = read_counts(counts.read(*first), first, columns, slide)
            found.append(np.asarray(own.sum(axis=0), np.float64).ravel())
        return np.array(found)

    @cached_property
    def layout(self) -> SpotLayout:
        """Where cells and spots are kept while the model is fitted."""
        return spot_layout(self.nearest_cells, self.places)

    @cached_property
    def notes(self) -> list[str]:
        """What the user should know before the fit."""
        notes = []
        empty = int((self.mapped_cells == 0).sum())
        if self.unmapped > MANY_UNMAPPED * self.cells.n_obs:
            notes.append(
                f"[cells-unmapped] {self.unmapped} of {self.cells.n_obs} cells "
                f"({self.unmapped / self.cells.n_obs:.1%}) have no spot within "
                f"{self.spec.max_distance:g} um: {describe_frames(self.corners, self.places)}"
            )
        if empty:
            notes.append(
                f"[spots-empty] {empty} of {self.spots.n_obs} spots "
                f"({empty / self.spots.n_obs:.1%}) have no cell and no proportions"
            )
        if self.only_in_cells:
            notes.append(
                f"[genes-not-in-spots] {len(self.only_in_cells)} genes of the cells take no part, "
                f"first {self.only_in_cells[0]!r}"
            )
        return notes


def check_slide(counts: Any, rows: tuple[int, int], slide: str) -> None:
    """Check the counts of some rows of the cells or of the spots.

    Raises
    ------
    InputError
        If a count is negative, fractional or not finite.
    """
    try:
        check_counts(counts, rows)
    except InputError as error:
        place = f"{error.place} of the {slide}"
        raise InputError(error.code, error.thing, place=place, remedy=error.remedy) from None


def read_counts(counts: Any, rows: tuple[int, int], columns: np.ndarray, slide: str) -> Any:
    """Some columns of counts as CSR float32 rows; errors name the `slide`: cells or spots.

    Raises
    ------
    InputError
        As `check_slide`.
    """
    check_slide(counts, rows, slide)
    chosen = sparse.csr_matrix(counts[:, columns], dtype=np.float32)
    chosen.sum_duplicates()
    chosen.eliminate_zeros()
    return chosen


def _coordinates(data: Data, key: str) -> Source:
    found = data.embedding(key)
    if len(found.shape) != 2 or found.shape[1] != 2:
        raise InputError(
            "spatial-shape",
            f"coordinates have shape {found.shape}, not (n, 2)",
            place=f"obsm {key!r} of {data.place}",
            remedy="give x and y",
        )
    return found


def _finite(points: np.ndarray, key: str, place: str, first: int) -> np.ndarray:
    values = np.asarray(points, np.float64)
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        raise InputError(
            "spatial-nonfinite",
            f"{len(bad)} or more places are not finite",
            place=f"obsm {key!r} of {place}, row {first + int(bad[0])}",
            remedy="filter these rows out",
        )
    return values
