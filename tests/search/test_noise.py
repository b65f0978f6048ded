"""What can be told apart: differences on shared seeds against their own scatter."""

import random

import pytest
from scipy.stats import sem
from scipy.stats import t as student

from cmray.search import noise
from cmray.search.noise import Value, leaders, standard_error, tied


def drawn(truth: float, seed: int, shared: float = 1.0, own: float = 0.1, groups: int = 8) -> Value:
    """A metric with noise that all candidates share and noise of its own."""
    common, private = random.Random(seed), random.Random((seed, truth).__repr__())
    parts = tuple(truth + common.gauss(0, shared) + private.gauss(0, own) for _ in range(groups))
    return Value(sum(parts) / groups, parts)


def test_the_points_of_student():
    for freedom, point in noise._STUDENT.items():
        assert point == pytest.approx(student.ppf(0.975, freedom), abs=6e-4)
    assert sorted(noise._STUDENT) == list(range(noise.MIN_GROUPS - 1, noise.MAX_GROUPS))


def test_the_standard_error_is_that_of_the_mean_of_the_differences():
    a, b = Value(0.0, (3.0, 1.0, 4.0, 1.0)), Value(0.0, (2.0, 3.0, 1.0, 0.0))
    assert standard_error(a, b) == pytest.approx(sem([1.0, -2.0, 3.0, 1.0]), rel=1e-12)
    assert standard_error(b, a) == standard_error(a, b)


@pytest.mark.parametrize("groups", range(noise.MIN_GROUPS, noise.MAX_GROUPS + 1))
def test_a_difference_counts_from_the_end_of_its_95_percent_interval_on(groups):
    parts = tuple(float(i * i % 7) for i in range(groups))
    reach = student.ppf(0.975, groups - 1) * sem(parts)
    told = [
        tied(Value(0.0, parts), Value(sign * far * reach, (0.0,) * groups))
        for far in (0.999, 1.001)
        for sign in (-1, 1)
    ]
    assert told == [True, True, False, False]


def test_shared_noise_does_not_hide_a_difference():
    apart = [not tied(drawn(1.0, seed), drawn(1.5, seed)) for seed in range(200)]
    assert sum(apart) > 190, "the noise they share is ten times their own"


def test_one_in_twenty_equals_is_told_apart():
    wrong = sum(not tied(drawn(1.0, seed), drawn(1.0 + 1e-9, seed)) for seed in range(2000))
    assert 60 <= wrong <= 145


def test_too_few_groups_say_nothing():
    a, b = Value(1.0, (1.0, 1.0)), Value(1.0, (1.0, 1.1))
    assert standard_error(a, b) is None
    assert not tied(a, b)
    assert not tied(Value(1.0), Value(1.0))


def test_leaders_are_ranked_and_limited():
    values = {name: drawn(1.0 + i * 1e-4, 5) for i, name in enumerate("abcde")} | {"far": drawn(9.0, 5)}
    best = min(values, key=lambda k: values[k].value)
    found = leaders(values, best)
    assert found[0] == best
    assert "far" not in found
    assert [values[k].value for k in found] == sorted(values[k].value for k in found)
    assert leaders(values, best, 2) == found[:2]
