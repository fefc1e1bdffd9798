"""Measures of a correction, and of what cells and their neighbours express."""

from stdist.kernels.imputation_scores import matched_js
from stdist.metrics.bvr_cvr import bvr_cvr
from stdist.metrics.cross_correlation import sci
from stdist.metrics.hvg import HvgConservation, hvg_conservation
from stdist.metrics.moran import morans_i
from stdist.metrics.pair_tests import ligand_receptor

__all__ = [
    "HvgConservation",
    "bvr_cvr",
    "hvg_conservation",
    "ligand_receptor",
    "matched_js",
    "morans_i",
    "sci",
]
