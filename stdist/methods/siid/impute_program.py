"""Imputation as a program: profiles of the wanted genes, then means (and errors) of each cell."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from stdist.graph import Each, Map, Program, Reduce
from stdist.methods.data import Data
from stdist.methods.siid.impute_model import (
    FittedFactors,
    WantedGenes,
    fitted_factors,
    wanted_genes,
)
from stdist.methods.siid.impute_spots import TOLERANCE, spot_stages
from stdist.preprocess.bound import TileWorkspace, recorded
from stdist.store import InputError, Output

Arrays = dict[str, Any]
FLOAT = 8


def give_model(item: int, **arrays: np.ndarray) -> Arrays:
    """Return the factors as a value, which travels to each worker once."""
    return arrays


def sum_loadings(rows: tuple[int, int], *, loadings: np.ndarray) -> Arrays:
    """Loadings of the cells of a tile, summed."""
    return {"cells": loadings.astype(np.float64).sum(axis=0)}


def gene_table(
    item: int,
    *,
    model: Arrays,
    column: np.ndarray,
    outside: Arrays | None = None,
    spots: Arrays | None = None,
    mass: Arrays | None = None,
) -> Arrays:
    """Profiles of the wanted genes side by side, and the variances that they bring in.

    ``profile`` ``(n_solutions, n_factors, n_genes)``; with the masses also ``of_profile``, the
    variance per squared loading, and ``of_loading``, that per loading.
    """
    known = column >= 0
    n_solutions, n_factors, _ = model["profile"].shape
    profile = np.zeros((n_solutions, n_factors, len(column)))
    profile[:, :, known] = model["profile"][:, :, column[known]]
    if outside is not None:
        profile[:, :, ~known] = outside["profile"]
    if spots is None or mass is None:
        return {"profile": profile}
    platform = np.ones((n_solutions, len(column)))
    platform[:, known] = model["platform"][:, column[known]]
    in_panel = np.where(known, model["in_panel"][column], False)
    in_cells = n_solutions * mass["cells"].reshape(n_solutions, n_factors, 1) * in_panel
    in_spots = spots["loadings"].sum(axis=0)[:, :, None] * platform[:, None]
    seen = model["profile"][:, :, model["in_panel"]].sum(axis=2)[:, :, None]
    return {
        "profile": profile,
        "of_profile": _over(profile, in_cells + in_spots),
        "of_loading": _over(profile**2, seen),
    }


def _over(values: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Values over masses, 0 where a factor has none: then no cell has it either."""
    by = np.broadcast_to(by, values.shape)
    return np.divide(values, by, out=np.zeros_like(values), where=by > 0)


def impute_tile(rows: tuple[int, int], *, loadings: np.ndarray, table: Arrays) -> Arrays:
    """Imputed means of a tile, and their standard errors where the table has variances."""
    n_solutions, n_factors, n_genes = table["profile"].shape
    own = loadings.astype(np.float64).reshape(len(loadings), n_solutions, n_factors)
    mean = own.reshape(len(own), -1) @ table["profile"].reshape(-1, n_genes)
    found = {"imputed": mean.astype(np.float32)}
    if "of_profile" not in table:
        return found
    within, between = np.zeros_like(mean), np.zeros_like(mean)
    for number in range(n_solutions):
        load = np.ascontiguousarray(n_solutions * own[:, number])
        within += load**2 @ table["of_profile"][number] + load @ table["of_loading"][number]
        between += (load @ table["profile"][number] - mean) ** 2
    variance = within / n_solutions + between / max(1, n_solutions - 1)
    return found | {"sd": np.sqrt(variance).astype(np.float32)}


def impute_program(
    data: Data,
    spots: Data | None,
    genes: str | Sequence[str] | None,
    key: str,
    key_added: str,
    *,
    confidence: bool,
) -> Program:
    """Bind the imputation to a fitted pair.

    Raises
    ------
    InputError
        If there are no factors, a gene is unknown, or spots are needed and not given.
    """
    if confidence and spots is None:
        raise InputError(
            "spots-needed",
            "standard errors need the counts of the spots",
            place="spots",
            remedy="pass spots=, the spots that the model was fitted with",
        )
    factors = fitted_factors(data, key)
    wanted = wanted_genes(factors, spots, genes)
    n_genes, width = len(wanted.names), factors.loadings.shape[1]
    stages = table_stages(factors, wanted, spots, confidence=confidence)
    copies = 5 if confidence else 2
    writes = {"imputed": Output(f"obsm/{key_added}", (n_genes,), "float32")}
    if confidence:
        writes["sd"] = Output(f"obsm/{key_added}_sd", (n_genes,), "float32")
    stages.append(
        Map(
            "impute",
            impute_tile,
            {"loadings": factors.loadings},
            ("table",),
            workspace=TileWorkspace(
                FLOAT * (copies * n_genes + 2 * width), FLOAT * copies * width * n_genes
            ),
            nanoseconds=copies * n_genes * width / 8,
            writes=writes,
        )
    )
    parameters = recorded(
        data,
        spots=None if spots is None else str(spots.path),
        genes=None if genes is None else wanted.names,
        key=key,
        key_added=key_added,
        confidence=confidence,
    )
    return Program(
        "siid_impute",
        tuple(stages),
        parameters,
        data.path,
        results=partial(_results, factors=factors, wanted=wanted, key=key, key_added=key_added),
        result_keys=(f"uns/{key_added}",),
    )


def table_stages(
    factors: FittedFactors, wanted: WantedGenes, spots: Data | None, *, confidence: bool
) -> list[Any]:
    """Stages up to `table`: the profiles of the wanted genes."""
    arrays = {
        "profile": factors.profile,
        "platform": factors.platform,
        "in_panel": factors.in_panel,
    }
    stages: list[Any] = [Each("model", give_model, options=arrays)]
    uses = ["model"]
    if spots is not None and (wanted.outside or confidence):
        stages += spot_stages(factors, wanted, spots)
        uses += [stage.name for stage in stages[1:]]
    if confidence:
        width = factors.loadings.shape[1]
        stages.append(
            Reduce(
                "mass",
                sum_loadings,
                {"loadings": factors.loadings},
                workspace=TileWorkspace(FLOAT * width),
                nanoseconds=float(width),
                partial_bytes=FLOAT * width,
            )
        )
        uses.append("mass")
    size = FLOAT * 6 * factors.loadings.shape[1] * len(wanted.names)
    options = {"column": wanted.column}
    table = TileWorkspace(0, size)
    stages.append(Each("table", gene_table, uses=tuple(uses), options=options, workspace=table))
    return stages


def _results(
    values: Any, factors: FittedFactors, wanted: WantedGenes, key: str, key_added: str
) -> dict[str, Any]:
    table = wanted.scales(factors)
    notes = []
    on_spots = int((table["scale"] == "spots").sum())
    if on_spots:
        first = table.index[table["scale"] == "spots"][0]
        notes.append(
            f"[scale-of-spots] {on_spots} of {len(table)} genes are on the scale of the spots, "
            f"first {first!r}: no cell was measured for them"
        )
    if "outside" in values:
        left = int((values["outside"]["gap"].max(axis=0) > TOLERANCE).sum())
        if left:
            notes.append(f"[genes-unsettled] {left} regressions ran out of rounds")
    notes += factors.scores
    found = {"params": {"key": key}, "genes": table, "notes": notes or None}
    return {f"uns/{key_added}": found}
