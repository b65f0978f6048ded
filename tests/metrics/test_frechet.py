"""The Fréchet distance against closed forms."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from cmray.metrics.frechet import frechet_distance
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
