"""The README tells the truth: its table comes from the registry, its commands parse."""

from __future__ import annotations

import importlib
import shlex
from pathlib import Path

import click
import pytest

from stdist.cli.main import cli
from stdist.cli.measure import MEASURES
from stdist.methods.registry import PROGRAMS

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "stdist" / "methods").glob("*/README.md"))]


def table():
    """Table of programs, as the README must have it."""
    lines = ["| command | Python | what it does |", "|---|---|---|"]
    for name, entry in PROGRAMS.items():
        command = {
            "store": f"stdist {name}",
            "measure": f"stdist measure {name.replace('_', '-')}",
        }.get(entry.kind, f"stdist run {name}")
        lines.append(f"| `{command}` | `{entry.function}` | {entry.summary} |")
    for name, measure in MEASURES.items():
        text = measure.summary
        lines.append(f"| `stdist measure {name}` | `stdist.metrics.{measure.function}` | {text} |")
    return "\n".join(lines)


def test_table_is_that_of_the_registry():
    text = README.read_text().split("<!-- programs -->")[1].split("<!-- /programs -->")[0]
    assert text.strip() == table()


@pytest.mark.parametrize("name", PROGRAMS)
def test_registered_programs_exist(name):
    entry = PROGRAMS[name]
    for path, separator in ((entry.builder, ":"), (entry.function, ".")):
        module, _, attribute = path.rpartition(separator)
        assert callable(getattr(importlib.import_module(module), attribute))


def commands():
    blocks = [block for page in PAGES for block in page.read_text().split("```bash\n")[1:]]
    lines = [line for block in blocks for line in block.split("```")[0].splitlines()]
    return [line for line in lines if line.startswith("stdist ")]


@pytest.mark.parametrize("line", commands())
def test_commands_parse(line):
    parse(line)


def parse(line):
    """Parse a command line of stdist as click would, without running it."""
    command, name, words = cli, "stdist", shlex.split(line, comments=True)[1:]
    while isinstance(command, click.Group):
        name, command, words = command.resolve_command(click.Context(command), words)
    command.make_context(name, words)
