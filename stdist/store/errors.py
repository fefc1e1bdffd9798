"""Errors that name the thing, the place and the remedy, with the exit code of the command line."""

from __future__ import annotations

from typing import ClassVar


class StdistError(Exception):
    """Base of every error that stdist raises on purpose.

    Parameters
    ----------
    code
        Stable short name, e.g. ``"counts-negative"``; what scripts and tests match on.
    thing
        What is wrong.
    place
        Where: file, element, row, column, stage or shard.
    remedy
        What to do about it.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, code: str, thing: str, *, place: str = "", remedy: str = "") -> None:
        self.code, self.thing, self.place, self.remedy = code, thing, place, remedy
        parts = [f"[{code}] {thing}"]
        if place:
            parts.append(f"where: {place}")
        if remedy:
            parts.append(f"remedy: {remedy}")
        super().__init__("\n  ".join(parts))

    def __reduce__(self) -> tuple:
        """Keep the fields across processes (Exception pickles only its message)."""
        return _rebuild, (type(self), self.code, self.thing, self.place, self.remedy)


def _rebuild(cls: type, code: str, thing: str, place: str, remedy: str) -> StdistError:
    return cls(code, thing, place=place, remedy=remedy)


class StdistWarning(UserWarning):
    """Something in the data that stdist passed through and the user should know."""


class InputError(StdistError):
    """The data or the request is wrong; nothing was written (exit code 2)."""

    exit_code = 2


class PlanRefused(StdistError):
    """The plan does not fit the workers; nothing has run (exit code 3)."""

    exit_code = 3


class CorruptionError(StdistError):
    """Stored bytes differ from what was recorded (exit code 4)."""

    exit_code = 4


class RunStopped(StdistError):
    """The run ended early, its finished shards are kept, ``stdist resume`` continues (exit 5)."""

    exit_code = 5
