"""The command line: ``stdist convert | simulate | plan | run | resume | status | ...``."""

from stdist.cli.main import main

__all__ = ["main"]
