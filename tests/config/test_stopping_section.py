"""The stopping section of an experiment file, random draws, and what contradicts itself."""

from __future__ import annotations

import math

import pytest
from cli_run import CT, EDM, write
from pydantic import ValidationError

from cmray.config.experiment import Draw, RandomConfig
from cmray.config.plan import plan_experiment
from cmray.core.errors import ConfigError
from cmray.core.rng import numpy_generator

PANELS = {"panels": {"p": {"grid": {"objective.num_sigmas": [5, 9]}}}}


def planned(folder, *layers, **fields):
    return plan_experiment(write(folder / "study.yaml", CT, PANELS, *layers, **fields), [], folder / "storage")


def test_the_metric_is_that_of_the_curve_unless_given(tmp_path):
    plan = planned(tmp_path, stopping={"name": "asha", "grace": 10})
    assert plan.config.stopping.model_dump() == {
        "name": "asha", "grace": 10, "metric": "fd/digits@1", "reduction": 4,
    }  # fmt: skip
    plan = planned(tmp_path, curve={"nfe": [1, 2]}, stopping={"name": "median", "grace": 10, "metric": "fd/digits@2"})
    assert plan.config.stopping.metric == "fd/digits@2"


def test_stopping_changes_no_trial(tmp_path):
    names = {t.name for t in planned(tmp_path).trials}
    assert {t.name for t in planned(tmp_path, stopping={"name": "asha", "grace": 10}).trials} == names


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"stopping": {"name": "asha", "grace": 10}, "curve": None}, ["stopping is given, but curve is not"]),
        ({"stopping": {"name": "asha", "grace": 40}}, ["stopping.grace 40 is not below train.steps 40"]),
        ({"stopping": {"name": "asha", "grace": 15}}, ["stopping.grace 15", "curve.every is 10", "multiple"]),
        (
            {"stopping": {"name": "asha", "grace": 10, "metric": "fd/digits@2"}},
            ["stopping.metric is fd/digits@2", "did you mean 'fd/digits@1'"],
        ),
        ({"stopping": {"name": "ashes", "grace": 10}}, ["stopping.name", "did you mean 'asha'"]),
        ({"stopping": {"name": "asha", "grase": 10}}, ["stopping", "grase", "did you mean 'grace'"]),
        ({"stopping": {"name": "asha"}}, ["stopping.grace", "required"]),
        ({"stopping": {"name": "asha", "grace": 10, "reduction": 1}}, ["stopping.reduction", "1"]),
    ],
)
def test_a_contradiction_is_one_line_with_its_fields(tmp_path, fields, words):
    with pytest.raises(ConfigError) as caught:
        planned(tmp_path, fields)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert "study.yaml" in text
    for word in words:
        assert word in text


def test_every_trial_must_be_comparable(tmp_path):
    panels = {"p": {"points": [{}, {"train.steps": 20}]}}
    with pytest.raises(ConfigError, match=r"stopping.grace 20 is not below train.steps 20, .* \[ct .*steps=20\]"):
        planned(tmp_path, panels=panels, stopping={"name": "asha", "grace": 20})
    panels = {"p": {"points": [{}, {"curve.num_samples": 32}]}}
    with pytest.raises(ConfigError, match=r"num_samples \d+\) and in another in .*num_samples 32\)"):
        planned(tmp_path, panels=panels, stopping={"name": "asha", "grace": 10})
    panels = {"p": {"points": [{}, {"curve.nfe": [2]}]}}
    with pytest.raises(ConfigError, match=r"no curve in common: fd/digits@1 of .*, but fd/digits@2 of"):
        planned(tmp_path, panels=panels, stopping={"name": "asha", "grace": 10})


def test_a_single_run_has_nothing_to_be_compared_with(tmp_path):
    file = write(tmp_path / "one.yaml", EDM, stopping={"name": "asha", "grace": 10})
    with pytest.raises(ConfigError, match="stopping compares the trials of panels, but the file has none"):
        plan_experiment(file, [], tmp_path / "storage")


# ---------------------------------------------------------------- draws


def drawn(count: int = 2000, **draw) -> list:
    u = numpy_generator("a test of draws", 0)
    one = Draw.model_validate(draw)
    return [one.value(u.random()) for _ in range(count)]


def test_integers_reach_both_bounds_and_are_even():
    found = drawn(uniform=[5, 9], integer=True)
    assert {type(v) for v in found} == {int}
    counts = [found.count(v) for v in range(5, 10)]
    assert sum(counts) == 2000
    assert min(counts) > 320, "400 expected of each"
    below = drawn(uniform=[-3, 1], integer=True)
    assert min(below.count(v) for v in range(-3, 2)) > 320, "400 expected of each"


def test_log_uniform_integers_are_as_many_in_each_octave():
    found = drawn(log_uniform=[4, 63], integer=True)
    assert set(found) <= set(range(4, 64))
    counts = [sum(low <= v < 2 * low for v in found) for low in (4, 8, 16, 32)]
    assert sum(counts) == 2000
    assert min(counts) > 420, "500 expected of each"


def test_rounded_draws_have_so_many_digits_and_stay_within_bounds():
    found = drawn(log_uniform=[1.23456e-4, 9.87654e-2], digits=2)
    assert all(1.23456e-4 <= v <= 9.87654e-2 for v in found)
    inner = [v for v in found if v not in (1.23456e-4, 9.87654e-2)]
    assert all(float(f"{v:.2g}") == v for v in inner)
    assert len(inner) > 1900
    assert len(set(found)) < 300


@pytest.mark.parametrize("u", [0.0, 0.5, math.nextafter(1, 0)])
@pytest.mark.parametrize("kind", ["uniform", "log_uniform"])
@pytest.mark.parametrize("more", [{}, {"integer": True}, {"digits": 1}])
def test_no_draw_leaves_its_range(u, kind, more):
    assert 3 <= Draw.model_validate({kind: [3, 17], **more}).value(u) <= 17


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        ({"uniform": [0.5, 9], "integer": True}, "integer needs whole numbers as bounds"),
        ({"uniform": [1, 9], "integer": True, "digits": 2}, "integer or digits, not both"),
        ({"choice": [1, 9], "integer": True}, "integer is for uniform and log_uniform"),
        ({"choice": [1, 9], "digits": 1}, "digits is for uniform and log_uniform"),
        ({"uniform": [1, 9], "digits": 0}, "greater than or equal to 1"),
        ({"uniform": [9, 1]}, "must ascend"),
        ({"log_uniform": [0, 1]}, "positive"),
        ({}, "exactly one of"),
    ],
)
def test_a_draw_that_contradicts_itself(draw, words):
    with pytest.raises(ValidationError, match=words):
        Draw.model_validate(draw)


def test_the_same_seed_gives_the_same_points_whatever_was_drawn_before():
    config = RandomConfig(
        count=3, seed=7, fields={"a": Draw(uniform=(0, 1)), "b": Draw(log_uniform=(5, 80), integer=True)}
    )
    first = config.points()
    numpy_generator("random panel", 3).random(10)
    assert config.points() == first
    assert RandomConfig(count=2, seed=7, fields=config.fields).points() == first[:2], "more points keep the ones before"


def test_a_random_panel_of_integers_plans(tmp_path):
    fields = {"objective.num_sigmas": {"log_uniform": [5, 40], "integer": True}}
    plan = planned(tmp_path, panels={"r": {"random": {"count": 6, "fields": fields}}})
    assert all(5 <= t.run.objective.num_sigmas.num_sigmas <= 40 for t in plan.trials)
    assert 2 <= len(plan.trials) <= 6, "the same number twice is one trial"
