"""The factors of a fit of SIID as one table with named dimensions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stdist.methods.data import AnnDataData, Data, open_data
from stdist.methods.siid.impute_model import fit_entry, fitted_factors

if TYPE_CHECKING:
    import xarray


def siid_factors(data: Any, *, key: str = "siid") -> xarray.Dataset:
    """Return P, n, m, Q and phi of a fit of `stdist.tl.siid`, by cell, solution, factor and gene.

    Parameters
    ----------
    data
        Cells: path of a store, a lazy AnnData of `stdist.io.open`, or an AnnData.
    key
        Its `key_added`.

    Returns
    -------
    xarray.Dataset
        ``P`` ``(cell, solution, factor)``, ``n`` and ``m`` ``(cell, solution)``, ``Q``
        ``(solution, factor, gene)`` and ``phi`` ``(solution, gene)``: cell i has n_i (P Q)_ig
        counts of a gene, its spot phi_g m_i (P Q)_ig from it. Rows of P and of Q sum up to 1.
        ``type_P`` ``(cell, type)``, ``type_n``, ``type_m``, ``type_Q`` and ``type_phi`` are those
        of the deconvolution, where there is one. ``m`` is 0 without a spot, and the sum over the
        spots where a cell has several. Cells are in the order of the data; of a store they are
        Dask arrays.

    Raises
    ------
    InputError
        If there is no such fit.

    Examples
    --------
    >>> found = siid_factors("xenium.zarr")  # doctest: +SKIP
    >>> found["P"].mean("solution").isel(cell=slice(10)).compute()  # doctest: +SKIP
    """
    import xarray as xr

    opened = open_data(data)
    factors, kept = fitted_factors(opened, key), fit_entry(opened, key)["factors"]
    n_solutions, n_factors, _ = factors.profile.shape
    loadings = _rows(opened, key).reshape(-1, n_solutions, n_factors)
    size = loadings.sum(axis=2)
    variables = {
        "P": (("cell", "solution", "factor"), loadings / size[:, :, None]),
        "n": (("cell", "solution"), n_solutions * size),
        "m": (("cell", "solution"), _rows(opened, f"{key}_spot_size")),
        "Q": (("solution", "factor", "gene"), factors.profile),
        "phi": (("solution", "gene"), factors.platform),
    }
    if "type_profile" in kept:
        sizes = _rows(opened, f"{key}_types_size")
        variables |= {
            "type_P": (("cell", "type"), _rows(opened, f"{key}_types")),
            "type_n": (("cell",), sizes[:, 0]),
            "type_m": (("cell",), sizes[:, 1]),
            "type_Q": (("type", "gene"), np.asarray(kept["type_profile"])),
            "type_phi": (("gene",), np.asarray(kept["type_platform"])),
        }
    coordinates = {"gene": np.asarray(factors.genes, str), "in_panel": ("gene", factors.in_panel)}
    return xr.Dataset(variables, coords=coordinates)


def _rows(data: Data, key: str) -> Any:
    """An entry of ``obsm``, of a store as a Dask array."""
    if isinstance(data, AnnDataData):
        return np.asarray(data.adata.obsm[key])
    from stdist.store.lazy import lazy_array

    return lazy_array(data.store.element(f"obsm/{key}"))
