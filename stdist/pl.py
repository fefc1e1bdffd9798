"""Plots: functions that return a `matplotlib.figure.Figure` (extra ``viz``)."""

from stdist.plots.convergence import convergence
from stdist.plots.cross_correlation import sci_before_after
from stdist.plots.groups import counts_by_batch
from stdist.plots.maps import gene_maps
from stdist.plots.stages import stage_timings
from stdist.plots.variance import variance_ratios

__all__ = [
    "convergence",
    "counts_by_batch",
    "gene_maps",
    "sci_before_after",
    "stage_timings",
    "variance_ratios",
]
