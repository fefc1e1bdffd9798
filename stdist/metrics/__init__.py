"""Measures of a correction."""

from stdist.metrics.bvr_cvr import bvr_cvr

__all__ = ["bvr_cvr"]
