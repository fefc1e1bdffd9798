"""Preprocessing: functions that add quality metrics, layers and embeddings."""

from stdist.io.filter import filter
from stdist.preprocess.harmony import harmony
from stdist.preprocess.normalize import log1p, normalize_total
from stdist.preprocess.pca import pca
from stdist.preprocess.qc import calculate_qc_metrics
from stdist.preprocess.scale import scale

__all__ = ["calculate_qc_metrics", "filter", "harmony", "log1p", "normalize_total", "pca", "scale"]
