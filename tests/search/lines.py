"""Searches along a line and what they are tried on, for the tests of all of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

from cmray.search import ExhaustiveSearch, SectionSearch, TernarySearch

#: all that are right at both ends of their range
LINES: dict[str, Callable[[int, int], Any]] = {
    "ternary": TernarySearch,
    "section 1": SectionSearch,
    "section 2": partial(SectionSearch, parallel=2),
    "section 3": partial(SectionSearch, parallel=3),
    "section 7": partial(SectionSearch, parallel=7),
    "exhaustive": ExhaustiveSearch,
}


def bowl(optimum: int, left: float = 1.0, right: float = 1.0) -> Callable[[int], float]:
    """Strictly unimodal, steeper on one side when left != right."""
    return lambda i: left * (optimum - i) if i < optimum else right * (i - optimum)


def noisy(function: Callable[[int], float], size: float, seed: int) -> Callable[[int], float]:
    """The same noise whenever a point is evaluated, as candidates on shared seeds have."""
    return lambda i: function(i) + random.Random(seed * 1000 + i).uniform(-size, size)


def minimise(search: Any, function: Callable[[Any], float]) -> list[Hashable]:
    """Runs a search to its end; returns what it asked for."""
    asked = []
    while wanted := search.ask():
        asked += wanted
        for point in wanted:
            search.tell(point, function(point))
    assert len(asked) == len(set(asked)), "a point was asked for twice"
    return asked
