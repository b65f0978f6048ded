"""The Fréchet distance against closed forms."""

import numpy as np
import pytest
from cleanfid.fid import frechet_distance as clean_fid
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from cmray.metrics.frechet import covariance_root, frechet_distance, frechet_gradient
from cmray.metrics.statistics import FeatureStatistics


def gaussian(mean, covariance, n=1000):
    """Statistics with exactly this mean and covariance."""
    mean = np.asarray(mean, dtype=np.float64)
    outer = (n - 1) * np.asarray(covariance) + n * np.outer(mean, mean)
    return FeatureStatistics.from_arrays({"n": np.array(n), "sum": n * mean, "outer": outer})


def random_covariance(rng, dim):
    root = rng.normal(size=(dim, dim))
    return root @ root.T


@pytest.mark.parametrize("seed", range(5))
def test_gaussians_with_covariances_that_do_not_commute(seed):
    rng = np.random.default_rng(seed)
    s1, s2 = random_covariance(rng, 6), random_covariance(rng, 6)
    assert np.abs(s1 @ s2 - s2 @ s1).max() > 1
    m1, m2 = rng.normal(size=(2, 6))
    expected = np.square(m1 - m2).sum() + np.trace(s1 + s2 - 2 * np.real(sqrtm(s1 @ s2)))
    a, b = gaussian(m1, s1), gaussian(m2, s2)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


def test_diagonal_covariances():
    a, b = gaussian([0, 0, 0], np.diag([1.0, 4.0, 9.0])), gaussian([1, 0, 2], np.diag([4.0, 4.0, 1.0]))
    assert frechet_distance(a, b) == pytest.approx(5 + (1 - 2) ** 2 + 0 + (3 - 1) ** 2, rel=1e-12)


@pytest.mark.parametrize("n", [5, 500])  # 5 samples of 8 features: a singular covariance
def test_identical_shifted_and_scaled(n):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(n, 8))
    shift = rng.normal(size=8)

    def statistics(values):
        out = FeatureStatistics(8)
        out.update(values)
        return out

    base = statistics(features)
    trace = np.trace(base.covariance)
    assert 0 <= frechet_distance(base, base) < 1e-6 * trace
    moved = frechet_distance(base, statistics(features + shift))
    assert moved == pytest.approx(np.square(shift).sum(), rel=1e-6)
    other = statistics(rng.normal(1, 2, size=(n, 8)))
    scaled = FeatureStatistics.from_arrays({"n": base.to_arrays()["n"], "sum": 3 * base.sum, "outer": 9 * base.outer})
    expected = 4 * (trace + np.square(base.mean).sum())  # (3 - 1)^2 times the second moment
    assert frechet_distance(base, scaled) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(base, other) > 0


def test_different_dimensions_and_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="2-d and 3-d"):
        frechet_distance(gaussian(np.zeros(2), np.eye(2)), gaussian(np.zeros(3), np.eye(3)))
    with pytest.raises(ValueError, match="at least 2 samples a side, there are 1000 and 1"):
        frechet_distance(gaussian(np.zeros(2), np.eye(2)), gaussian(np.zeros(2), np.eye(2), n=1))


def gathered(features):
    out = FeatureStatistics(features.shape[1])
    out.update(features)
    return out


