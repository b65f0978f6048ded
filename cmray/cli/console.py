"""Where text goes: results to standard output, progress and errors to standard error."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console

output = Console()
errors = Console(stderr=True)


def say(text: str) -> None:
    """One line of the command's result, taken literally."""
    output.print(text, highlight=False, markup=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """One JSON document on standard output, for machines."""
    print(json.dumps(value, indent=1, default=_plain))  # noqa: T201 - the command's result


def _plain(value: Any) -> Any:
    """A record as its fields, anything else as text."""
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else str(value)


def duration(seconds: float) -> str:
    """A time span as people write it: 8 s, 2 min 40 s, 3 h 05 min."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
