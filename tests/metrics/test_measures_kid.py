"""Kernel distance: the estimator, its subsets and its error."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from measure_samples import sample

from cmray.core.errors import DataError
from cmray.metrics.measures.base import measures
from cmray.metrics.measures.kid import mmd2


def kid(**options):
    return measures.parse({"name": "kid", **options})


def by_loops(x, y):
    m, dim = x.shape

    def k(a, b):
        return (sum(p * q for p, q in zip(a, b, strict=True)) / dim + 1) ** 3

    same = sum(k(s[i], s[j]) for s in (x, y) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return same - 2 * sum(k(a, b) for a in x for b in y) / m**2


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), m=st.integers(2, 9), dim=st.integers(1, 5))
def test_equals_the_double_loop(seed, m, dim):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(0.5, 1, (m, dim)), rng.normal(size=(m, dim))
    assert mmd2(x, y) == pytest.approx(by_loops(x, y), rel=1e-10, abs=1e-10)
    assert mmd2(y, x) == pytest.approx(mmd2(x, y), rel=1e-10, abs=1e-10)
    order = rng.permutation(m)
    assert mmd2(x[order], y[order[::-1]]) == pytest.approx(mmd2(x, y), rel=1e-9, abs=1e-10)


def test_one_whole_subset_is_the_double_loop():
    rng = np.random.default_rng(0)
    a, b = sample(rng.normal(size=(12, 3))), sample(rng.normal(0.4, 1, (12, 3)))
    estimate = kid(subset_size=12, subsets=3).estimate(a, b, 0)
    assert estimate.value == pytest.approx(by_loops(a.features.astype(float), b.features.astype(float)), rel=1e-10)
    assert (estimate.error, estimate.low, estimate.high) == (None, None, None)
    assert estimate.note == "no interval: subset_size is all images of a side"


@pytest.mark.parametrize("m", [5, 40])
def test_is_unbiased_for_equal_distributions(m):
    rng = np.random.default_rng(1)
    values = [mmd2(rng.normal(size=(m, 4)), rng.normal(size=(m, 4))) for _ in range(3000)]
    error = np.std(values) / len(values) ** 0.5
    assert abs(np.mean(values)) < 4 * error
    biased = np.mean(values) + 2 * ((4 / 4 + 1) ** 3 - 1) / m  # about what the diagonal would add
    assert biased > 20 * error  # so this test can see it


def test_known_value_of_a_shift():
    # D = 1, x ~ N(s, 1), y ~ N(0, 1): E k(x, y) = 1 + 3 mx my + 3 mx2 my2 + mx3 my3 in raw moments
    s = 0.7
    x1, x2, x3 = s, s**2 + 1, s**3 + 3 * s
    truth = (1 + 3 * x1**2 + 3 * x2**2 + x3**2) + (1 + 3) - 2 * (1 + 3 * x2)
    rng = np.random.default_rng(2)
    a, b = sample(rng.normal(s, 1, (20_000, 1))), sample(rng.normal(size=(20_000, 1)))
    estimate = kid(subset_size=500, subsets=40).estimate(a, b, 0)
    assert estimate.low < truth < estimate.high
    assert estimate.value == pytest.approx(truth, rel=0.1)


@pytest.mark.parametrize("subset_size", [25, 100])  # of 200 images: subsets that hardly and that much overlap
def test_the_error_is_the_spread_over_samples(subset_size):
    measure, values, errors = kid(subset_size=subset_size, subsets=20), [], []
    for seed in range(80):
        rng = np.random.default_rng(seed)
        estimate = measure.estimate(sample(rng.normal(0.5, 1, (200, 4))), sample(rng.normal(size=(200, 4))), 0)
        values.append(estimate.value)
        errors.append(estimate.error)
    assert np.mean(errors) == pytest.approx(np.std(values, ddof=1), rel=0.25)


def test_the_seed_chooses_the_subsets():
    rng = np.random.default_rng(3)
    a, b, measure = sample(rng.normal(size=(50, 3))), sample(rng.normal(size=(60, 3))), kid(subset_size=20, subsets=4)
    assert measure.estimate(a, b, 0) == measure.estimate(a, b, 0)
    assert measure.estimate(a, b, 0).value != measure.estimate(a, b, 1).value
    # more subsets go on where fewer stopped, so they share the first ones
    one, two = (np.array([kid(subset_size=20, subsets=n).estimate(a, b, 0).value * n]) for n in (4, 5))
    assert abs(two - one) < 0.5


@pytest.mark.parametrize(("n", "m"), [(19, 50), (50, 19)])
def test_too_few_images(n, m):
    a, b = sample(np.zeros((n, 2))), sample(np.zeros((m, 2)))
    found = f"kid: subset_size=20 needs as many images on each side; the sample has {n} and the reference {m}"
    with pytest.raises(DataError, match=found):
        kid(subset_size=20).estimate(a, b, 0)
