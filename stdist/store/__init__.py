"""The store: AnnData's zarr layout, written by whole shards and recorded in a manifest."""

from stdist.store.elements import (
    ArrayElement,
    CodesElement,
    CsrElement,
    MemorySource,
    Source,
    open_element,
)
from stdist.store.errors import (
    CorruptionError,
    InputError,
    PlanRefused,
    RunStopped,
    StdistError,
    StdistWarning,
)
from stdist.store.layout import TILE_ROWS, floor_block_length
from stdist.store.staging import Output, Staging
from stdist.store.store import Store

__all__ = [
    "TILE_ROWS",
    "ArrayElement",
    "CodesElement",
    "CorruptionError",
    "CsrElement",
    "InputError",
    "MemorySource",
    "Output",
    "PlanRefused",
    "RunStopped",
    "Source",
    "Staging",
    "StdistError",
    "StdistWarning",
    "Store",
    "floor_block_length",
    "open_element",
]
