"""The search finds exact minima of strictly unimodal functions, asks little, and survives an interruption."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lines import bowl, minimise

from cmray.search import GreedySearch, TernarySearch
from cmray.search.ternary import ReferenceTernarySearch


def bound(count):
    return 4 + 2 * math.ceil(math.log(max(count, 1), 1.5))


@pytest.mark.parametrize(("left", "right"), [(1.0, 1.0), (1000.0, 0.001), (0.001, 1000.0)])
def test_every_optimum_on_every_grid(left, right):
    for num_sigmas in range(2, 202):
        for optimum in range(num_sigmas):
            search = TernarySearch(0, num_sigmas - 1)
            asked = minimise(search, bowl(optimum, left, right))
            assert search.best == (optimum, 0.0), (num_sigmas, optimum)
            assert len(asked) <= min(bound(num_sigmas), num_sigmas)


def test_two_points_are_asked_at_once_so_that_they_can_run_in_parallel():
    assert TernarySearch(0, 30).ask() == [10, 20]


def test_a_single_point():
    search = TernarySearch(7, 7)
    assert search.ask() == [7]
    assert not search.done
    search.tell(7, 3.0)
    assert search.done
    assert search.best == (7, 3.0)


def test_asking_again_changes_nothing_and_a_told_point_is_not_asked_again():
    search = TernarySearch(0, 30)
    assert search.ask() == search.ask() == [10, 20]
    search.tell(20, 1.0)
    assert search.ask() == [10]
    search.tell(20, 1.0)
    assert search.points == [(20, 1.0)]


@pytest.mark.parametrize(
    ("lowest", "rounds"),
    [
        (2, [[3, 6], [1, 4], [0, 2]]),  # 3..9 without 6 to 9, then 0..3 without 4 and 5
        (7, [[3, 6], [5, 8], [7, 9]]),
        (4.5, [[3, 6], [4, 5]]),  # equal thirds: the minimum is between them
    ],
)
def test_a_decision_drops_an_outer_third_with_its_point_and_equal_ones_drop_both(lowest, rounds):
    search, asked = TernarySearch(0, 9), []
    while wanted := search.ask():
        asked.append(wanted)
        for index in wanted:
            search.tell(index, abs(index - lowest))
    assert asked == rounds


def test_the_search_of_the_papers_code_by_hand():
    """Thirds of 0..10, 3..10, 5..10, 6..10 (both are known), 7..10 and 7..9, cut to whole numbers."""
    search = ReferenceTernarySearch(0, 10)
    assert minimise(search, lambda index: float(abs(index - 8))) == [3, 6, 5, 7, 8, 9]
    assert search.best == (8, 0.0)


def test_best_is_the_best_of_all_points_even_when_the_search_went_elsewhere():
    values = {10: 5.0, 20: 4.0}  # the right side wins, then turns out worse everywhere
    search = TernarySearch(0, 30)
    minimise(search, lambda i: values.get(i, 9.0))
    assert search.best == (20, 4.0)


def test_ties_go_to_the_lowest_index():
    search = TernarySearch(0, 50)
    minimise(search, lambda i: 1.0)
    assert search.best[0] == min(index for index, _ in search.points)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_cannot_be_compared_are_refused(value):
    search = TernarySearch(0, 9)
    with pytest.raises(ValueError, match="finite values only"):
        search.tell(search.ask()[0], value)
    assert search.points == []


def test_errors_are_sentences():
    with pytest.raises(ValueError, match="low <= high"):
        TernarySearch(3, 2)
    search = TernarySearch(0, 30)
    with pytest.raises(ValueError, match=r"never asked for; the open questions are \[10, 20\]"):
        search.tell(11, 1.0)
    with pytest.raises(ValueError, match="no best point"):
        _ = search.best
    search.tell(10, 1.0)
    with pytest.raises(ValueError, match=r"told 1\.0 before and 2\.0 now"):
        search.tell(10, 2.0)


@given(st.integers(-50, 50), st.integers(0, 120), st.data())
def test_any_function_ends_with_the_best_point_seen(low, width, data):
    values = data.draw(st.lists(st.integers(0, 3), min_size=width + 1, max_size=width + 1))
    search = TernarySearch(low, low + width)
    asked = minimise(search, lambda i: float(values[i - low]))
    assert all(low <= i <= low + width for i in asked)
    assert len(asked) <= bound(width + 1)
    best = min(value for _, value in search.points)
    assert search.best == (min(i for i, value in search.points if value == best), best)


@given(st.integers(3, 120), st.data())
def test_any_strictly_unimodal_function(count, data):
    optimum = data.draw(st.integers(0, count - 1))
    steps = data.draw(st.lists(st.floats(1e-3, 1e3), min_size=count, max_size=count))
    values = [sum(steps[i:optimum]) if i < optimum else sum(steps[optimum + 1 : i + 1]) for i in range(count)]
    search = TernarySearch(0, count - 1)
    minimise(search, values.__getitem__)
    assert search.best[0] == optimum


def separable(targets):
    """Each position of a schedule has its own best index, so the greedy answer is the exact one."""
    return lambda schedule: sum(abs(i - t) for i, t in zip(schedule[1:], targets, strict=False)) + 1.0 / len(schedule)


@pytest.mark.parametrize("num_sigmas", [3, 4, 5, 9, 18, 40])
def test_two_steps_find_every_optimum(num_sigmas):
    for optimum in range(1, num_sigmas - 1):
        search = GreedySearch(num_sigmas, nfe=2)
        asked = minimise(search, separable([optimum]))
        assert search.best[0] == (num_sigmas - 1, optimum)
        assert all(0 not in schedule for schedule in asked)


def test_four_steps_are_searched_in_turn():
    search = GreedySearch(40, nfe=4)
    asked = minimise(search, separable([25, 11, 1]))
    assert search.best[0] == (39, 25, 11, 1)
    assert search.done
    assert [len(schedule) for schedule in asked] == sorted(len(schedule) for schedule in asked)
    assert sum(search.rounds) == len(search.points) == len(asked)
    assert len(search.rounds) == 3


def test_room_is_left_for_the_times_still_to_come():
    search = GreedySearch(5, nfe=4)  # only 4 > 3 > 2 > 1 fits
    minimise(search, sum)
    assert search.best[0] == (4, 3, 2, 1)


def test_best_before_the_end_is_a_whole_schedule():
    search = GreedySearch(18, nfe=3)
    while len(search.rounds) == 1:
        for schedule in search.ask():
            search.tell(schedule, separable([9, 4])(schedule))
    assert search.best[0] == (17, 9)


def test_greedy_errors_are_sentences():
    with pytest.raises(ValueError, match="nfe >= 2"):
        GreedySearch(18, nfe=1)
    with pytest.raises(ValueError, match=r"nfe \+ 1 = 4 points"):
        GreedySearch(3, nfe=3)
    search = GreedySearch(18, nfe=2)
    for schedule in [(17,), (17, 0), (16, 5), (17, 6, 2), ()]:
        with pytest.raises(ValueError, match="never asked for"):
            search.tell(schedule, 1.0)


MODES = st.sampled_from(["ternary", "section", "exhaustive", "continuous", "reference"])


@given(
    st.integers(2, 4),
    st.integers(5, 60),
    st.integers(0, 60),
    MODES,
    st.integers(1, 5),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_an_interrupted_search_resumes_without_evaluating_again(
    nfe, num_sigmas, stop_after, mode, parallel, by_hand, random
):
    def function(schedule):
        return separable([num_sigmas // 2, num_sigmas // 4, 1])(schedule)

    def go_on(search, evaluated=()):
        """To the end; winners that are named by hand are the first evaluated ones whose successors still have room."""
        new = []
        while not search.done:
            for schedule in search.ask():
                new.append(schedule)
                search.tell(schedule, function(schedule))
            if search.undecided:
                search.decide(max(s for s, _ in search.undecided))
        assert not set(new) & set(evaluated)
        return search

    whole = go_on(GreedySearch(num_sigmas, nfe, mode, parallel, by_hand))
    search, evaluated = GreedySearch(num_sigmas, nfe, mode, parallel, by_hand), []
    while not search.done and len(evaluated) < stop_after:
        if search.undecided:
            search.decide(max(s for s, _ in search.undecided))
            continue
        schedule = random.choice(search.ask())  # workers answer in any order
        evaluated.append(schedule)
        search.tell(schedule, function(schedule))
    resumed = GreedySearch.from_state(json.loads(json.dumps(search.state())))
    assert resumed.ask() == search.ask()
    assert resumed.points == search.points
    assert resumed.state() == search.state()
    go_on(resumed, evaluated)
    assert resumed.best == whole.best
    assert sorted(resumed.points) == sorted(whole.points)
    assert resumed.rounds == whole.rounds


def test_winners_are_named_by_hand():
    search = GreedySearch(18, nfe=3, by_hand=True)
    minimise(search, separable([9, 4]))
    assert not search.done
    assert search.favourite == (17, 9)
    with pytest.raises(ValueError, match="none of the evaluated ones"):
        search.decide((17, 16))
    other = next(s for s, _ in search.undecided if s[-1] > 9)
    search.decide(other)
    assert search.ask()
    assert all(schedule[:2] == other for schedule in search.ask())
    minimise(search, separable([9, 4]))
    search.decide(search.favourite)
    assert search.done
    assert search.best[0] == (*other, 4)
    with pytest.raises(ValueError, match="none of the evaluated ones"):
        search.decide(other)


def test_a_foreign_state_is_refused():
    state = GreedySearch(18, nfe=2).state()
    state["points"] = [[[17, 2], 1.0]]
    with pytest.raises(ValueError, match="never asked for"):
        GreedySearch.from_state(state)
