"""Configs take no unknown key, no NaN and no change."""

import pytest
from pydantic import Field, ValidationError

from cmray.core.strict import Strict


class Oven(Strict):
    temperature: float = 180.0
    minutes: int = Field(30, ge=1)


def test_an_unknown_key_is_answered_with_the_nearest():
    with pytest.raises(ValidationError, match=r"did you mean 'temperature'\? \(allowed: minutes, temperature\)"):
        Oven(temprature=200)
    with pytest.raises(ValidationError, match=r"unknown key; \(allowed: minutes, temperature\)"):
        Oven.model_validate({"zzz": 1})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "hot"])
def test_values_that_are_no_finite_number_are_refused(value):
    with pytest.raises(ValidationError, match="temperature"):
        Oven(temperature=value)


def test_it_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Oven().temperature = 3


def test_defaults_are_checked_too():
    class Broken(Strict):
        minutes: int = Field(0, ge=1)

    with pytest.raises(ValidationError, match="minutes"):
        Broken()
