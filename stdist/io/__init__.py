"""Read and write: `convert` files, `write` an AnnData object, `open` a store lazily."""

from stdist.io.convert import convert, convert_program, notes, write
from stdist.io.filter import filter
from stdist.store.lazy import open, store_of

__all__ = ["convert", "convert_program", "filter", "notes", "open", "store_of", "write"]
