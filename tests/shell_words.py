"""Commands as they stand in files and documents, held to the parsers of the programs that they call."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

#: programs whose command lines are checked
PROGRAMS = ("cmray", "ray", "mlflow")


def calls(text: str) -> Iterator[list[str]]:
    """Every call of one of the PROGRAMS in a piece of shell, as words, redirections and what follows left out."""
    for line in text.replace("\\\n", " ").splitlines():
        words: list[str] = []
        redirected = False
        for token in [*_tokens(line), ";"]:
            if not set(token) <= set(";|&()<>"):
                words += [] if redirected else [token]
                continue
            redirected = bool(set(token) & set("<>"))
            if redirected:
                continue
            while words and (re.fullmatch(r"\w+=.*", words[0]) or words[0] in ("setsid", "nohup", "exec", "sudo")):
                words = words[1:]
            if words and Path(words[0]).name in PROGRAMS:
                yield [Path(words[0]).name, *words[1:]]
            words = []


def _tokens(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";|&()<>")
    lexer.whitespace_split = True
    return list(lexer)


@cache
def _root(program: str) -> Any:
    if program == "cmray":
        import typer

        from cmray.cli.main import app

        return typer.main.get_command(app)
    if program == "ray":
        from ray.scripts.scripts import cli

        return cli
    from mlflow.cli import cli

    return cli


def check(words: list[str]) -> None:
    """Raises what the program's own parser raises: no such command, no such option, a value that is missing."""
    program, *rest = words
    command, name = _root(program), program
    context = command.make_context(name, [], resilient_parsing=True)
    while hasattr(command, "commands"):
        name, rest = rest[0], rest[1:]
        assert name in command.commands, f"`{shlex.join(words)}`: there is no {name}"
        command = command.commands[name]
        context = command.context_class(command, info_name=name, parent=context)
    command.make_parser(context).parse_args(list(rest))
