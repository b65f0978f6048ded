"""What every search along one line of integers shares: what was told, and what is the best of it."""

from __future__ import annotations

import math


class LineSearch:
    """Minimises f over the integers low..high, both included, as ask()/tell(). A variant says what it needs next.

    Args:
        low, high: the range, low <= high.

    Raises:
        ValueError: for low > high.
    """

    def __init__(self, low: int, high: int):
        if low > high:
            raise ValueError(f"low is {low} and high is {high}; a search needs low <= high")
        self.low, self.high = low, high
        self._values: dict[int, float] = {}

    def ask(self) -> list[int]:
        """The points the next decision still needs, ascending; the same ones until they are told; [] when done."""
        return [index for index in self._needed() if index not in self._values]

    def tell(self, index: int, value: float) -> None:
        """f(index) = value. Telling the same value again changes nothing, so a retried worker does no harm.

        Raises:
            ValueError: for an index that was not asked for, another value than before, or one that is not finite
                (a diverged sample says nothing about which side the minimum is on).
        """
        if not math.isfinite(value):
            raise ValueError(f"the value told for index {index} is {value}; a search compares finite values only")
        if index in self._values:
            if self._values[index] != value:
                raise ValueError(f"index {index} was told {self._values[index]} before and {value} now")
            return
        if index not in self._needed():
            raise ValueError(f"index {index} was never asked for; the open questions are {self.ask()}")
        self._values[index] = float(value)
        self._narrow()

    @property
    def done(self) -> bool:
        return not self.ask()

    @property
    def best(self) -> tuple[int, float]:
        """(index, value) of the lowest value of all evaluated points; the lowest index among equals.

        Raises:
            ValueError: before the first value.
        """
        if not self._values:
            raise ValueError("nothing has been evaluated yet, so there is no best point")
        index = min(self._values, key=lambda i: (self._values[i], i))
        return index, self._values[index]

    @property
    def points(self) -> list[tuple[int, float]]:
        """Every (index, value), in order of evaluation."""
        return list(self._values.items())

    def _needed(self) -> list[int]:
        """All points of the decision that is open, told or not; all told when the search is done."""
        raise TypeError(f"{type(self).__name__} does not say what it needs")

    def _narrow(self) -> None:
        """Decides, where all that was needed is told."""
