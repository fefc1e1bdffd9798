"""Options shared by commands, and options made from a function's signature and docstring."""

from __future__ import annotations

import inspect
import re
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import NoneType, SimpleNamespace
from typing import Any, get_args, get_type_hints

import click

RUNTIME = ("data", "client", "block_length", "overwrite", "progress", "options")
"""Arguments of public functions that say how to run, not what to compute."""
STORE = click.Path(path_type=Path)


def cluster_options(function: Callable) -> Callable:
    """Add the options that choose and size the cluster."""
    for option in (
        click.option(
            "--client",
            metavar="ADDRESS",
            help="Where to run: tcp://host:port, a scheduler file, slurm, kubernetes or cuda. "
            "Default: workers on this machine.",
        ),
        click.option("--workers", type=int, help="Number of workers to start."),
        click.option("--memory", help="Memory of each worker to start, e.g. 4GB."),
    ):
        function = option(function)
    return function


def block_option(function: Callable) -> Callable:
    """Add the block length."""
    return click.option(
        "--block-length",
        type=int,
        help="Rows per block, 1024 times a power of two. Default: from the workers' memory.",
    )(function)


@contextmanager
def executor(client: str | None, workers: int | None, memory: str | None) -> Iterator[Any]:
    """Connect as the options say."""
    from stdist.cluster import connect
    from stdist.graph import Cluster

    options = {"n_workers": workers, "memory_limit": memory}
    chosen = {name: value for name, value in options.items() if value is not None}
    with connect(client, **chosen) as active:
        yield Cluster(active)


def done(path: Path) -> None:
    """Print what a command has made."""
    click.echo(str(path))


def chosen_store(options: dict[str, Any], name: str) -> Path:
    """Take out the store that is worked on, given by its place or, if there is one, its option."""
    given = [options.pop("store"), *([options.pop(name)] if name else [])]
    chosen = [path for path in given if path is not None]
    if len(chosen) != 1:
        message = f"give the store once: as STORE or with --{name}"
        raise click.UsageError(message)
    path: Path = chosen[0]
    return path


def method_options(function: Callable) -> list[click.Option]:
    """Options of a method: the keyword arguments of its public function that are no RUNTIME."""
    annotations = {
        name: hint for name, hint in function.__annotations__.items() if name != "return"
    }
    arguments = SimpleNamespace(__annotations__=annotations)  # results may be of optional libraries
    hints = get_type_hints(arguments, globalns=function.__globals__)  # type: ignore[arg-type]
    texts = parameter_texts(function)
    options = []
    for name, parameter in inspect.signature(function).parameters.items():
        if name in RUNTIME:
            continue
        required = parameter.default is inspect.Parameter.empty
        default = None if required else parameter.default
        if isinstance(default, tuple):
            default = None  # the function's own
        options.append(_option(name, hints[name], required, default, texts.get(name, "")))
    return options


def _option(name: str, hint: Any, required: bool, default: Any, text: str) -> click.Option:
    kinds = [kind for kind in (get_args(hint) or (hint,)) if kind is not NoneType]
    kind = str if kinds[0] is Any else kinds[0]
    hint = str if hint is Any else hint
    flag = "--" + name.replace("_", "-")
    facts: dict[str, Any] = {"help": text, "default": default, "show_default": default is not None}
    if kind is bool:
        return click.Option([f"{flag}/--no-{flag[2:]}"], **facts)
    if getattr(kind, "__origin__", kind) is list or kind in get_args(list[str]):
        kind = str if kind is str else list
    if kind not in (str, int, float):
        facts |= {"callback": _list, "metavar": "A,B,...|@FILE"}
        kind = str
    elif hint not in (str, int, float) and any("list" in str(k) for k in get_args(hint)):
        facts |= {"callback": _list, "metavar": "A,B,...|@FILE"}
    # required options may come from --params, so they are checked after it is read
    return _Needed([flag], type=kind, needed=required, **facts)


class _Needed(click.Option):
    """An option that must be given, on the command line or in the file of parameters."""

    def __init__(self, *args: Any, needed: bool, **facts: Any) -> None:
        if needed:
            facts["help"] = f"{facts.get('help', '')}  [required]"
        super().__init__(*args, **facts)
        self.needed = needed


def _list(context: click.Context, option: click.Parameter, value: Any) -> list[str] | None:
    if value is None or isinstance(value, list):
        return value
    if value.startswith("@"):
        try:
            names = Path(value[1:]).read_text().split()
        except OSError as error:
            message = f"cannot read {value[1:]} ({error.strerror})"
            raise click.BadParameter(message, context, option) from error
    else:
        names = [item.strip() for item in value.split(",") if item.strip()]
    if not names:
        message = "the list is empty"
        raise click.BadParameter(message, context, option)
    return names


def parameter_texts(function: Callable) -> dict[str, str]:
    """First sentences of the parameters in a numpydoc docstring."""
    lines = inspect.getdoc(function).splitlines()  # type: ignore[union-attr]
    if "Parameters" not in lines:
        return {}
    texts: dict[str, str] = {}
    names: list[str] = []
    for line in lines[lines.index("Parameters") + 2 :]:
        if re.fullmatch(r"[A-Z]\w+( \w+)*", line):
            break
        if line and not line.startswith(" "):
            names = [name.strip("* ") for name in line.split(":")[0].split(",")]
        elif names:
            for name in names:
                texts[name] = f"{texts.get(name, '')} {line.strip()}".strip()
    return {name: text.replace("``", "") for name, text in texts.items()}


def read_parameters(
    context: click.Context, path: str | None, given: dict[str, Any]
) -> dict[str, Any]:
    """Merge a TOML file of parameters with the options; options given by hand win.

    Raises
    ------
    click.UsageError
        If the file has unknown names, or a required option is nowhere.
    """
    merged = dict(given)
    if path is not None:
        try:
            table = tomllib.loads(Path(path).read_text())
        except (OSError, ValueError) as error:
            message = f"{path} is no TOML file ({error})"
            raise click.UsageError(message) from error
        found = {name.replace("-", "_"): value for name, value in table.items()}
        options = {str(option.name): option for option in context.command.params}
        unknown = sorted(set(found) - set(given))
        if unknown:
            message = f"{path}: unknown parameters: {', '.join(unknown)}"
            raise click.UsageError(message)
        for name, value in found.items():
            source = context.get_parameter_source(name)
            if source is None or source.name == "DEFAULT":
                plain = isinstance(value, list)
                merged[name] = value if plain else options[name].type_cast_value(context, value)
    for option in context.command.params:
        if isinstance(option, _Needed) and option.needed and merged[str(option.name)] is None:
            raise click.MissingParameter(ctx=context, param=option)
    return merged
