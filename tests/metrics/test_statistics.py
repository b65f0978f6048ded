"""Feature statistics: merging in parts is the same as counting whole."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmray.core.errors import DataError
from cmray.metrics.statistics import FeatureStatistics


def gather(features):
    statistics = FeatureStatistics(features.shape[1])
    statistics.update(features)
    return statistics


def gather_parts(parts, dim):
    total = FeatureStatistics(dim)
    for part in parts:
        total.merge(gather(part))
    return total


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(2, 40), dim=st.integers(1, 6), data=st.data())
def test_any_split_in_any_order_merges_to_the_whole(seed, n, dim, data):
    features = np.random.default_rng(seed).normal(3, 2, (n, dim))
    cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=5)))
    parts = np.split(features, cuts)
    whole, forward, backward = gather(features), gather_parts(parts, dim), gather_parts(parts[::-1], dim)
    for merged in (forward, backward):
        assert merged.n == n
        np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12)
        np.testing.assert_allclose(merged.covariance, whole.covariance, rtol=1e-9, atol=1e-11)
    assert gather_parts(parts, dim).sha256() == forward.sha256()


def test_mean_and_covariance_are_numpys():
    features = np.random.default_rng(0).normal(5, 0.1, (200, 4))
    statistics = gather(features)
    np.testing.assert_allclose(statistics.mean, features.mean(0), rtol=1e-12)
    np.testing.assert_allclose(statistics.covariance, np.cov(features.T), rtol=1e-8)
    np.testing.assert_array_equal(statistics.covariance, statistics.covariance.T)


def test_float32_features_add_up_in_float64():
    features = torch.full((1000, 1), 16777217.0, dtype=torch.float64)
    features[::2] = 1.0
    statistics = FeatureStatistics(1)
    for row in features.float().split(1):
        statistics.update(row)
    assert statistics.sum[0] == features.float().double().sum().item()


def test_features_of_double_precision_keep_it():
    features = torch.tensor([[1.0, 3.0], [1.0 + 2**-40, 5.0]], dtype=torch.float64)
    assert gather(features).sum.tolist() == [2 + 2**-40, 8]
    assert gather(features).sha256() == gather(features.numpy()).sha256()


def test_merge_leaves_the_other_side_alone():
    a, b = gather(np.ones((3, 2))), gather(np.zeros((4, 2)))
    before = b.sha256()
    a.merge(b)
    assert a.n == 7
    assert b.sha256() == before


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_broken_features_are_counted_and_add_nothing(bad):
    statistics = gather(np.ones((3, 2)))
    before = statistics.sha256()
    features = torch.zeros(5, 2)
    features[1, 0] = features[1, 1] = features[4, 1] = bad
    with pytest.raises(DataError, match="2 of 5 feature vectors hold NaN or infinite values"):
        statistics.update(features)
    assert statistics.sha256() == before


def test_arrays_round_trip_and_damage_is_refused():
    statistics = gather(np.random.default_rng(1).normal(size=(9, 3)))
    arrays = statistics.to_arrays()
    assert FeatureStatistics.from_arrays(arrays).sha256() == statistics.sha256()
    with pytest.raises(DataError, match="lack sum"):
        FeatureStatistics.from_arrays({"n": arrays["n"], "outer": arrays["outer"]})
    with pytest.raises(DataError, match=r"\[3\] and \[2, 3\]"):
        FeatureStatistics.from_arrays({**arrays, "outer": arrays["outer"][:2]})
    with pytest.raises(DataError, match="NaN"):
        FeatureStatistics.from_arrays({**arrays, "sum": arrays["sum"] * np.nan})


def test_sha256_tells_every_part_of_the_content():
    statistics = gather(np.random.default_rng(1).normal(size=(9, 3)))
    arrays = statistics.to_arrays()
    changed = [{**arrays, key: arrays[key] + 1} for key in arrays]
    digests = {FeatureStatistics.from_arrays(a).sha256() for a in [arrays, *changed]}
    assert len(digests) == 4


def test_misuse_is_refused():
    statistics = FeatureStatistics(2)
    with pytest.raises(ValueError, match=r"\[4, 3\] where \[B, 2\]"):
        statistics.update(np.zeros((4, 3)))
    with pytest.raises(ValueError, match="3-d features into 2-d"):
        statistics.merge(FeatureStatistics(3))
    with pytest.raises(ValueError, match="no mean"):
        _ = statistics.mean
    statistics.update(np.zeros((1, 2)))
    with pytest.raises(ValueError, match="at least 2 samples"):
        _ = statistics.covariance
