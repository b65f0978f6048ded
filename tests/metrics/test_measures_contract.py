"""What every registered measure keeps to; a new one is tested by being there."""

import dataclasses
import random

import numpy as np
import pytest
import torch
from measure_samples import sample, softmax
from own_names import own
from pydantic import ValidationError

from cmray.core.errors import DataError
from cmray.metrics.measures.base import Estimate, Sample, measures

NAMES = measures.names()
SMALL = {"kid": {"subset_size": 20, "subsets": 5}}
PARTS = {"features", "probabilities", "spatial"}


def small(name):
    return measures.parse({"name": name, **SMALL.get(name, {})})


def full(seed, n=60, dim=5, blocks=6):
    rng = np.random.default_rng(seed)
    return sample(rng.normal(size=(n, dim)), softmax(rng.normal(size=(n, 3))), rng.normal(size=(n, 4)), blocks)


def without(side, part):
    gone = {part: None} | ({"spatial_blocks": None} if part == "spatial" else {})
    return dataclasses.replace(side, **gone)


def test_the_measures_there_are():
    assert own(measures) == ["coverage", "density", "fd", "fd-infinity", "is", "kid", "precision", "recall", "sfid"]


@pytest.mark.parametrize("name", NAMES)
def test_declares_itself(name):
    measure = small(name)
    assert measure.name == name
    assert measure.title
    assert measure.better in ("lower", "higher")
    assert measure.needs <= PARTS


@pytest.mark.parametrize("name", NAMES)
def test_is_a_function_of_its_arguments_alone(name):
    a, b = full(1), full(2)
    before = a.features.copy(), a.statistics.sha256(), b.statistics.sha256()
    first = small(name).estimate(a, b, 7)
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    states = np.random.get_state()[1].copy(), torch.get_rng_state()
    assert small(name).estimate(full(1), full(2), 7) == first
    assert np.array_equal(np.random.get_state()[1], states[0])
    assert torch.equal(torch.get_rng_state(), states[1])
    assert np.array_equal(a.features, before[0])
    assert (a.statistics.sha256(), b.statistics.sha256()) == before[1:]


@pytest.mark.parametrize("name", NAMES)
def test_the_interval_holds_the_value_and_plain_numbers(name):
    estimate = small(name).estimate(full(1), full(2), 0)
    assert estimate.low <= estimate.value <= estimate.high
    assert estimate.error > 0
    for value in dataclasses.astuple(estimate)[:4]:
        assert type(value) is float
    assert "\n" not in estimate.note


@pytest.mark.parametrize("name", NAMES)
def test_needs_what_it_declares_and_nothing_else(name):
    measure, reference = small(name), full(2)
    for part in sorted(PARTS):
        for side in ("sample", "reference") if measure.needs_reference else ("sample",):
            pair = {"sample": full(1), "reference": reference}
            pair[side] = without(pair[side], part)
            if part in measure.needs:
                with pytest.raises(DataError, match=f"^{name}: the {side} has no {part}") as raised:
                    measure.estimate(pair["sample"], pair["reference"], 0)
                assert "\n" not in str(raised.value)
            else:
                assert measure.estimate(pair["sample"], pair["reference"], 0).value is not None
    if measure.needs_reference:
        with pytest.raises(DataError, match=f"^{name}: a reference is needed"):
            measure.estimate(full(1), None, 0)
        with pytest.raises(DataError, match=f"^{name}: 5-d features in the sample, 6-d in the reference"):
            measure.estimate(full(1), full(2, dim=6), 0)
    else:
        assert measure.estimate(full(1), None, 0) == measure.estimate(full(1), full(2), 0)


@pytest.mark.parametrize("name", NAMES)
def test_one_image_is_refused_in_one_line(name):
    with pytest.raises(DataError, match=rf"^{name}: .*\b1\b") as raised:
        small(name).estimate(full(1, n=1, blocks=1), full(2), 0)
    assert "\n" not in str(raised.value)


OPTIONS = [
    ("kid", "subset_size", 1),
    ("kid", "subsets", 1),
    ("is", "splits", 0),
    ("precision", "k", 0),
    ("recall", "k", 0),
    ("density", "k", 0),
    ("coverage", "k", 0),
    ("fd-infinity", "points", 2),
]


def test_every_option_is_in_the_list():
    there = {(name, field) for name in own(measures) for field in measures.get(name).model_fields if field != "name"}
    assert there == {(name, field) for name, field, _ in OPTIONS}


@pytest.mark.parametrize(("name", "option", "bad"), OPTIONS)
def test_every_option_has_bounds_and_an_effect(name, option, bad):
    with pytest.raises(ValidationError, match=option):
        measures.parse({"name": name, option: bad})
    rng = np.random.default_rng(5)
    near = sample(rng.normal(0.5, 1, (60, 5)), softmax(rng.normal(size=(60, 3))), blocks=6)
    default = small(name)
    other = default.model_copy(update={option: getattr(default, option) - 1})
    assert default.estimate(near, full(2), 0).value != other.estimate(near, full(2), 0).value


def test_a_sample_is_of_n_images_throughout():
    side = full(1)
    for wrong in ({"n": 59}, {"features": side.features[1:]}, {"probabilities": side.probabilities[1:]}):
        with pytest.raises(ValueError, match=r"a sample of \d+ images has \w+ of \d+"):
            dataclasses.replace(side, **wrong)
    with pytest.raises(ValueError, match="spatial_blocks of 0"):
        dataclasses.replace(side, spatial_blocks=None)
    assert isinstance(hash(side), int)
    assert side != Sample(**{field.name: getattr(side, field.name) for field in dataclasses.fields(side)})


def test_intervals_of_shares_and_means():
    wilson = Estimate.share(0.8, (0.8 * 0.2 / 10) ** 0.5, 10)
    assert (wilson.low, wilson.high) == pytest.approx((0.49016, 0.94332), abs=1e-5)
    none, every = Estimate.share(0.0, 0.0, 100), Estimate.share(1.0, 0.0, 100)
    assert (none.low, none.high) == pytest.approx((0, 0.03699), abs=1e-5)
    assert (every.low, every.high) == pytest.approx((0.96301, 1), abs=1e-5)
    assert Estimate.share(1.0, 0.1, 100) == dataclasses.replace(every, error=0.1)
    assert Estimate.share(0.5, 0.1, 1000).high - 0.5 > 0.15  # as 25 draws, whatever n
    mean = Estimate.student(1.0, 0.5, 9, least=0.0)
    assert (mean.low, mean.high) == pytest.approx((0, 1 + 2.26216 * 0.5), abs=1e-5)
