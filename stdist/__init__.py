"""stdist: out-of-core, distributed spatial transcriptomics.

Namespaces, loaded when first used: ``pp`` (preprocess), ``tl`` (methods), ``io`` (open, convert),
``metrics``, ``pl`` (plots); functions ``connect`` (a Dask cluster), ``plan``, ``simulate`` and
``simulate_pair``.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_NAMESPACES = ("graph", "io", "metrics", "pl", "pp", "tl")
_FUNCTIONS = {
    "connect": "stdist.cluster",
    "plan": "stdist.methods.planning",
    "simulate": "stdist.methods.simulate",
    "simulate_pair": "stdist.methods.simulate_pair",
}

__all__ = [
    "connect",
    "graph",
    "io",
    "metrics",
    "pl",
    "plan",
    "pp",
    "simulate",
    "simulate_pair",
    "tl",
]


def __getattr__(name: str) -> Any:
    """Import a namespace or a function when it is first used: `import stdist` stays fast."""
    if name in _NAMESPACES:
        return import_module(f"stdist.{name}")
    if name in _FUNCTIONS:
        return getattr(import_module(_FUNCTIONS[name]), name)
    message = f"module 'stdist' has no attribute {name!r}"
    raise AttributeError(message)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
