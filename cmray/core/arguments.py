"""Arguments of calls from Python, where anything may come: as what they mean, or one sentence."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

from cmray.core.errors import CmrayError


def whole(name: str, value: Any) -> int:
    """A whole number, also of numpy and torch. Raises CmrayError for anything else."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise CmrayError(f"{name} is {value!r}; give a whole number") from None


def wholes(name: str, value: Any) -> list[int]:
    """One whole number, or a sequence of them. Raises CmrayError."""
    return [whole(name, one) for one in value] if _is_many(value) else [whole(name, value)]


def real(name: str, value: Any) -> float:
    """A number, also of numpy and torch. Raises CmrayError for anything else."""
    try:
        if isinstance(value, bool | str):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise CmrayError(f"{name} is {value!r}; give a number") from None


def reals(name: str, value: Any) -> list[float]:
    """A sequence of numbers. Raises CmrayError."""
    if not _is_many(value):
        raise CmrayError(f"{name} is {value!r}; give a list of numbers, such as [80, 0.8]")
    return [real(name, one) for one in value]


def _is_many(value: Any) -> bool:
    """Whether it is a list or the like; a tensor or array of no dimension is a number."""
    if isinstance(value, Sequence):
        return not isinstance(value, str | bytes)
    return isinstance(value, Iterable) and getattr(value, "ndim", 1) > 0 and not isinstance(value, dict)