def spread(seed, n, dim, mean=0.0):
    """Statistics of features whose variances fall over six decades along rotated axes."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    return gathered(rng.normal(mean, 1, (n, dim)) * np.logspace(0, -3, dim) @ axes)


@pytest.mark.parametrize(("n1", "n2"), [(400, 500), (30, 500), (500, 30), (20, 25), (64, 65), (65, 64)])
def test_equals_clean_fid_and_sqrtm_also_for_fewer_samples_than_features(n1, n2):
    a, b = spread(0, n1, 64, mean=0.1), spread(1, n2, 64)
    ours = frechet_distance(a, b)
    theirs = clean_fid(a.mean, a.covariance, b.mean, b.covariance)
    root = sqrtm(a.covariance)  # of a symmetric matrix, so the closed form holds without a singular product
    plain = np.square(a.mean - b.mean).sum() + np.trace(a.covariance + b.covariance)
    plain -= 2 * np.real(np.trace(sqrtm(root @ b.covariance @ root)))
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert ours == pytest.approx(plain, rel=1e-6)
    assert frechet_distance(b, a) == pytest.approx(ours, rel=1e-8)


@pytest.mark.parametrize("n", [20, 300])
def test_a_root_kept_gives_the_same_distance(n):
    reference = spread(0, 200, 32)
    root = covariance_root(reference)
    for seed in range(1, 4):
        a = spread(seed, n, 32, mean=0.2)
        assert frechet_distance(a, reference, root) == frechet_distance(a, reference)
    with pytest.raises(ValueError, match="root is of 32-d features, the statistics are of 2-d"):
        frechet_distance(gaussian(np.zeros(2), np.eye(2)), gaussian(np.zeros(2), np.eye(2)), root)


@pytest.mark.parametrize("mean", [0, 3000])  # far from 0, the covariance is rounded and looks of full rank
@pytest.mark.parametrize("n", [5, 40])
def test_the_root_gives_the_covariance_and_its_rank(n, mean):
    statistics = spread(0, n, 12, mean)
    root = covariance_root(statistics)
    assert root.rank == min(n - 1, 12)
    back = np.empty((12, 12))
    back[np.ix_(root.order, root.order)] = root.factor @ root.factor.T
    np.testing.assert_allclose(back, statistics.covariance, atol=1e-14 if not mean else 1e-6)


def test_equal_images_and_constant_features():
    varied = np.random.default_rng(0).normal(size=(50, 6))
    same = np.tile(varied[:1], (50, 1))
    dead = varied * [1, 1, 0, 1, 0, 1]
    a, point = gathered(varied), gathered(np.zeros((50, 6)))
    assert covariance_root(point).rank == 0
    assert frechet_distance(point, point) == 0
    expected = np.square(varied.mean(0) - varied[0]).sum() + np.trace(a.covariance)
    for left, right in ((a, gathered(same)), (gathered(same), a)):
        assert frechet_distance(left, right) == pytest.approx(expected, rel=1e-7)
    at_zero = np.square(varied.mean(0)).sum() + np.trace(a.covariance)
    assert frechet_distance(a, point) == pytest.approx(at_zero, rel=1e-12)
    assert frechet_distance(point, a) == pytest.approx(at_zero, rel=1e-12)
    assert covariance_root(gathered(dead)).rank == 4
    assert frechet_distance(gathered(dead), gathered(dead + 3 * np.eye(6)[2])) == pytest.approx(9, rel=1e-6)


@pytest.mark.parametrize(("n", "other"), [(60, 60), (6, 60), (60, 6)])
def test_gradient_is_the_slope(n, other):
    rng = np.random.default_rng(3)
    features, b = rng.normal(0.3, 1.5, (n, 8)), gathered(rng.normal(size=(other, 8)))
    direction = rng.normal(size=(n, 8))
    if n <= 8:  # stay within the span of the samples
        direction = rng.normal(size=(n, n)) @ (features - features.mean(0))
    direction += features  # away from b, so that the slope is not near 0
    a = gathered(features)
    by_mean, by_covariance = frechet_gradient(a, b)
    np.testing.assert_array_equal(by_covariance, by_covariance.T)
    step = 1e-5
    up, down = gathered(features + step * direction), gathered(features - step * direction)
    slope = (frechet_distance(up, b) - frechet_distance(down, b)) / (2 * step)
    d_mean = (up.mean - down.mean) / (2 * step)
    d_covariance = (up.covariance - down.covariance) / (2 * step)
    assert abs(slope) > 0.1
    assert by_mean @ d_mean + (by_covariance * d_covariance).sum() == pytest.approx(slope, rel=1e-4)


seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=40, deadline=None)
@given(seed=seeds, n=st.integers(2, 60), dim=st.integers(1, 12), shift=st.floats(-5, 5), scale=st.floats(0.2, 5))
def test_laws_of_the_distance(seed, n, dim, shift, scale):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(shift, scale, (n, dim)), rng.normal(size=(n + 5, dim))
    axes = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    a, b = gathered(x), gathered(y)
    size = np.trace(a.covariance) + np.trace(b.covariance) + np.square(a.mean - b.mean).sum()
    d = frechet_distance(a, b)
    near = {"rel": 1e-6, "abs": 1e-7 * size}
    assert 0 <= d <= size * (1 + 1e-12)
    assert d >= np.square(a.mean - b.mean).sum() - 1e-7 * size
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6 * size)
    assert frechet_distance(b, a) == pytest.approx(d, **near)
    assert frechet_distance(gathered(x[rng.permutation(n)]), b) == pytest.approx(d, **near)
    assert frechet_distance(gathered(x + 3), gathered(y + 3)) == pytest.approx(d, **near)
    assert frechet_distance(gathered(x @ axes), gathered(y @ axes)) == pytest.approx(d, **near)
    assert frechet_distance(gathered(2 * x), gathered(2 * y)) == pytest.approx(4 * d, **near)
