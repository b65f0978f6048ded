"""Inception Score against its formula and its extremes."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from measure_samples import sample, softmax

from cmray.core.errors import DataError
from cmray.metrics.measures.base import measures


def score(probabilities, **options):
    side = sample(np.zeros((len(probabilities), 2)), probabilities, blocks=1)
    return measures.parse({"name": "is", **options}).estimate(side, None, 0)


def by_formula(p):
    marginal = p.mean(0)
    return np.exp(np.mean([sum(q * np.log(q / m) for q, m in zip(row, marginal, strict=True)) for row in p]))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(10, 60), classes=st.integers(2, 7), splits=st.integers(1, 10))
def test_equals_the_formula_per_split(seed, n, classes, splits):
    p = softmax(np.random.default_rng(seed).normal(0, 2, (n, classes))).astype(np.float32)
    exact = p.astype(np.float64)
    edges = [n * i // splits for i in range(splits + 1)]
    values = [by_formula(exact[a:b]) for a, b in pairwise(edges)]
    estimate = score(p, splits=splits)
    assert estimate.value == pytest.approx(np.mean(values), rel=1e-12)
    if splits > 1:
        assert estimate.error == pytest.approx(np.std(values, ddof=1) / splits**0.5, rel=1e-6, abs=1e-9)
        assert estimate.note == f"std over {splits} splits {np.std(values):.2g}"
    assert 1 - 1e-6 <= estimate.value <= classes + 1e-6


def test_extremes():
    sure = np.eye(5)[np.arange(100) % 5]  # zeros too: 0 log 0 is 0
    assert score(sure).value == pytest.approx(5, rel=1e-12)
    assert score(np.full((100, 5), 0.2)).value == pytest.approx(1, rel=1e-6)
    assert score(np.eye(5)[np.zeros(100, dtype=int)]).value == pytest.approx(1, rel=1e-12)
    half = np.repeat(np.eye(2), 50, axis=0)  # each of two consecutive splits knows one class only
    assert score(half, splits=1).value == pytest.approx(2, rel=1e-12)
    assert score(half, splits=2).value == pytest.approx(1, rel=1e-12)


def test_one_split_has_no_interval():
    estimate = score(np.eye(2)[np.arange(10) % 2], splits=1)
    assert (estimate.error, estimate.low, estimate.high, estimate.note) == (None, None, None, "")


def test_bad_input():
    with pytest.raises(DataError, match="is: splits=10 needs as many images; the sample has 9"):
        score(np.full((9, 2), 0.5))
    for bad in (np.full((20, 3), 0.5), np.tile([1.5, -0.5], (20, 1)), np.full((20, 2), np.nan)):
        with pytest.raises(DataError, match="is: probabilities of each image must be at least 0 and sum to 1"):
            score(bad)
