"""Precision, recall, density and coverage on sets whose overlap is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from measure_samples import sample

from cmray.core.errors import DataError
from cmray.metrics.measures import neighbours
from cmray.metrics.measures.base import measures

NAMES = ("precision", "recall", "density", "coverage")


def values(a, b, **options):
    a, b = sample(a, blocks=1), sample(b, blocks=1)
    return {name: measures.parse({"name": name, **options}).estimate(a, b, 0).value for name in NAMES}


def cloud(seed, n=200, dim=6, mean=0.0):
    return np.random.default_rng(seed).normal(mean, 1, (n, dim)).astype(np.float32)


def by_loops(x, y, k):
    """Generated x, real y, one pair at a time."""

    def radius(rows, i):
        return sorted(np.linalg.norm(rows[i] - rows[j]) for j in range(len(rows)) if j != i)[k - 1]

    real, fake = [radius(y, i) for i in range(len(y))], [radius(x, i) for i in range(len(x))]
    d = [[np.linalg.norm(a - b) for b in y] for a in x]
    both = range(len(x)), range(len(y))
    return {
        "precision": np.mean([any(d[i][j] <= real[j] for j in both[1]) for i in both[0]]),
        "recall": np.mean([any(d[i][j] <= fake[i] for i in both[0]) for j in both[1]]),
        "density": sum(d[i][j] < real[j] for i in both[0] for j in both[1]) / (k * len(x)),
        "coverage": np.mean([any(d[i][j] < real[j] for i in both[0]) for j in both[1]]),
    }


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(5, 20), m=st.integers(5, 20), k=st.integers(1, 4))
def test_equals_the_loops(seed, n, m, k):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(0.5, 1, (n, 3)).astype(np.float32), rng.normal(size=(m, 3)).astype(np.float32)
    assert values(x, y, k=k) == pytest.approx(by_loops(x.astype(float), y.astype(float), k), abs=1e-12)
    order = rng.permutation(n)
    assert values(x[order], y, k=k) == pytest.approx(values(x, y, k=k), abs=1e-12)


def test_disjoint_sets_share_nothing():
    assert values(cloud(0), cloud(1, mean=100)) == dict.fromkeys(NAMES, 0)


@pytest.mark.parametrize("far", [0, 1000])
def test_a_set_is_all_of_itself(far):
    assert values(cloud(0) + far, cloud(0) + far) == dict.fromkeys(NAMES, 1)


def test_half_an_overlap():
    # 100 of 200 generated images are real ones; the other halves lie far from each other and from these
    shared, mine, theirs = cloud(0, 100), cloud(1, 100, mean=100), cloud(2, 100, mean=-100)
    got = values(np.concatenate([shared, mine]), np.concatenate([theirs, shared]))
    assert got == dict.fromkeys(NAMES, 0.5)


def test_a_subset_is_precise_and_a_superset_recalls():
    few, more = cloud(0, 50), np.concatenate([cloud(0, 50), cloud(1, 50, mean=100)])
    a, b = values(few, more), values(more, few)
    assert (a["precision"], a["recall"], a["density"], a["coverage"]) == (1, 0.5, 1, 0.5)
    assert (b["precision"], b["recall"], b["density"], b["coverage"]) == (0.5, 1, 0.5, 1)


def test_an_outlier_fools_precision_but_not_density():
    real = np.concatenate([cloud(0), np.full((1, 6), 50, dtype=np.float32)])  # its ball reaches back to the cloud
    fake = cloud(1) * 0.1 + 25
    got = values(fake, real)
    assert got["precision"] == 1
    assert got["density"] == pytest.approx(1 / 5)
    assert got["coverage"] == pytest.approx(1 / 201)


def test_equal_distributions_reach_what_the_papers_say():
    k, n, m = 5, 400, 300
    gone = np.prod([(n - i) / (m + n - i) for i in range(1, k + 1)])
    runs = [values(cloud(2 * i, m), cloud(2 * i + 1, n), k=k) for i in range(10)]
    assert np.mean([r["coverage"] for r in runs]) == pytest.approx(1 - gone, abs=0.015)
    assert np.mean([r["density"] for r in runs]) == pytest.approx(1, abs=0.03)


def test_images_that_are_all_the_same():
    one = np.tile(cloud(0, 1), (20, 1))
    got = values(one, one)
    assert (got["precision"], got["recall"]) == (1, 1)  # balls of radius 0 that hold their centre
    assert (got["density"], got["coverage"]) == (0, 0)  # whose surface is outside


def test_the_surface_of_a_ball():
    real, fake = np.array([[0.0], [1], [3]]), np.array([[-1.0], [-1]])  # balls of radius 1, 1 and 2, k = 1
    got = values(fake, real, k=1)
    assert (got["precision"], got["density"], got["coverage"]) == (1, 0, 0)
    assert values(real, np.array([[-2.0], [9]]), k=1)["recall"] == 0
    assert values(real, np.array([[-1.0], [5]]), k=1)["recall"] == 1


def test_copies_of_images_are_at_distance_zero():
    copies = np.repeat(cloud(0, 10, 500), 8, axis=0) + 3
    assert (neighbours.nearest_squared(copies, 7) == 0).all()
    assert values(copies[::8].repeat(2, axis=0), copies)["precision"] == 1


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_chunks_change_nothing(chunk):
    x, y = cloud(0, 130), cloud(1, 90)
    y[:40] = x[:40]
    radii = neighbours.nearest_squared(y, 4)
    np.testing.assert_allclose(neighbours.nearest_squared(y, 4, chunk), radii, rtol=1e-12)
    for closed in (False, True):
        whole = neighbours.in_balls(x, y, radii[:, 3], closed)
        for got, wanted in zip(neighbours.in_balls(x, y, radii[:, 3], closed, chunk), whole, strict=True):
            np.testing.assert_array_equal(got, wanted)


def test_no_whole_matrix_is_held():
    import tracemalloc

    x, y = cloud(0, 3000, 4), cloud(1, 3000, 4)
    radii = np.full(3000, 0.5)
    tracemalloc.start()
    neighbours.nearest_squared(x, 3, chunk=100)
    neighbours.in_balls(x, y, radii, True, chunk=100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3000 * 3000 * 8 / 20


def test_neighbours_are_kept_with_their_side(monkeypatch):
    calls, plain = [], neighbours.nearest_squared
    monkeypatch.setattr(neighbours, "nearest_squared", lambda x, k: calls.append(k) or plain(x, k))
    a, b = sample(cloud(0)), sample(cloud(1))
    expected = by_loops(a.features.astype(float)[:30], b.features.astype(float)[:30], 2)
    for k in (2, 3, 5, 7, 1):
        for name in ("precision", "density", "coverage"):
            measures.parse({"name": name, "k": k}).estimate(a, b, 0)
    assert calls == [5, 7]
    few = sample(a.features[:30]), sample(b.features[:30])
    for name in NAMES:
        measures.parse({"name": name, "k": 9}).estimate(*few, 0)
        assert measures.parse({"name": name, "k": 2}).estimate(*few, 0).value == pytest.approx(expected[name])


@pytest.mark.parametrize("name", NAMES)
def test_the_error_is_the_spread_over_samples(name):
    measure, reference = measures.parse(name), sample(cloud(0, 400))
    estimates = [measure.estimate(sample(cloud(seed, 400, mean=0.4)), reference, 0) for seed in range(1, 61)]
    spread = np.std([e.value for e in estimates], ddof=1)
    assert 0.75 < np.mean([e.error for e in estimates]) / spread < 1.5


@pytest.mark.parametrize(("name", "side"), [("precision", 1), ("recall", 0), ("density", 1), ("coverage", 1)])
def test_too_few_images(name, side):
    pair = [sample(cloud(0, 20)), sample(cloud(1, 20))]
    pair[side] = sample(cloud(2, 4), blocks=1)
    called = ("sample", "reference")[side]
    with pytest.raises(DataError, match=f"{name}: k=4 needs at least 5 images; the {called} has 4"):
        measures.parse({"name": name, "k": 4}).estimate(*pair, 0)
