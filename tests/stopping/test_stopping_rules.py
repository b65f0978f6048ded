"""Stopping rules against what their papers say, on values made up for it."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmray.stopping import stopping_rules

values = st.floats(0, 1000, allow_nan=False)


def rule(name: str, **options):
    return stopping_rules.parse({"name": name, "grace": 100, **options})


def test_rungs_are_a_geometric_series_below_the_last_step():
    asha = rule("asha", reduction=3)
    assert asha.looks(2700, 50) == [100, 300, 900]
    assert asha.looks(2701, 50) == [100, 300, 900, 2700]
    assert asha.looks(101, 100) == [100]


def test_the_median_looks_at_every_curve_point_from_grace_on():
    median = rule("median", grace=250)
    assert median.looks(600, 100) == [300, 400, 500]
    assert rule("median", grace=300).looks(600, 100) == [300, 400, 500]


@given(st.lists(values, min_size=1, max_size=30), st.integers(2, 5))
def test_whoever_arrives_last_goes_on_exactly_when_it_is_among_the_best_fraction(found, reduction):
    *others, own = found
    verdict = rule("asha", reduction=reduction).verdict(
        100, {100: own}, {str(i): {100: v} for i, v in enumerate(others)}
    )
    better = sum(v < own for v in others)
    assert verdict.goes_on == (better < math.ceil(len(found) / reduction))
    assert verdict.known == len(found)
    if verdict.limit is not None:
        assert verdict.goes_on == (own <= verdict.limit)
        assert sum(v < verdict.limit for v in found) < math.ceil(len(found) / reduction)


def test_the_first_at_a_rung_goes_on_and_the_second_only_if_it_is_no_worse():
    asha = rule("asha")
    assert asha.verdict(100, {50: 1.0, 100: 9.0}, {"b": {50: 0.1}}).goes_on
    assert asha.verdict(100, {100: 9.0}, {"b": {100: 9.0}}).goes_on
    assert not asha.verdict(100, {100: 9.1}, {"b": {100: 9.0}}).goes_on


def test_values_at_other_steps_are_not_compared():
    verdict = rule("asha").verdict(400, {100: 50.0, 400: 9.0}, {"b": {100: 1.0}, "c": {100: 2.0, 300: 1.0}})
    assert (verdict.goes_on, verdict.limit, verdict.known) == (True, None, 1)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_stopped_and_sinks_nobody_else(bad):
    asha = rule("asha")
    assert not asha.verdict(100, {100: bad}, {}).goes_on
    assert not asha.verdict(100, {100: bad}, {"b": {100: bad}}).goes_on
    assert asha.verdict(100, {100: 5.0}, {"b": {100: bad}, "c": {100: bad}}).goes_on
    median = rule("median", min_trials=1)
    assert not median.verdict(100, {100: bad}, {"b": {100: 5.0}}).goes_on
    assert median.verdict(100, {100: 5.0}, {"b": {100: bad}}).goes_on


curves = st.lists(values, min_size=3, max_size=3).map(lambda v: dict(zip((100, 200, 300), v, strict=True)))


@given(curves, st.lists(curves, min_size=3, max_size=8))
def test_the_median_is_that_of_the_running_means(own, others):
    verdict = rule("median").verdict(300, own, {str(i): c for i, c in enumerate(others)})
    limit = statistics.median(statistics.fmean(c.values()) for c in others)
    assert verdict.limit == limit
    assert verdict.goes_on == (min(own.values()) <= limit)


def test_the_median_waits_for_enough_trials_that_came_as_far():
    median = rule("median", min_trials=2)
    far, near = {100: 1.0, 200: 1.0}, {100: 0.5}
    assert median.verdict(200, {100: 9.0, 200: 9.0}, {"b": far, "c": near}).goes_on
    assert not median.verdict(200, {100: 9.0, 200: 9.0}, {"b": far, "c": near, "d": far}).goes_on


def test_what_others_measured_later_does_not_count():
    median = rule("median", min_trials=1)
    others = {"b": {100: 8.0, 200: 6.0, 300: 0.0, 400: 0.0}}
    verdict = median.verdict(200, {100: 9.0, 200: 7.0}, others)
    assert (verdict.goes_on, verdict.limit) == (True, 7.0)


def test_what_was_measured_before_grace_does_not_count():
    median = rule("median", grace=200, min_trials=1)
    own = {100: 0.0, 200: 9.0}
    verdict = median.verdict(200, own, {"b": {100: 900.0, 200: 8.0}})
    assert (verdict.goes_on, verdict.limit) == (False, 8.0)


@pytest.mark.parametrize(
    ("name", "options", "steps", "every", "words"),
    [
        ("asha", {"grace": 400}, 400, 100, "stopping.grace 400 is not below train.steps 400"),
        ("asha", {"grace": 150}, 1000, 100, "rungs at 150, 600, but curve.every is 100"),
        ("asha", {"grace": 100}, 1000, 200, "stopping.grace must be a multiple of curve.every"),
        ("median", {"grace": 950}, 1000, 100, "leaves no curve point before the end"),
        ("median", {"grace": 1000}, 1000, 100, "is not below train.steps 1000"),
    ],
)
def test_what_cannot_be_judged_is_said(name, options, steps, every, words):
    with pytest.raises(ValueError, match=words):
        rule(name, **options).check(steps, every)


@pytest.mark.parametrize("name", stopping_rules.names())
def test_every_rule_lets_a_trial_alone_go_on_and_never_looks_at_the_end(name):
    one = rule(name)
    looks = one.looks(1000, 100)
    assert looks
    assert all(100 <= step < 1000 and step % 100 == 0 for step in looks)
    assert looks == sorted(set(looks))
    one.check(1000, 100)
    assert one.verdict(100, {100: 3.0}, {}).goes_on
