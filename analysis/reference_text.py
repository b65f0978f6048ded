"""What the references share: Markdown tables, and types and values in plain words."""

from __future__ import annotations

import json
import types
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, Union, get_args, get_origin

from pydantic import BaseModel

MADE = "<!-- made of the code by `python analysis/reference.py`: change it there -->"

_PLAIN = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    Path: "path",
    Any: "anything",
    type(None): "null",
}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; bars inside cells are escaped."""
    lines = [f"| {' | '.join(head)} |", f"| {' | '.join(':---' for _ in head)} |"]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join(line.replace("  ", " ") for line in lines)


def code(text: object) -> str:
    return f"`{text}`"


def value(given: Any) -> str:
    """A default as it would stand in YAML."""
    if isinstance(given, BaseModel):
        fields = given.model_dump(mode="json", exclude_defaults=False)
        return code("{" + ", ".join(f"{k}: {json.dumps(v)}" for k, v in fields.items()) + "}").replace('"', "")
    if isinstance(given, str | Path):
        return code(given) if str(given) else "empty"
    if isinstance(given, tuple | list):
        return code(json.dumps(list(given)).replace('"', ""))
    if isinstance(given, float) and given != 0 and (given >= 1e5 or given < 1e-3):
        return code(f"{given:g}")
    return code(json.dumps(given))


def words(kind: Any) -> str:
    """A type in plain words, such as "list of whole number" or "text or null"."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Annotated, NotRequired):
        return words(inner[0])
    if origin in (Union, types.UnionType):
        told = list(dict.fromkeys(words(part) for part in inner))
        return " or ".join([*(t for t in told if t != "null"), *(t for t in told if t == "null")])
    if origin is Literal:
        return ", ".join(code(choice) for choice in inner)
    if origin is tuple and Ellipsis not in inner:
        return f"[{', '.join(words(part) for part in inner)}]"
    if origin in (list, tuple):
        return f"list of {plural(words(inner[0]))}"
    if origin is dict:
        return "mapping" if inner[1] is Any else f"mapping to {words(inner[1])}"
    if kind in _PLAIN:
        return _PLAIN[kind]
    return f"[{kind.__name__}](#{kind.__name__.lower()})"


def plural(text: str) -> str:
    """Texts, numbers ...; links and choices stay as they are."""
    return f"{text}s" if text in ("text", "number", "whole number", "path", "mapping") else text
