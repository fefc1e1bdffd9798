"""Compare every byte of a store with its manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stdist.store import manifest
from stdist.store.errors import CorruptionError
from stdist.store.manifest import Manifest
from stdist.store.store import Store


@dataclass(frozen=True)
class Damage:
    """One file that is not what the manifest says."""

    path: str
    kind: str
    detail: str
    stage: str = ""
    shard: tuple[int, ...] | None = None


def verify(store: Path | str) -> tuple[list[Damage], list[str], int]:
    """Check presence, size and hash of every recorded file.

    Returns
    -------
    damage
        Files that are missing, truncated, swapped or altered.
    unrecorded
        Files that stdist did not write (elements added with anndata or scanpy).
    n_files
        Number of files checked.

    Raises
    ------
    InputError
        If `store` is no stdist store.
    CorruptionError
        If the manifest itself is damaged or gone.

    Examples
    --------
    >>> verify("cohort.zarr")  # doctest: +SKIP
    ([], [], 42)
    """
    root = Path(store)
    records = manifest.load(root)
    if not records:
        Store(root)  # says whether this is no store, or a store that lost its manifest
    owners = {record.digest: record for record in records.values()}
    damage = [d for record in records.values() if (d := _check(root, record, owners)) is not None]
    unrecorded = [name for name in manifest.store_files(root) if name not in records]
    return damage, unrecorded, len(records)


def _check(root: Path, record: manifest.Record, owners: dict) -> Damage | None:
    def damaged(kind: str, detail: str) -> Damage:
        return Damage(record.path, kind, detail, record.stage, record.shard)

    path = root / record.path
    if not path.is_file():
        return damaged("missing", "the file is gone; zarr would read zeros or NaN")
    data = path.read_bytes()
    if manifest.digest_bytes(data) == record.digest:
        return None
    owner = owners.get(manifest.digest_bytes(data))
    if owner is not None:
        return damaged("swapped", f"it holds the content of {owner.path}")
    if len(data) < record.nbytes:
        return damaged("truncated", f"{len(data)} of {record.nbytes} bytes are left")
    return damaged("altered", "its bytes differ from those written (bit rot, or another run's)")


def record(store: Path | str) -> int:
    """Accept the present content of a store as right and return the number of files recorded.

    For stores changed on purpose with anndata or scanpy. Records of unchanged files keep the
    stage that wrote them.
    """
    root = Path(store)
    try:
        known = manifest.load(root)
    except CorruptionError:
        known = Manifest()
    complete = Manifest()
    for name in manifest.store_files(root):
        now = manifest.record_file(root, root / name)
        old = known.get(name)
        complete.add([old if old is not None and old.digest == now.digest else now])
    complete.save(root)
    return len(complete)
