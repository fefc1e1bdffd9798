"""Plots: functions that return a `matplotlib.figure.Figure` (extra ``viz``)."""

from stdist.plots.convergence import convergence
from stdist.plots.cross_correlation import sci_before_after
from stdist.plots.groups import counts_by_batch
from stdist.plots.maps import gene_maps
from stdist.plots.siid import fit_losses, spot_proportions
from stdist.plots.siid_maps import imputed_maps
from stdist.plots.siid_scores import holdout_scores
from stdist.plots.stages import stage_timings
from stdist.plots.variance import variance_ratios

__all__ = [
    "convergence",
    "counts_by_batch",
    "fit_losses",
    "gene_maps",
    "holdout_scores",
    "imputed_maps",
    "sci_before_after",
    "spot_proportions",
    "stage_timings",
    "variance_ratios",
]
