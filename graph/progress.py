"""Progress of a run: stage, blocks, bytes, time left; on terminals, in notebooks and batch logs."""

from __future__ import annotations

import sys
import time
from typing import Any

QUIET_SECONDS = 2.0
LINE_SECONDS = 10.0


class Progress:
    """Counts; shows nothing. Base of the two that show something."""

    def begin(self, stage: str, total: int, done: int) -> None:
        """Begin a stage of `total` tasks, `done` of them finished by an earlier attempt."""
        self.stage, self.total, self.done, self.resumed = stage, total, done, done
        self.bytes, self.started = 0, time.monotonic()
        self.show()

    def advance(self, tasks: int, n_bytes: int) -> None:
        """Count finished tasks and the bytes that they read and wrote."""
        self.done += tasks
        self.bytes += n_bytes
        self.show()

    def end(self) -> None:
        """End the stage."""

    def close(self) -> None:
        """End the run."""

    def show(self) -> None:
        """Show the present counts."""

    @property
    def seconds_left(self) -> float | None:
        """Estimate from the pace of this attempt, or None before the first task ends."""
        fresh = self.done - self.resumed
        if not fresh:
            return None
        return (time.monotonic() - self.started) / fresh * (self.total - self.done)


class LineProgress(Progress):
    """Plain lines for batch logs: one every ten seconds, and one per stage longer than two."""

    def __init__(self, stream: Any = None) -> None:
        self.stream = stream
        self.last = 0.0

    def show(self) -> None:
        """Print a line if it is time."""
        now = time.monotonic()
        waiting = self.done < self.total
        if waiting and now - max(self.last, self.started) >= LINE_SECONDS:
            self.last = now
            self._line()

    def end(self) -> None:
        """Print the line of the finished stage."""
        if time.monotonic() - self.started >= QUIET_SECONDS:
            self._line()

    def _line(self) -> None:
        left = self.seconds_left
        eta = "" if left is None or self.done >= self.total else f", {left:.0f} s left"
        elapsed = time.monotonic() - self.started
        print(
            f"stdist: {self.stage}: {self.done}/{self.total} blocks, "
            f"{self.bytes / 2**20:.0f} MiB, {elapsed:.1f} s{eta}",
            file=self.stream or sys.stderr,
            flush=True,
        )


class BarProgress(Progress):
    """A bar per stage, by rich, in terminals and notebooks."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bars

        self.bars = Bars(
            TextColumn("{task.description:>16}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[size]}"),
            TimeRemainingColumn(),
            console=None if _in_notebook() else Console(stderr=True),
        )
        self.task: Any = None
        self.round, self.stage = 1, ""
        self.bars.start()

    def begin(self, stage: str, total: int, done: int) -> None:
        """Add a bar; the rounds of a loop share one."""
        if stage == self.stage:
            self.round += 1
            title = f"{stage} {self.round}"
            self.bars.reset(self.task, total=total, completed=done, description=title)
        else:
            self.round = 1
            self.task = self.bars.add_task(stage, total=total, completed=done, size="")
        super().begin(stage, total, done)

    def show(self) -> None:
        """Move the bar."""
        size = f"{self.bytes / 2**20:.0f} MiB" if self.bytes else ""
        self.bars.update(self.task, completed=self.done, size=size)

    def close(self) -> None:
        """Stop drawing."""
        self.bars.stop()


def choose_progress(show: bool | None = None) -> Progress:
    """Bars on a terminal or in a notebook, lines elsewhere, nothing if `show` is False."""
    if show is False:
        return Progress()
    return BarProgress() if _in_notebook() or sys.stderr.isatty() else LineProgress()


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")
