"""Fréchet distances with intervals, in features and in spatial features, and at infinitely many samples."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from measure_samples import blocks_of, sample
from scipy.stats import linregress

from cmray.core.errors import DataError
from cmray.core.rng import numpy_generator
from cmray.metrics.frechet import covariance_root, frechet_distance
from cmray.metrics.measures.base import Sample, measures
from cmray.metrics.measures.fd import frechet_error
from cmray.metrics.measures.fd_infinity import full_blocks, line
from cmray.metrics.statistics import FeatureStatistics, merged

FD, SFID, INFINITY = (measures.parse(name) for name in ("fd", "sfid", "fd-infinity"))


def normal(seed, n, dim=6, mean=0.0, scale=1.0, blocks=20):
    return sample(np.random.default_rng(seed).normal(mean, scale, (n, dim)), blocks=blocks)


def exact(dim, mean=0.0, scale=1.0):
    """A reference that is N(mean, scale^2 I) itself."""
    n, mu = 10**6, np.full(dim, mean)
    outer = (n - 1) * scale**2 * np.eye(dim) + n * np.outer(mu, mu)
    statistics = FeatureStatistics.from_arrays({"n": np.array(n), "sum": n * mu, "outer": outer})
    return Sample(n, [statistics], statistics)


def test_the_value_is_the_distance_of_the_statistics():
    a, b = normal(0, 200, mean=0.3), normal(1, 300)
    assert FD.estimate(a, b, 0).value == frechet_distance(a.statistics, b.statistics)


@pytest.mark.parametrize("blocks", [10, 40])
@pytest.mark.parametrize(("mean", "scale"), [(0.3, 1.0), (0.05, 1.2), (0.0, 0.5)])
def test_the_error_is_the_spread_over_samples(mean, scale, blocks):
    reference = exact(6)
    estimates = [FD.estimate(normal(seed, 400, 6, mean, scale, blocks), reference, 0) for seed in range(80)]
    spread = np.std([e.value for e in estimates], ddof=1)
    assert np.mean([e.error for e in estimates]) == pytest.approx(spread, rel=0.25)
    centre = np.mean([e.value for e in estimates])
    assert np.mean([e.low <= centre <= e.high for e in estimates]) > 0.85


def test_the_error_is_not_too_small_for_fewer_images_than_features():
    reference = exact(40)
    estimates = [FD.estimate(normal(seed, 30, 40, 0.2, 1.2, 10), reference, 0) for seed in range(60)]
    spread = np.std([e.value for e in estimates], ddof=1)
    assert 0.8 < np.mean([e.error for e in estimates]) / spread < 2


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), cuts=st.lists(st.integers(1, 99), min_size=1, max_size=8, unique=True))
def test_blocks_of_any_sizes_in_any_order_give_one_error(seed, cuts):
    rng = np.random.default_rng(seed)
    rows, reference = rng.normal(0.2, 1, (100, 4)), normal(seed, 50, 4).statistics
    root, blocks = covariance_root(reference), []
    for part in np.split(rows, sorted(cuts)):
        blocks.extend(blocks_of(part, 1))
    total = merged(blocks)
    error = frechet_error(blocks, total, reference, root)
    assert frechet_error(blocks[::-1], total, reference, root) == pytest.approx(error, rel=1e-9)
    moved = blocks_of(rows + 50, 1)[0]
    far = frechet_error([moved], moved, reference, root)
    assert far is None  # one block says nothing about spread


def test_the_error_of_few_images_does_not_depend_on_where_zero_is():
    rng = np.random.default_rng(0)
    few, other = rng.normal(0.3, 1, (10, 20)), rng.normal(size=(100, 20))
    here = FD.estimate(sample(few, blocks=5), sample(other), 0).error
    there = FD.estimate(sample(few + 1000, blocks=5), sample(other + 1000), 0).error
    assert there == pytest.approx(here, rel=1e-3)


def test_the_error_is_that_of_leaving_blocks_out():
    a, b = normal(0, 20_000, 3, 0.3, 1.1, 40), exact(3)
    values = []
    for left in range(40):
        values.append(frechet_distance(merged([x for i, x in enumerate(a.blocks) if i != left]), b.statistics))
    jackknife = np.sqrt(39 / 40 * np.square(np.array(values) - np.mean(values)).sum())
    assert FD.estimate(a, b, 0).error == pytest.approx(jackknife, rel=0.01)


def test_few_images_are_noted_with_their_bias():
    reference = exact(6)
    notes = [FD.estimate(normal(seed, 400), reference, 0).note for seed in range(30)]
    assert all(note.startswith("n=400: biased upwards by about ") for note in notes)
    told = np.mean([float(note.split()[-1]) for note in notes])
    true = np.mean([FD.estimate(normal(seed, 400), reference, 0).value for seed in range(30)])
    assert told == pytest.approx(true, rel=0.3)  # the distance itself is 0, so the value is all bias
    assert FD.estimate(normal(0, 12, 6), reference, 0).note == "n=12: biased upwards"
    assert FD.estimate(normal(0, 400, blocks=1), reference, 0).note == "n=400: biased upwards"
    assert FD.estimate(normal(0, 10_000), reference, 0).note == ""


def test_a_single_block_has_no_interval():
    estimate = FD.estimate(normal(0, 100, blocks=1), exact(6), 0)
    assert (estimate.low, estimate.high, estimate.error) == (None, None, None)


def test_a_sample_against_itself():
    a = normal(0, 12_000, 6)
    estimate = FD.estimate(a, a, 0)
    assert estimate.value < 1e-6
    assert estimate.low == 0


def test_spatial_features_only():
    rng = np.random.default_rng(0)
    spatial = rng.normal(size=(200, 3))
    a, b = sample(rng.normal(size=(200, 5)), spatial=spatial), sample(rng.normal(9, 1, (200, 5)), spatial=spatial + 2)
    estimate = SFID.estimate(a, b, 0)
    assert estimate.value == pytest.approx(12, rel=1e-6)
    plain = FD.estimate(sample(spatial), sample(spatial + 2), 0)
    assert dataclasses.astuple(estimate)[:4] == pytest.approx(dataclasses.astuple(plain)[:4], rel=1e-6)
    other = sample(rng.normal(size=(9, 5)), spatial=rng.normal(size=(9, 4)))
    with pytest.raises(DataError, match="sfid: 3-d spatial features in the sample, 4-d in the reference"):
        SFID.estimate(a, other, 0)


@pytest.mark.parametrize("points", [3, 5, 20])
def test_the_intercept_and_its_error_are_those_of_least_squares(points):
    rng = np.random.default_rng(points)
    x = rng.uniform(0.001, 0.01, points)
    y = 3 + 40 * x + rng.normal(0, 0.05, points)
    found = linregress(x, y)
    assert line(x, y) == pytest.approx((found.intercept, found.intercept_stderr), rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("mean", "scale"), [(0.0, 1.0), (0.1, 1.2)])
def test_infinity_is_nearer_to_the_truth(mean, scale):
    dim, reference = 24, exact(24)
    truth = dim * (mean**2 + (scale - 1) ** 2)
    at_n, at_infinity, inside = [], [], []
    for seed in range(25):
        a = normal(seed, 1500, dim, mean, scale, blocks=15)
        at_n.append(FD.estimate(a, reference, 0).value)
        estimate = INFINITY.estimate(a, reference, 0)
        at_infinity.append(estimate.value)
        inside.append(estimate.low <= truth <= estimate.high)
    assert abs(np.mean(at_infinity) - truth) < 0.15 * abs(np.mean(at_n) - truth)
    assert np.square(np.array(at_infinity) - truth).mean() < np.square(np.array(at_n) - truth).mean()
    assert np.mean(inside) > 0.8


def test_infinity_depends_on_the_seed_only_a_little():
    a, reference = normal(0, 1500, 8, 0.2, blocks=30), exact(8)
    estimates = [INFINITY.estimate(a, reference, seed) for seed in range(10)]
    values = [e.value for e in estimates]
    assert len(set(values)) == 10
    assert np.std(values) < 0.5 * estimates[0].error
    assert estimates[0].note == "n=300 to 1,500"


def test_infinity_is_the_line_through_the_mean_distances_of_equal_groups():
    """Seven blocks of 100 in one, two (4 and 3) and three groups (3, 2 and 2)."""
    a, reference, points = (
        normal(3, 700, 4, 0.3, blocks=7),
        exact(4),
        measures.parse({"name": "fd-infinity", "points": 3}),
    )
    order = numpy_generator("fd-infinity", 5).permutation(7)
    cuts = [[7], [4, 3], [3, 2, 2]]
    x = [np.mean([1 / (100 * blocks) for blocks in sizes]) for sizes in cuts]
    y = []
    for sizes in cuts:
        groups = np.split(order, np.cumsum(sizes)[:-1])
        y.append(np.mean([frechet_distance(merged([a.blocks[i] for i in g]), reference.statistics) for g in groups]))
    assert points.estimate(a, reference, 5).value == pytest.approx(linregress(x, y).intercept, rel=1e-9)


def test_infinity_wants_enough_blocks_and_says_where_the_line_bends():
    with pytest.raises(DataError, match=r"fd-infinity: points=5 needs as many blocks of images; the sample has 4"):
        INFINITY.estimate(normal(0, 100, blocks=4), exact(6), 0)
    with pytest.raises(DataError, match="points=5 leaves 1 image in a group"):
        INFINITY.estimate(normal(0, 9, blocks=5), exact(6), 0)
    assert "not straight: groups are smaller than the 6 features" in INFINITY.estimate(normal(0, 25), exact(6), 0).note


@pytest.mark.parametrize("left", [1, 4, 31])
def test_a_last_block_of_a_few_images_does_not_decide_the_line(left):
    whole, reference = normal(0, 1280, 8, 0.2, blocks=20), exact(8)
    more = normal(1, left, 8, 0.2, blocks=1)
    blocks = [*whole.blocks, *more.blocks]
    longer = Sample(1280 + left, blocks, merged(blocks))
    assert [b.n for b in full_blocks(blocks)] == [64] * 19 + [64 + left]
    before, after = (INFINITY.estimate(s, reference, 0) for s in (whole, longer))
    assert abs(after.value - before.value) < 0.5 * before.error
    assert after.note.startswith("n=256")
    assert [b.n for b in full_blocks(normal(0, 96, 8, blocks=3).blocks)] == [32, 32, 32]
