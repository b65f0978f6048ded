"""Ternary search over integers, and the paper's greedy search of sampling times built from it.

    search = GreedySearch(num_sigmas=18, nfe=2)
    while schedules := search.ask():            # [(17, 6), (17, 11)]: may be evaluated in parallel
        for schedule in schedules:
            search.tell(schedule, evaluate(sigmas[list(schedule)]))
    schedule, value = search.best

Whoever drives a search owns workers, seeds and failures; the same values told lead to the same questions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

Schedule = tuple[int, ...]
Mode = Literal["exact", "reference"]

#: an interval this narrow (in points) is evaluated whole: thirds of it would no longer be two inner points
_SMALL = 4


class TernarySearch:
    """Minimises f over the integers low..high, both included, for an f that falls and then rises.

    Each decision compares f at the two thirds of what is left and drops an outer third. The last points are all
    evaluated, so a minimum at either end is found like any other. When the two thirds are equal the minimum of
    a strictly unimodal f lies between them; on a plateau that is a guess, and `best` is still the best point seen.

    Args:
        low, high: the range, low <= high. About 2 log_1.5(high - low) + 4 points are evaluated at most.

    Raises:
        ValueError: for low > high.
    """

    def __init__(self, low: int, high: int):
        if low > high:
            raise ValueError(f"low is {low} and high is {high}; a search needs low <= high")
        self.low, self.high = low, high
        self._left, self._right = low, high
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
        left, right = self._left, self._right
        if right - left < _SMALL:
            return list(range(left, right + 1))
        third = (right - left) // 3
        return [left + third, right - third]

    def _narrow(self) -> None:
        while self._right - self._left >= _SMALL:
            first, second = self._needed()
            if first not in self._values or second not in self._values:
                return
            # Strict inequality excludes the worse of the two points itself.
            if self._values[first] < self._values[second]:
                self._right = second - 1
            elif self._values[first] > self._values[second]:
                self._left = first + 1
            else:
                self._left, self._right = first, second


class ReferenceTernarySearch(TernarySearch):
    """The search of the paper's released code, to compare with: the same points in the same order.

    It keeps the point it compared with inside the interval, stops at a width of 2 and returns the middle, whatever
    its value. So neither end of the range is ever evaluated, and equal thirds move the interval to the right.
    """

    @property
    def best(self) -> tuple[int, float]:
        """(index, value) of the middle once done, before that the best point so far."""
        middle = (self._left + self._right) // 2
        if self._right - self._left <= 2 and middle in self._values:
            return middle, self._values[middle]
        return super().best

    def _needed(self) -> list[int]:
        left, right = self._left, self._right
        if right - left <= 2:
            return [(left + right) // 2]
        third = (right - left) / 3
        return [int(left + third), int(right - third)]

    def _narrow(self) -> None:
        while self._right - self._left > 2:
            first, second = self._needed()
            if first not in self._values or second not in self._values:
                return
            if self._values[first] < self._values[second]:
                self._right = second
            else:
                self._left = first


class GreedySearch:
    """The paper's greedy search of NFE >= 2 sampling times on an ascending grid of N noise levels.

    The first time is sigma_max, index N - 1: sampling starts from pure noise. Each following time is found by a
    ternary search below the one before it, with the earlier ones held fixed (Consistency Models, Sec. 3, Alg. 1).
    So round r asks for schedules of r + 2 times, and its winner becomes a prefix of every later schedule.

    Index 0 is never a candidate. It is sigma_min, where Algorithm 1 adds sqrt(sigma_min^2 - sigma_min^2) = 0 noise
    and the boundary condition makes f the identity: the evaluation would be paid for and change nothing. For the
    same reason a round leaves one index below it for each time still to come.

    Args:
        num_sigmas: N >= nfe + 1, points of the grid.
        nfe: number of sampling times, >= 2, sigma_max included.
        mode: "exact", or "reference" for `ReferenceTernarySearch` over the reference's indices, which descend in noise.

    Raises:
        ValueError: when a bound above does not hold.
    """

    def __init__(self, num_sigmas: int, nfe: int, mode: Mode = "exact"):
        if nfe < 2:
            raise ValueError(f"nfe is {nfe}; one step starts at sigma_max, so a search needs nfe >= 2")
        if num_sigmas < nfe + 1:
            raise ValueError(
                f"num_sigmas is {num_sigmas} and nfe is {nfe}; sigma_min is no sampling time, "
                f"so the grid needs at least nfe + 1 = {nfe + 1} points"
            )
        self.num_sigmas, self.nfe, self.mode = num_sigmas, nfe, mode
        self._searches: list[TernarySearch] = []
        self._prefixes: list[Schedule] = []
        self._open_round((num_sigmas - 1,))

    def ask(self) -> list[Schedule]:
        """Schedules to evaluate: descending grid indices from N - 1; the same until told; [] when done."""
        return [(*self._prefixes[-1], self._own(index)) for index in self._searches[-1].ask()]

    def tell(self, schedule: Schedule | list[int], value: float) -> None:
        """The metric of samples drawn with `schedule` (lower is better). A value told twice changes nothing.

        Raises:
            ValueError: for a schedule that was not asked for, a value unlike the one told before, or not finite.
        """
        schedule = tuple(schedule)
        round_ = len(schedule) - 2
        if not 0 <= round_ < len(self._searches) or schedule[:-1] != self._prefixes[round_]:
            raise ValueError(f"schedule {schedule} was never asked for; the open questions are {self.ask()}")
        self._searches[round_].tell(self._own(schedule[-1]), value)
        if self._searches[-1].done and len(self._searches) < self.nfe - 1:
            self._open_round((*self._prefixes[-1], self._own(self._searches[-1].best[0])))

    @property
    def done(self) -> bool:
        return not self.ask()

    @property
    def best(self) -> tuple[Schedule, float]:
        """(schedule, value), the best of the longest schedules evaluated so far: of `nfe` times once done.

        A longer schedule may be worse than the shorter one it extends; it is returned all the same, because the
        question was which `nfe` times are best.

        Raises:
            ValueError: before the first value.
        """
        round_ = len(self._searches) - 1
        if round_ > 0 and not self._searches[round_].points:
            round_ -= 1
        index, value = self._searches[round_].best
        return (*self._prefixes[round_], self._own(index)), value

    @property
    def points(self) -> list[tuple[Schedule, float]]:
        """Every (schedule, value) in order of evaluation; the last index is the one its round searched."""
        return [
            ((*prefix, self._own(index)), value)
            for prefix, search in zip(self._prefixes, self._searches, strict=True)
            for index, value in search.points
        ]

    @property
    def rounds(self) -> list[int]:
        """How many of `points` belong to each searched time, in order; sums to len(points)."""
        return [len(search.points) for search in self._searches]

    def state(self) -> dict[str, Any]:
        """What was asked for and told, as plain JSON; `from_state` goes on from it without evaluating again."""
        points = [[list(schedule), value] for schedule, value in self.points]
        return {"num_sigmas": self.num_sigmas, "nfe": self.nfe, "mode": self.mode, "points": points}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> GreedySearch:
        """The search that `state()` described. Only values are stored: the decisions are made again from them.

        Raises:
            ValueError: for a state whose points this search would not have asked for.
        """
        search = cls(state["num_sigmas"], state["nfe"], state["mode"])
        for schedule, value in state["points"]:
            search.tell(schedule, value)
        return search

    def _open_round(self, prefix: Schedule) -> None:
        still_to_come = self.nfe - len(prefix) - 1
        self._prefixes.append(prefix)
        if self.mode == "exact":
            self._searches.append(TernarySearch(1 + still_to_come, prefix[-1] - 1))
        else:  # from the time before to the end of the grid, both never asked for
            self._searches.append(ReferenceTernarySearch(self._own(prefix[-1]), self.num_sigmas - 1 - still_to_come))

    def _own(self, index: int) -> int:
        """Our grid index of a search's point, and back: the reference counts from sigma_max down."""
        return index if self.mode == "exact" else self.num_sigmas - 1 - index
