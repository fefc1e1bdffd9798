"""The manifest: what every file of a store must contain, and which stage and shard wrote it.

One JSON line per file, under a header that carries the hash of all lines. A missing chunk of a
zarr array reads as zeros, so presence on disk proves nothing; the manifest does.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from stdist.store.errors import CorruptionError

RECORDS = ".stdist"
FORMAT = 1


@dataclass(frozen=True)
class Record:
    """One file: path inside the store, size in bytes, hash, and the stage and shard it holds."""

    path: str
    nbytes: int
    digest: str
    stage: str = ""
    shard: tuple[int, ...] | None = None


def digest_bytes(data: bytes) -> str:
    """Hash that binds a file's content (BLAKE2b, 128 bits)."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def record_file(
    root: Path, path: Path, *, stage: str = "", shard: tuple[int, ...] | None = None
) -> Record:
    """Hash one finished file of the store at `root`."""
    data = path.read_bytes()
    name = path.relative_to(root).as_posix()
    return Record(name, len(data), digest_bytes(data), stage, shard)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is either absent or complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    temporary.write_bytes(data)
    temporary.replace(path)


def temporary_path(path: Path) -> Path:
    """Where to write `path` before it is renamed into place."""
    # unique: a task given up as lost may still write while its repetition does
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")


def stamp(path: Path | str) -> tuple[int, ...]:
    """What changes when a file is written or replaced: the key of caches of its content."""
    stat = os.stat(path)  # noqa: PTH116 - called for every block read
    return stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_size


def store_files(root: Path) -> list[str]:
    """Every file of the store except stdist's own records and abandoned temporary files."""
    found = []
    for folder, folders, files in os.walk(root):
        if Path(folder) == root:
            folders[:] = [name for name in folders if name != RECORDS]
        found += [
            (Path(folder) / name).relative_to(root).as_posix()
            for name in files
            if not name.endswith(".partial")
        ]
    return sorted(found)


class Manifest(dict[str, Record]):
    """Records by path.

    Examples
    --------
    >>> manifest = Manifest()
    >>> manifest.add([Record("X/c/0/0", 12, "ab")])
    >>> manifest["X/c/0/0"].nbytes
    12
    """

    def add(self, records: Iterable[Record]) -> None:
        """Add or replace records."""
        self.update({record.path: record for record in records})

    def remove_under(self, key: str) -> None:
        """Forget every file of the element `key`."""
        for path in [path for path in self if path == key or path.startswith(f"{key}/")]:
            del self[path]

    def under(self, key: str) -> list[Record]:
        """Return the records of the element `key`, in path order."""
        return [self[path] for path in sorted(self) if path == key or path.startswith(f"{key}/")]

    def save(self, root: Path) -> None:
        """Write the manifest of the store at `root`."""
        lines = [json.dumps(asdict(self[path]), sort_keys=True) for path in sorted(self)]
        body = "".join(line + "\n" for line in lines).encode()
        header = {"format": FORMAT, "files": len(self), "digest": digest_bytes(body)}
        write_atomically(
            root / RECORDS / "manifest.jsonl", json.dumps(header).encode() + b"\n" + body
        )


def load(root: Path | str) -> Manifest:
    """Read the manifest of the store at `root`; empty if the store has none.

    Raises
    ------
    CorruptionError
        If the manifest itself is damaged.
    """
    path = Path(root) / RECORDS / "manifest.jsonl"
    try:
        return _load(str(path), stamp(path))
    except FileNotFoundError:
        return Manifest()


@functools.lru_cache(maxsize=16)
def _load(path: str, stamp: tuple[int, ...]) -> Manifest:
    header_line, _, body = Path(path).read_bytes().partition(b"\n")
    try:
        header = json.loads(header_line)
        if header["digest"] != digest_bytes(body):
            raise ValueError
        manifest = Manifest()
        for line in body.splitlines():
            fields = json.loads(line)
            fields["shard"] = None if fields["shard"] is None else tuple(fields["shard"])
            manifest.add([Record(**fields)])
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptionError(
            "manifest-damaged",
            "the manifest does not match its own hash",
            place=path,
            remedy="restore the store from a copy, or accept its present content with "
            "`stdist verify --record STORE`",
        ) from error
    return manifest
