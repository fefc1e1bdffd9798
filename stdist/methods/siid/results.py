"""What SIID leaves beside the rows of cells: profiles, platform factors, proportions of spots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from stdist.methods.siid.held_out import held_out_table
from stdist.methods.siid.spec import SiidSpec
from stdist.methods.siid.verdicts import check_note, held_out_notes, unscored_note

CHECK = "check"
"""Scope of a fit whose held-out genes tell how well another imputes."""


def fit_results(
    values: Any,
    spec: SiidSpec,
    notes: list[str],
    genes: np.ndarray,
    n_panel: int,
    solutions: tuple[str, ...],
    answered: list[str],
    checked: Sequence[str] = (),
    checking: SiidSpec | None = None,
) -> dict[str, Any]:
    """Parameters, factors (xarray, because dimensions have names), scores and notes."""
    import xarray as xr

    fits = [values[name] for name in solutions]
    coordinates: dict[str, Any] = {
        "gene": np.asarray(genes, dtype=str),
        "in_panel": ("gene", np.arange(len(genes)) < n_panel),
    }
    variables: dict[str, Any] = {
        "profile": (("solution", "factor", "gene"), np.stack([fit["Q"] for fit in fits])),
        "platform": (("solution", "gene"), np.stack([fit["phi"] for fit in fits])),
        "loss": (("solution", "pass", "slide"), np.stack([fit["losses"] for fit in fits])),
    }
    coordinates["slide"] = np.array(["cells", "spots"])
    found: dict[str, Any] = {"params": _params(spec)}
    if answered:
        found["held_out"] = held_out_table(values["held_out"], answered, len(solutions))
        notes = [*notes, *held_out_notes(found["held_out"])]
    elif checking is not None:
        table = held_out_table(values[f"{CHECK}.held_out"], checked, checking.n_solutions)
        notes = [*notes, *held_out_notes(table), check_note(checking, spec.n_factors, n_panel)]
        found["check"] = table
    else:
        notes = [*notes, unscored_note(spec.n_factors, n_panel)]
    found["notes"] = notes
    if spec.deconvolve:
        hard, spots = values["types_hard"], values["spot_loadings"]
        variables |= {
            "type_profile": (("type", "gene"), hard["Q"]),
            "type_platform": ("gene", hard["phi"]),
            "spot_proportion": (("spot", "type"), spots["soft"]),
            "spot_proportion_hard": (("spot", "type"), spots["hard"]),
            "spot_loading": (("spot", "type"), spots["loadings"]),
            "type_loss": (("type_pass", "slide"), hard["losses"]),
        }
    if "shape" in fits[0]:
        variables["profile_shape"] = ("solution",), np.array([fit["shape"] for fit in fits])
    if spec.spots_model == "negative_binomial":
        variables["dispersion"] = ("solution", "gene"), np.stack([f["dispersion"] for f in fits])
        if spec.deconvolve:
            variables["type_dispersion"] = "gene", values["types_hard"]["dispersion"]
    if spec.spot_scale == "tied":
        scale = values["tied_scales"]["scale"].T
        variables["spot_scale"] = (("solution", "spot"), scale[: len(solutions)])
        if spec.deconvolve:
            variables["type_spot_scale"] = ("spot", scale[-1])
    found["factors"] = xr.Dataset(variables, coords=coordinates)
    return {f"uns/{spec.key_added}": found}


def _params(spec: SiidSpec) -> dict[str, Any]:
    return {name: value for name, value in spec.to_parameters().items() if value is not None}
