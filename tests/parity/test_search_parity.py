"""Which points the reference's ternary search evaluates, in which order, and what it returns."""

import re

import pytest

from cmray.search.ternary import GreedySearch, ReferenceTernarySearch, TernarySearch

pytestmark = pytest.mark.golden


@pytest.mark.parametrize("case", ["begin0_end39_argmin19", "begin0_end17_argmin8"])
def test_the_same_points_in_the_same_order_and_the_same_answer(golden, case):
    record = golden("g_ternary.json")[case]
    (low,), (high,) = record["before"], record["after"]
    lowest = int(re.search(r"argmin(\d+)", case).group(1))
    f = lambda p: abs(p - lowest) ** 1.5 + 2.0
    search, asked = ReferenceTernarySearch(low, high), []
    while points := search.ask():
        for p in points:
            asked.append(p)
            search.tell(p, f(p))
    assert asked == record["unique_evaluations"]
    assert search.best == (record["returned"], f(record["returned"]))
    # the same through the greedy search, whose indices ascend in noise
    greedy, asked = GreedySearch(high + 1, 2, "reference"), []
    while schedules := greedy.ask():
        for schedule in schedules:
            asked.append(high - schedule[-1])
            greedy.tell(schedule, f(asked[-1]))
    assert asked == record["unique_evaluations"]
    assert greedy.best[0] == (high, high - record["returned"])
    assert GreedySearch.from_state(greedy.state()).best == greedy.best


@pytest.mark.parametrize("lowest", [0, 1, 38, 39])
def test_it_misses_either_end_where_ours_does_not(lowest):
    f = lambda p: abs(p - lowest)
    found = []
    for cls in (ReferenceTernarySearch, TernarySearch):
        search = cls(0, 39)
        while points := search.ask():
            for p in points:
                search.tell(p, f(p))
        found.append(search.best[0])
    assert found[1] == lowest
    assert (found[0] == lowest) == (lowest in (1, 38))
