"""What Crescendo leaves beside the corrected counts: coefficients, status of genes, notes."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd

from stdist.methods.crescendo.fit import unaffected
from stdist.methods.crescendo.impute import without_donors
from stdist.methods.crescendo.marginal import absent_genes, counted_cells, gene_counts
from stdist.methods.crescendo.spec import CrescendoSpec
from stdist.store import StdistWarning


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
    fit, effects = values["fit"], values.get("effects")
    absent = absent_genes(values, genes)
    of_genes = _status(fit, effects, absent.any(axis=0), genes, spec)
    if effects is not None:
        fit = {**fit, "p_value": effects["p_value"][genes], "scatter": effects["dispersion"][genes]}
    if spec.impute_missing:
        failed = without_donors(absent, values["donors"]["batch"])
        of_genes[absent.any(axis=0)] = "imputed in a batch"
        of_genes[failed] = "absent in a batch, not imputed"
        fit = {**fit, "imputed": absent & ~failed}
    status = np.full(len(names), "not requested", dtype=object)
    status[genes] = of_genes
    status[gene_counts(values).sum(axis=0) == 0] = "no counts"
    notes = _notes_of_cells(values, batches) + _notes_of_genes(status, names)
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
    effects: dict[str, Any] | None,
    absent: np.ndarray,
    genes: np.ndarray,
    spec: CrescendoSpec,
) -> np.ndarray:
    """What happened to each requested gene; what is named last here has the last word."""
    status = np.full(len(genes), "corrected", dtype=object)
    alike = unaffected(effects, genes, spec)
    if effects is not None:
        untestable = effects["p_value"][genes] == 1.0
        status[alike] = np.where(untestable, "not testable", "no batch effect")[alike]
    status[absent] = np.where(fit["corrected"], "absent in a batch", "absent in a batch, kept")[
        absent
    ]
    status[~fit["converged"]] = "not converged"
    status[fit["unsupported"]] = "rate unsupported, kept"
    return status


def _notes_of_cells(values: Any, batches: list[str]) -> list[str]:
    total = values["strata"] if "strata" in values else values["groups"]
    cells = counted_cells(values)
    counted = cells.sum(axis=1) > 0
    shared = (cells > 0).sum(axis=0) > 1
    alone = counted & ~(cells[:, shared] > 0).any(axis=1)

    def those(found: np.ndarray) -> str:
        return ", ".join(np.asarray(batches)[found])

    notes = []
    if not counted.all():
        notes.append(f"[batch-empty] no cell in batch {those(~counted)} has counts")
    if alone.any() and counted.sum() > 1:
        notes.append(
            f"[batches-confounded] no cluster of batch {those(alone)} is in another batch: its "
            "effect cannot be told from that of its clusters"
        )
    if total.get("chained", False):
        notes.append(
            "[clusters-chained] clusters are linked by chains of correlated pairs, of which not "
            "all were merged: a lower merge_threshold, or fewer clusters, would be clearer"
        )
    if int(total["empty_cells"]):
        notes.append(f"[cells-empty] {int(total['empty_cells'])} cells without counts stay so")
    return notes


def _notes_of_genes(status: np.ndarray, names: np.ndarray) -> list[str]:
    notes = []
    for text, code in (
        ("no counts", "genes-empty"),
        ("not testable", "genes-untestable"),
        ("absent in a batch", "genes-absent"),
        ("absent in a batch, kept", "genes-absent"),
        ("imputed in a batch", "genes-imputed"),
        ("absent in a batch, not imputed", "genes-not-imputed"),
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
