"""docs/cli.md: every command with its arguments and options, from the functions that typer makes commands of."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer
from reference_text import MADE, code, table, value
from typer.models import ArgumentInfo, OptionInfo

from cmray.cli.exits import MEANINGS
from cmray.cli.main import app

Command = tuple[str, Callable[..., Any]]

INTRODUCTION = """# Commands

{made}

Every command of `cmray`, in the order of `cmray --help`. What each prints with `--json` is in [json.md](json.md), what
stands in an experiment file in [configuration.md](configuration.md).

- **RUN** is `EXPERIMENT/TRIAL`, a trial's name or its beginning, an MLflow run id, or the folder of a checkpoint.
- **Results** go to standard output; progress, warnings and errors to standard error. With `--json` standard output is
  one JSON document and nothing else.
- **An option of several words** is written as one for each: `--only a --only b`. Lists of numbers have commas:
  `--nfe 1,2`.
- **Environment variables** stand beside the options that read them; what is written on the command line wins.

## Exit codes

{exits}

`cmray jobs submit --follow`, `cmray jobs logs --follow` and `cmray sweep --address http://...` end with the code of the
sweep that they follow. `cmray ui` becomes MLflow's server and ends as that does.

## Shell completion

    cmray --install-completion          # of the shell that it is typed in: bash, zsh, fish or PowerShell
    cmray --show-completion             # prints what that would add

Commands and options are completed, and files where the shell does that by itself.

## Environment

| | what it says | default |
| :--- | :--- | :--- |
| `CMRAY_STORAGE` | where results go, as `--storage` | `./cmray-data` |
| `CMRAY_CACHE` | where working copies of [object stores](storage.md#an-object-store) lie | `~/.cache/cmray/storage` |
| `CMRAY_GROWS_TO` | what a cluster [may add](cluster.md#settings), where it cannot be read | read from the head |
| `MLFLOW_TRACKING_URI` | the MLflow store, as `--tracking-uri` | SQLite in the storage folder |
| `RAY_ADDRESS` | the Ray cluster, as `--address` | Ray starts on this machine |
| `RAY_API_SERVER_ADDRESS` | the job server of `cmray jobs` | `RAY_ADDRESS`, then port 8265 here |
| `RAY_AUTH_MODE`, `RAY_AUTH_TOKEN` | [the token of a cluster](cluster.md#once) | Ray's own |
| `XDG_CACHE_HOME` | the folder whose `cmray` holds downloads, weights that you bring, and working copies | `~/.cache` |
"""


def commands(group: typer.Typer, before: str = "cmray") -> Iterator[Command]:
    """(command line, function) of all commands, those of groups included."""
    for info in group.registered_commands:
        assert info.callback is not None
        yield f"{before} {info.name or info.callback.__name__.replace('_', '-')}", info.callback
    for sub in group.registered_groups:
        assert sub.typer_instance is not None
        yield from commands(sub.typer_instance, f"{before} {sub.name}")


def parameters(function: Callable[..., Any]) -> Iterator[tuple[str, Any, ArgumentInfo | OptionInfo, Any]]:
    """(name, type, typer's info, default) of a command's parameters; inspect.Parameter.empty where it is required."""
    hints = typing.get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        if typing.get_origin(hints[name]) is not Annotated:
            continue  # the context
        kind, *notes = typing.get_args(hints[name])
        info = next(note for note in notes if isinstance(note, ArgumentInfo | OptionInfo))
        yield name, kind, info, parameter.default


def option(name: str, info: ArgumentInfo | OptionInfo) -> str:
    """How an option is written; typer keeps the first declaration of an annotated one as its default."""
    declared = [word for word in (info.default, *(info.param_decls or ())) if isinstance(word, str)]
    return next((word for word in declared if word.startswith("--")), "--" + name.replace("_", "-"))


def examples(function: Callable[..., Any]) -> list[str]:
    """The command lines of a docstring's examples."""
    lines = [line.strip() for line in inspect.cleandoc(function.__doc__ or "").splitlines()]
    told = [line.removeprefix("Example: ") for line in lines if line.startswith(("Example: ", "cmray "))]
    return [line for line in told if line.startswith("cmray ")]


def description(function: Callable[..., Any]) -> str:
    """The paragraphs of a docstring before its examples."""
    paragraphs = inspect.cleandoc(function.__doc__ or "").replace("\b", "").split("\n\n")
    return "\n\n".join(p.strip() for p in paragraphs if not p.strip().startswith("Example: "))


def _kind(kind: Any, info: ArgumentInfo | OptionInfo) -> str:
    """What to write for it: a metavar, or what its type takes, with bounds."""
    inner = [part for part in typing.get_args(kind) if part is not type(None)]
    base = inner[0] if len(inner) == 1 and typing.get_origin(kind) is not list else kind
    several = typing.get_origin(base) is list
    base = typing.get_args(base)[0] if several else base
    if base is bool:
        return "flag"
    text = info.metavar or {int: "N", float: "X"}.get(base, "TEXT" if base is str else "PATH")
    low, high = info.min, info.max
    bounds = f", {low} to {high}" if None not in (low, high) else f", at least {low}" if low is not None else ""
    shown = " or ".join(code(choice) for choice in text.split("|"))  # a bar would end the cell of a table
    return f"{shown}{bounds}{', repeatable' if several else ''}"


def _default(default: Any) -> str:
    if default is inspect.Parameter.empty:
        return "required"
    return "" if default is None or default is False or default == "" else value(default)


def _rows(function: Callable[..., Any], of: type) -> Iterator[list[str]]:
    for name, kind, info, default in parameters(function):
        if type(info) is not of:
            continue
        shown = info.metavar or name.upper() if of is ArgumentInfo else option(name, info)
        variable = f" Or `{info.envvar}`." if info.envvar else ""
        help_text = " ".join((info.help or "").split()) + variable
        kinds = [] if of is ArgumentInfo else [_kind(kind, info)]
        yield [code(shown), *kinds, _default(default), help_text.replace("*", r"\*")]


def usage(line: str, function: Callable[..., Any]) -> str:
    """`cmray sample RUN --out FILE [OPTIONS]`."""
    told = [line]
    for name, _, info, default in parameters(function):
        required = default is inspect.Parameter.empty
        if isinstance(info, ArgumentInfo):
            told.append((info.metavar or name.upper()) if required else f"[{info.metavar or name.upper()}]")
        elif required:
            told.append(f"{option(name, info)} {info.metavar or 'PATH'}")
    return " ".join([*told, "[OPTIONS]"])


def section(line: str, function: Callable[..., Any]) -> str:
    parts = [f"## {line}", description(function), "```text\n" + usage(line, function) + "\n```"]
    if arguments := list(_rows(function, ArgumentInfo)):
        parts.append(table(("argument", "default", ""), arguments))
    if options := list(_rows(function, OptionInfo)):
        parts.append(table(("option", "takes", "default", ""), options))
    if told := examples(function):
        parts.append(f"Example{'s' if len(told) > 1 else ''}:\n\n```bash\n" + "\n".join(told) + "\n```")
    return "\n\n".join(parts)


def page() -> str:
    exits = table(("code", ""), [[code(number), text] for number, text in MEANINGS.items()])
    known = list(commands(app))
    listed = "\n".join(
        f"- [`{line}`](#{line.replace(' ', '-')}): {description(f).splitlines()[0]}" for line, f in known
    )
    parts = [INTRODUCTION.format(made=MADE, exits=exits).strip(), f"## All commands\n\n{listed}"]
    return "\n\n".join([*parts, *(section(line, function) for line, function in known)]) + "\n"
