"""Ternary search over integers, and the paper's greedy search of sampling times built from line searches.

    search = GreedySearch(num_sigmas=18, nfe=2)
    while schedules := search.ask():            # [(17, 6), (17, 11)]: may be evaluated in parallel
        for schedule in schedules:
            search.tell(schedule, evaluate(sigmas[list(schedule)]))
    schedule, value = search.best

Whoever drives a search owns workers, seeds and failures; the same values told lead to the same questions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from cmray.search.base import LineSearch
from cmray.search.section import ExhaustiveSearch, SectionSearch

Schedule = tuple[int, ...]
Mode = Literal["ternary", "reference", "section", "exhaustive", "continuous"]

#: an interval this narrow (in points) is evaluated whole: thirds of it would no longer be two inner points
_SMALL = 4


class TernarySearch(LineSearch):
    """For an f that falls and then rises.

    Each decision compares f at the two thirds of what is left and drops an outer third. The last points are all
    evaluated, so a minimum at either end is found like any other. When the two thirds are equal the minimum of
    a strictly unimodal f lies between them; on a plateau that is a guess, and `best` is still the best point seen.
    About 2 log_1.5(high - low) + 4 points are evaluated at most.
    """

    def __init__(self, low: int, high: int):
        super().__init__(low, high)
        self._left, self._right = low, high

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
    search of the line below the one before it, with the earlier ones held fixed (Consistency Models, Sec. 3, Alg. 1).
    So round r asks for schedules of r + 2 times, and its winner becomes a prefix of every later schedule.

    Index 0 is never a candidate. It is sigma_min, where Algorithm 1 adds sqrt(sigma_min^2 - sigma_min^2) = 0 noise
    and the boundary condition makes f the identity: the evaluation would be paid for and change nothing. For the
    same reason a round leaves one index below it for each time still to come.

    Args:
        num_sigmas: N >= nfe + 1, points of the grid.
        nfe: number of sampling times, >= 2, sigma_max included.
        mode: "ternary", "exhaustive"; "section", and "continuous" which is a section search of a grid so fine that it
            stands for all noise levels; "reference" for `ReferenceTernarySearch` over the reference's indices, which
            descend in noise.
        parallel: points of one round of a section search.
        by_hand: the winner of a round is not the best value but whom `decide` names.

    Raises:
        ValueError: when a bound above does not hold.
    """

    def __init__(self, num_sigmas: int, nfe: int, mode: Mode = "ternary", parallel: int = 1, by_hand: bool = False):
        if nfe < 2:
            raise ValueError(f"nfe is {nfe}; one step starts at sigma_max, so a search needs nfe >= 2")
        if num_sigmas < nfe + 1:
            raise ValueError(
                f"num_sigmas is {num_sigmas} and nfe is {nfe}; sigma_min is no sampling time, "
                f"so the grid needs at least nfe + 1 = {nfe + 1} points"
            )
        if mode not in get_args(Mode):
            raise ValueError(f"mode is '{mode}'; it is one of {', '.join(get_args(Mode))}")
        self.num_sigmas, self.nfe, self.mode = num_sigmas, nfe, mode
        self.parallel, self.by_hand = parallel, by_hand
        self._lines: list[LineSearch] = []
        self._prefixes: list[Schedule] = []
        self._decided: list[Schedule] = []
        self._open_round((num_sigmas - 1,))

    def ask(self) -> list[Schedule]:
        """Schedules to evaluate: descending grid indices from N - 1; the same until told; [] when done or undecided."""
        return [(*self._prefixes[-1], self._own(index)) for index in self._lines[-1].ask()]

    def tell(self, schedule: Schedule | list[int], value: float) -> None:
        """The metric of samples drawn with `schedule` (lower is better). A value told twice changes nothing.

        Raises:
            ValueError: for a schedule that was not asked for, a value unlike the one told before, or not finite.
        """
        schedule = tuple(schedule)
        round_ = len(schedule) - 2
        if not 0 <= round_ < len(self._lines) or schedule[:-1] != self._prefixes[round_]:
            raise ValueError(f"schedule {schedule} was never asked for; the open questions are {self.ask()}")
        self._lines[round_].tell(self._own(schedule[-1]), value)
        if not self.by_hand and self.undecided:
            self.decide(self.favourite)

    @property
    def favourite(self) -> Schedule:
        """Who wins the newest round by value alone; the reference's search has its own idea of that."""
        return self._winner(len(self._lines) - 1)

    @property
    def undecided(self) -> list[tuple[Schedule, float]]:
        """Every (schedule, value) of a round whose questions are all answered and whose winner is not named yet."""
        round_ = len(self._decided)
        if round_ >= len(self._lines) or not self._lines[round_].done:
            return []
        return self._points(round_)

    def decide(self, schedule: Schedule | list[int]) -> None:
        """Names the winner of the round that is undecided, which opens the next one.

        Raises:
            ValueError: no round is undecided, or `schedule` was not evaluated in it.
        """
        schedule = tuple(schedule)
        if schedule not in [s for s, _ in self.undecided]:
            raise ValueError(f"schedule {schedule} is none of the evaluated ones of an undecided round")
        self._decided.append(schedule)
        if len(self._decided) < self.nfe - 1:
            self._open_round(schedule)

    @property
    def done(self) -> bool:
        return len(self._decided) == self.nfe - 1

    @property
    def best(self) -> tuple[Schedule, float]:
        """(schedule, value), the best of the longest schedules evaluated so far: of `nfe` times once done.

        A longer schedule may be worse than the shorter one it extends; it is returned all the same, because the
        question was which `nfe` times are best.

        Raises:
            ValueError: before the first value.
        """
        round_ = len(self._lines) - 1
        if round_ > 0 and not self._lines[round_].points:
            round_ -= 1
        schedule = self._decided[round_] if round_ < len(self._decided) else self._winner(round_)
        return schedule, dict(self._points(round_))[schedule]

    @property
    def points(self) -> list[tuple[Schedule, float]]:
        """Every (schedule, value) in order of evaluation; the last index is the one its round searched."""
        return [point for round_ in range(len(self._lines)) for point in self._points(round_)]

    @property
    def rounds(self) -> list[int]:
        """How many of `points` belong to each searched time, in order; sums to len(points)."""
        return [len(line.points) for line in self._lines]

    def state(self) -> dict[str, Any]:
        """What was asked for, told and decided, as plain JSON; `from_state` goes on without evaluating again."""
        return {
            "num_sigmas": self.num_sigmas,
            "nfe": self.nfe,
            "mode": self.mode,
            "parallel": self.parallel,
            "by_hand": self.by_hand,
            "points": [[list(schedule), value] for schedule, value in self.points],
            "decided": [list(schedule) for schedule in self._decided],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> GreedySearch:
        """The search that `state()` described. Only values and winners are stored: questions are asked again.

        Raises:
            ValueError: for a state whose points this search would not have asked for.
        """
        search = cls(state["num_sigmas"], state["nfe"], state["mode"], state["parallel"], state["by_hand"])
        decided = list(state["decided"]) if search.by_hand else []
        for schedule, value in state["points"]:
            if search.by_hand and search.undecided and decided:
                search.decide(decided.pop(0))
            search.tell(schedule, value)
        for schedule in decided:
            search.decide(schedule)
        return search

    def _open_round(self, prefix: Schedule) -> None:
        still_to_come = self.nfe - len(prefix) - 1
        self._prefixes.append(prefix)
        low, high = 1 + still_to_come, prefix[-1] - 1
        if self.mode == "reference":  # from the time before to the end of the grid, both never asked for
            line = ReferenceTernarySearch(self._own(prefix[-1]), self.num_sigmas - 1 - still_to_come)
        elif self.mode == "ternary":
            line = TernarySearch(low, high)
        elif self.mode == "exhaustive":
            line = ExhaustiveSearch(low, high)
        else:
            line = SectionSearch(low, high, self.parallel)
        self._lines.append(line)

    def _points(self, round_: int) -> list[tuple[Schedule, float]]:
        return [((*self._prefixes[round_], self._own(index)), value) for index, value in self._lines[round_].points]

    def _winner(self, round_: int) -> Schedule:
        return (*self._prefixes[round_], self._own(self._lines[round_].best[0]))

    def _own(self, index: int) -> int:
        """Our grid index of a line's point, and back: the reference counts from sigma_max down."""
        return self.num_sigmas - 1 - index if self.mode == "reference" else index
