"""Which values of a noisy metric can be told apart.

A metric is also computed on groups of the samples behind it, the same seeds in each group for all candidates. The
differences between two candidates' groups scatter as far as the noise that the seeds they share does not cancel.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

#: at most so many groups of samples are compared
MAX_GROUPS = 8
#: and no fewer: the scatter of two differences says nothing
MIN_GROUPS = 3
#: two-sided 95% points of Student's t by degrees of freedom
_STUDENT = {2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365}

Key = TypeVar("Key")


@dataclass(frozen=True)
class Value:
    """A metric's value on all samples, and on groups of them; no groups where there are too few samples."""

    value: float
    groups: tuple[float, ...] = ()


def standard_error(a: Value, b: Value) -> float | None:
    """Of the difference of two values from the same seeds; None where it is not known."""
    if len(a.groups) != len(b.groups) or len(a.groups) < MIN_GROUPS:
        return None
    differences = [x - y for x, y in zip(a.groups, b.groups, strict=True)]
    return statistics.stdev(differences) / math.sqrt(len(differences))


def tied(a: Value, b: Value) -> bool:
    """Whether two values cannot be told apart: their difference is within its 95% interval. False if unknown."""
    error = standard_error(a, b)
    return error is not None and abs(a.value - b.value) <= _STUDENT[len(a.groups) - 1] * error


def leaders(values: Mapping[Key, Value], chosen: Key, most: int | None = None) -> list[Key]:
    """`chosen` and those that cannot be told apart from it, best first, at most `most`."""
    rivals = [k for k, v in values.items() if k != chosen and tied(v, values[chosen])]
    ranked: Sequence[Key] = sorted(rivals, key=lambda k: values[k].value)
    return [chosen, *ranked][:most]
