"""Every search against the exhaustive answer, with the optimum at every index of every grid of 2 to 201 points."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lines import LINES, bowl, minimise, noisy

from cmray.search import GreedySearch, SectionSearch

GRIDS = range(2, 202)


def most(name: str, points: int) -> float:
    """Points that may be evaluated, by what a round leaves of the range."""
    if name == "exhaustive":
        return points
    kind, _, parallel = name.partition(" ")
    if kind == "ternary":
        return min(points, 4 + 2 * math.log(points, 1.5))
    k = int(parallel)
    rounds = 2 + math.log(points, 1.618 if k == 1 else 1 + k // 2)
    return min(points, k + rounds * (1 if k == 1 else 2 * (k // 2)))


@pytest.mark.parametrize("name", LINES)
def test_the_exact_answer_without_noise(name):
    for points in GRIDS:
        for optimum in range(0, points, 11 if name == "exhaustive" else 1):
            search = LINES[name](0, points - 1)
            asked = minimise(search, bowl(optimum))
            assert search.best == (optimum, 0.0), (points, optimum)
            assert len(asked) <= most(name, points), (points, optimum)


@pytest.mark.parametrize("name", ["ternary", "section 1", "section 2", "section 7"])
def test_noise_that_leaves_the_objective_unimodal_changes_nothing(name):
    for points in GRIDS:
        for optimum in range(0, points, 5):
            search = LINES[name](0, points - 1)
            minimise(search, noisy(bowl(optimum), 0.49, points))
            assert search.best[0] == optimum


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in LINES if name != "exhaustive"])
def test_noise_costs_no_more_than_a_few_times_itself(name):
    size = 6.0  # a dozen neighbours cannot be ordered
    worst = 0.0
    for points in GRIDS:
        for optimum in range(0, points, 7):
            f = noisy(bowl(optimum), size, optimum)
            values = [f(i) for i in range(points)]
            search = LINES[name](0, points - 1)
            minimise(search, values.__getitem__)
            worst = max(worst, search.best[1] - min(values))
    assert worst <= 6 * size


@given(st.integers(1, 9), st.integers(1, 150), st.data())
def test_a_section_search_of_any_unimodal_function(parallel, count, data):
    optimum = data.draw(st.integers(0, count - 1))
    steps = data.draw(st.lists(st.floats(1e-3, 1e3), min_size=count, max_size=count))
    values = [sum(steps[i:optimum]) if i < optimum else sum(steps[optimum + 1 : i + 1]) for i in range(count)]
    search = SectionSearch(3, count + 2, parallel)
    while wanted := search.ask():
        assert len(wanted) <= parallel
        assert set(wanted) <= set(range(3, count + 3))
        for i in wanted:
            search.tell(i, values[i - 3])
    assert search.best[0] - 3 == optimum


@given(st.integers(1, 6), st.integers(1, 60), st.data())
def test_a_section_search_of_anything_ends_at_the_best_point_seen(parallel, count, data):
    values = data.draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    search = SectionSearch(0, count - 1, parallel)
    asked = minimise(search, lambda i: float(values[i]))
    least = min(values[i] for i in asked)
    assert search.best == (min(i for i in asked if values[i] == least), least)


def test_more_workers_take_fewer_rounds():
    rounds = {}
    for parallel in (1, 2, 4, 8):
        search, rounds[parallel] = SectionSearch(0, 200, parallel), 0
        while wanted := search.ask():
            rounds[parallel] += 1
            for i in wanted:
                search.tell(i, abs(i - 77.3))
    assert rounds[1] > rounds[2] > rounds[4] > rounds[8]
    assert rounds[8] <= 5


def test_an_odd_worker_is_left_idle_where_it_would_change_nothing():
    search = SectionSearch(0, 100, 3)
    assert len(search.ask()) == 3, "with nothing known yet every cut counts"
    for i in search.ask():
        search.tell(i, abs(i - 50))
    assert len(search.ask()) == 2, "one on either side of the best"


def test_a_round_is_decided_when_it_is_complete_in_any_order():
    search = SectionSearch(0, 100, 2)
    first, second = search.ask()
    search.tell(second, 1.0)
    assert search.ask() == [first]
    search.tell(first, 2.0)
    assert len(search.ask()) == 2
    assert min(search.ask()) > first


@pytest.mark.parametrize("mode", ["ternary", "section", "exhaustive", "continuous"])
@pytest.mark.parametrize("nfe", [2, 3, 4])
def test_greedy_finds_separable_optima_in_every_mode(mode, nfe):
    for points in (5, 9, 18, 40):
        for first in range(nfe - 1, points - 1):
            targets = [first, max(first // 2, nfe - 2), max(first // 4, 1)][: nfe - 1]
            if len(set(targets)) < len(targets):
                continue
            search = GreedySearch(points, nfe, mode, parallel=3)
            minimise(search, lambda s, t=targets: sum(abs(a - b) for a, b in zip(s[1:], t, strict=False)))
            assert search.best[0] == (points - 1, *targets), targets


def test_errors_are_sentences():
    with pytest.raises(ValueError, match="parallel is 0; a round evaluates at least 1 point"):
        SectionSearch(0, 5, 0)
    with pytest.raises(ValueError, match="an exhaustive search of 257 points is refused; it takes 256 at most"):
        LINES["exhaustive"](1, 257)
    with pytest.raises(ValueError, match="mode is 'exact'; it is one of ternary, reference, section"):
        GreedySearch(18, 2, "exact")
