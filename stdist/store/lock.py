"""One writer per store: a lock file with owner, host and heartbeat."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from stdist.store.errors import InputError
from stdist.store.manifest import temporary_path

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 120.0
GUARD_SECONDS = 10.0


class StoreLock:
    """Exclusive right to write into a store, for the time of a ``with`` block.

    A lock whose process is gone (same host) or whose heartbeat is older than two minutes (other
    host) is taken over.

    Raises
    ------
    InputError
        On entry, if another live run holds the lock; the text names it.
    """

    def __init__(self, path: Path, owner: str) -> None:
        self.path, self.owner = path, owner
        self._released = threading.Event()

    @property
    def _guard(self) -> Path:
        return self.path.with_name(f"{self.path.name}.guard")

    def __enter__(self) -> StoreLock:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while not self._create():
            holder = self._holder()
            if holder is not None and holder_is_alive(holder):
                raise InputError(
                    "store-locked",
                    f"run {holder['owner']} is writing this store",
                    place=f"{self.path} (process {holder['pid']} on {holder['host']})",
                    remedy="wait for it, or stop it and use `stdist resume`",
                )
            self._remove_stale()
        for path in self.path.parent.glob(f"{self.path.name}.*.partial"):  # of those that died
            path.unlink(missing_ok=True)
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        holder = self._holder()
        if holder is not None and holder["pid"] == os.getpid() and holder["owner"] == self.owner:
            with suppress(OSError):
                self._guard.rmdir()  # of a process that died while it took over
            self.path.unlink(missing_ok=True)

    def _create(self) -> bool:
        process = psutil.Process()
        body = {
            "owner": self.owner,
            "host": socket.gethostname(),
            "pid": process.pid,
            "started": process.create_time(),
        }
        # link() publishes a complete file or fails: O_EXCL would show an empty one first
        temporary = temporary_path(self.path)
        temporary.write_text(json.dumps(body))
        try:
            os.link(temporary, self.path)
        except (FileExistsError, FileNotFoundError):  # held, or tidied away by the holder
            return False
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def _holder(self) -> dict[str, Any] | None:
        """Return who holds the lock, None if it is free; an unreadable lock is nobody's."""
        nobody = {"owner": "", "host": "", "pid": 0, "started": 0.0, "beat": 0.0}
        try:
            return json.loads(self.path.read_text()) | {"beat": self.path.stat().st_mtime}
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            return nobody

    def _remove_stale(self) -> None:
        # under a guard, and after another look: of many processes that find a stale lock, a slow
        # one would otherwise remove the lock of the one that has just taken over
        guard = self._guard
        try:
            guard.mkdir()
        except FileExistsError:
            with suppress(OSError):
                if time.time() - guard.stat().st_mtime > GUARD_SECONDS:  # its maker died
                    guard.rmdir()
            time.sleep(0.01)
            return
        try:
            holder = self._holder()
            if holder is not None and not holder_is_alive(holder):
                self.path.unlink(missing_ok=True)
        finally:
            with suppress(OSError):
                guard.rmdir()

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT_SECONDS):
            try:
                os.utime(self.path)
            except FileNotFoundError:
                return


def holder_is_alive(holder: dict[str, Any]) -> bool:
    """Tell whether the process that holds a lock still runs, or its heart still beats."""
    if holder["host"] != socket.gethostname():
        return time.time() - holder["beat"] < STALE_SECONDS
    try:
        process = psutil.Process(holder["pid"])
        same = abs(process.create_time() - holder["started"]) < 1
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
