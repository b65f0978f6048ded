"""Searches that ask for many points at once: a section search for any number of workers, and every point there is."""

from __future__ import annotations

from cmray.search.base import LineSearch

#: the most points per time that an exhaustive search takes
EXHAUSTIVE_LIMIT = 256

#: (3 - 5^(1/2)) / 2, where golden section search puts its next point
_GOLDEN = 0.381966011250105

#: a point more must leave less by so much, or it only evens out rounding
_AS_GOOD = 1.1


class SectionSearch(LineSearch):
    """Golden section search for one worker, a (k + 1)-ary one for k workers, on integers.

    The minimum of an f that falls and then rises lies between the two evaluated neighbours of the best point. Every
    round cuts what lies between them with at most `parallel` new points, the best point being one more cut that costs
    nothing: one point leaves 0.618 of the range, two leave 1/2, four 1/3. With an odd number above 1 the last point
    would change nothing about what is left and is not asked for.

    Args:
        parallel: k >= 1, points of one round.

    Raises:
        ValueError: for low > high or parallel < 1.
    """

    def __init__(self, low: int, high: int, parallel: int = 1):
        super().__init__(low, high)
        if parallel < 1:
            raise ValueError(f"parallel is {parallel}; a round evaluates at least 1 point")
        self.parallel = parallel
        self._round = self._cuts()

    def _needed(self) -> list[int]:
        return self._round

    def _narrow(self) -> None:
        if all(index in self._values for index in self._round):
            self._round = self._cuts()

    def _cuts(self) -> list[int]:
        if not self._values:
            return _first(self.low, self.high, self.parallel)
        best, _ = self.best
        left = max((i for i in self._values if i < best), default=self.low - 1)
        right = min((i for i in self._values if i > best), default=self.high + 1)
        below, above = best - left - 1, right - best - 1  # points not evaluated yet
        if below + above <= self.parallel:
            return [*range(left + 1, best), *range(best + 1, right)]
        if self.parallel == 1:
            if above >= below:
                return [best + max(1, round(_GOLDEN * (right - best)))]
            return [best - max(1, round(_GOLDEN * (best - left)))]
        first, second = _shares(below, above, self.parallel)
        return _between(left, best, first) + _between(best, right, second)


class ExhaustiveSearch(LineSearch):
    """Every point of a small range, all of them at once."""

    def __init__(self, low: int, high: int):
        super().__init__(low, high)
        if high - low + 1 > EXHAUSTIVE_LIMIT:
            raise ValueError(
                f"an exhaustive search of {high - low + 1} points is refused; it takes {EXHAUSTIVE_LIMIT} at most"
            )

    def _needed(self) -> list[int]:
        return list(range(self.low, self.high + 1))


def _first(low: int, high: int, parallel: int) -> list[int]:
    if high - low + 1 <= parallel:
        return list(range(low, high + 1))
    if parallel == 1:
        return [low + round(_GOLDEN * (high - low))]
    return _between(low - 1, high + 1, parallel)


def _between(left: int, right: int, count: int) -> list[int]:
    """`count` different points evenly spread strictly between two others."""
    return [left + i * (right - left) // (count + 1) for i in range(1, count + 1)]


def _shares(below: int, above: int, parallel: int) -> tuple[int, int]:
    """How many new points go to either side of the best one: the fewest that leave least, whoever wins."""

    def left_over(first: int, second: int) -> float:
        """What lies between the neighbours of the winner, at worst."""
        gap, other = (below + 1) / (first + 1), (above + 1) / (second + 1)
        return max(gap + other, 2 * gap if first else 0.0, 2 * other if second else 0.0)

    shares = [
        (first, second)
        for first in range(min(below, parallel) + 1)
        for second in range(min(above, parallel - first) + 1)
        if first + second > 0
    ]
    least = min(left_over(*share) for share in shares)
    good = [share for share in shares if left_over(*share) <= _AS_GOOD * least]
    return min(good, key=lambda share: (sum(share), left_over(*share)))
