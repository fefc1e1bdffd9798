"""Preprocessing: functions that add quality metrics, layers and embeddings."""

from importlib import import_module
from typing import Any

_MODULES = {
    "calculate_qc_metrics": "stdist.preprocess.qc",
    "filter": "stdist.io.filter",
    "harmony": "stdist.preprocess.harmony",
    "log1p": "stdist.preprocess.normalize",
    "normalize_total": "stdist.preprocess.normalize",
    "pca": "stdist.preprocess.pca",
    "scale": "stdist.preprocess.scale",
}

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    """Import a function when it is first used: what one does not need takes memory."""
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    message = f"module 'stdist.pp' has no attribute {name!r}"
    raise AttributeError(message)


def __dir__() -> list[str]:
    return __all__
