"""What Crescendo leaves beside the corrected counts: coefficients, status of genes, notes."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd

from stdist.methods.crescendo.impute import missing_genes
from stdist.methods.crescendo.marginal import absent_genes
from stdist.methods.crescendo.spec import CrescendoSpec


class StdistWarning(UserWarning):
    """Something in the data that stdist passed through and the user should know."""


def result_keys(spec: CrescendoSpec) -> tuple[str, ...]:
    """Keys of the results."""
    return f"uns/{spec.key_added}", f"var/{spec.key_added}_status"


def copy_results(values: Any, spec: CrescendoSpec, names: np.ndarray) -> dict[str, Any]:
    """Results of data with one batch."""
    uns, var = result_keys(spec)
    status = pd.Categorical(["one batch"] * len(names))
    return {
        uns: {"params": _params(spec), "notes": ["[one-batch] a copy"]},
        var: pd.Series(status, index=names),
    }


def correction_results(
    values: Any,
    spec: CrescendoSpec,
    names: np.ndarray,
    genes: np.ndarray,
    batches: list[str],
    clusters: list[str],
    kept: list[str],
) -> dict[str, Any]:
    """Coefficients, parameters, the status of every gene, and what the user should know.

    Parameters
    ----------
    values
        Values of the program's stages.
    spec
    names : (n_vars,) array
        Names of all genes.
    genes : (n_genes,) array
        Columns that were to be corrected.
    batches, clusters, kept
        Names of the coefficients.
    """
    fit = values["fit"]
    if "strata" in values:
        total = values["strata"]
        counts, mass = total["counts"].sum(axis=1), total["cells"]
    else:
        total = values["groups"]
        counts, mass = total["gene_counts"], total["mass"]
    status = _status(fit, counts, mass, genes, spec)
    effects = values.get("effects")
    if effects is not None:
        fit = {**fit, "p_value": effects["p_value"][genes], "scatter": effects["dispersion"][genes]}
        if spec.skip_unaffected:
            left = genes[~effects["affected"][genes]]
            status[left[status[left] == "corrected"]] = "no batch effect"
    if spec.impute_missing:
        sums = {name: values[name] for name in ("strata", "groups") if name in values}
        missing = missing_genes(genes, **sums)
        status[genes[missing.any(axis=0)]] = "imputed in a batch"
        fit = {**fit, "imputed": missing}
    notes = _notes(status, mass, int(total["empty_cells"]), names, batches)
    for note in notes:
        warnings.warn(note, StdistWarning, stacklevel=2)
    uns, var = result_keys(spec)
    found: dict[str, Any] = {
        "params": _params(spec),
        "notes": notes or None,
        "coefficients": _coefficients(fit, names[genes], batches, clusters, kept),
    }
    if "target" in values:
        found["target_depth"] = float(values["target"]["target"])
    return {uns: found, var: pd.Series(pd.Categorical(status), index=names)}


def _params(spec: CrescendoSpec) -> dict[str, Any]:
    return {name: value for name, value in spec.to_parameters().items() if value is not None}


def _status(
    fit: dict[str, Any],
    counts: np.ndarray,
    mass: np.ndarray,
    genes: np.ndarray,
    spec: CrescendoSpec,
) -> np.ndarray:
    status = np.full(counts.shape[1], "not requested", dtype=object)
    status[genes] = np.where(fit["converged"], "corrected", "not converged")
    skipped = "absent in a batch, kept" if spec.skip_absent else "absent in a batch"
    status[absent_genes(counts, mass) & (status == "corrected")] = skipped
    status[genes[fit["unsupported"]]] = "rate unsupported, kept"
    status[counts.sum(axis=0) == 0] = "no counts"
    return status


def _notes(
    status: np.ndarray, mass: np.ndarray, empty_cells: int, names: np.ndarray, batches: list[str]
) -> list[str]:
    notes = []
    empty = [name for name, n in zip(batches, mass.sum(axis=1), strict=True) if n == 0]
    if empty:
        notes.append(f"[batch-empty] no cell in batch {', '.join(empty)}")
    if empty_cells:
        notes.append(f"[cells-empty] {empty_cells} cells without counts stay so")
    for text, code in (
        ("no counts", "genes-empty"),
        ("absent in a batch", "genes-absent"),
        ("absent in a batch, kept", "genes-absent"),
        ("imputed in a batch", "genes-imputed"),
        ("rate unsupported, kept", "genes-unsupported"),
        ("not converged", "genes-not-converged"),
    ):
        found = names[status == text]
        if len(found):
            notes.append(f"[{code}] {len(found)} genes, first {found[0]!r}: {text}")
    return notes


def _coefficients(
    fit: dict[str, Any], genes: np.ndarray, batches: list[str], clusters: list[str], kept: list[str]
) -> Any:
    import xarray as xr

    n, last = len(clusters), len(clusters) + len(kept)
    variables: dict[str, Any] = {
        "converged": ("gene", fit["converged"]),
        "intercept": ("gene", fit["intercept"]),
        "cluster_effect": (("cluster", "gene"), fit["cluster"][:n]),
        "batch_effect": (("batch", "gene"), fit["batch"]),
        "interaction": (("batch", "cluster", "gene"), fit["interaction"][:, :n]),
        "target_coefficients": (("cluster", "gene"), fit["target_coefficients"][:n]),
    }
    coordinates = {
        "gene": np.asarray(genes, dtype=str),
        "batch": np.asarray(batches, dtype=str),
        "cluster": np.asarray(clusters, dtype=str),
    }
    for name in ("lam", "dispersion", "p_value", "scatter"):
        if name in fit:
            variables[name] = ("gene", fit[name])
    if "imputed" in fit:
        variables["imputed"] = (("batch", "gene"), fit["imputed"])
    if kept:
        coordinates["kept"] = np.asarray(kept, dtype=str)
        variables["kept_effect"] = (("kept", "gene"), fit["cluster"][n:last])
    if len(fit["cluster"]) > last:
        both = fit["cluster"][last:].reshape(len(kept), n, -1)
        variables["kept_interaction"] = (("kept", "cluster", "gene"), both)
    return xr.Dataset(variables, coords=coordinates)
