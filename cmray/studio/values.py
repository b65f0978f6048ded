"""What stands in the fields of a page, as values. A field's sentence is for who typed it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from cmray.core.errors import CmrayError

N = TypeVar("N", int, float)


def levels(text: str | None, what: str = "times") -> list[float]:
    """Noise levels such as "80, 0.8". Raises CmrayError; whether the model knows them is for the model to say."""
    found = _numbers(text, what, float, "80, 0.8")
    if not found:
        raise CmrayError(f"{what} are missing; write noise levels separated by commas, such as 80, 0.8")
    return found


def labels(text: str | None) -> list[int] | None:
    """Labels such as "3" or "0,1,2"; None where nothing is written, which leaves them to the seeds."""
    return _numbers(text, "labels", int, "3 or 0, 1, 2") or None


def whole(value: float | None, what: str, least: int = 0) -> int:
    """A whole number of a slider or a field. Raises CmrayError."""
    if value is None or int(value) != value or value < least:
        raise CmrayError(f"{what} is {'missing' if value is None else f'{value:g}'}; write a whole number from {least}")
    return int(value)


def shown_levels(times: Sequence[float]) -> str:
    """Levels as a person reads them; of many the first and the last."""
    few = times if len(times) <= 8 else [times[0], times[1], times[-1]]
    texts = [f"{t:.3g}" for t in few]
    return ", ".join(texts if len(times) <= 8 else [*texts[:2], "…", texts[2]])


def evaluations(nfe: int) -> str:
    return "1 network evaluation" if nfe == 1 else f"{nfe} network evaluations"


def seconds(value: float) -> str:
    """13 ms, 2.4 s."""
    return f"{value * 1000:.0f} ms" if value < 0.9995 else f"{value:.1f} s"


def _numbers(text: str | None, what: str, kind: type[N], such_as: str) -> list[N]:
    parts = [part.strip() for part in (text or "").replace(";", ",").split(",")]
    if not any(parts):
        return []
    try:
        return [kind(part) for part in parts]
    except ValueError:
        raise CmrayError(f"{what} are '{text}'; write numbers separated by commas, such as {such_as}") from None
