"""Pixel distances against numpy; what every registered distance promises."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cmray.core.distances import DistanceConfig, distances
from cmray.core.errors import CmrayError

CPU = torch.device("cpu")
SHAPE = (1, 8, 8)  # the shape that the digits features take too


def image_pair(batch, shape=SHAPE, seed=0):
    g = torch.Generator().manual_seed(seed)
    return (torch.rand((batch, *shape), generator=g) * 2 - 1 for _ in range(2))


def numpy_l2(a, b):
    return [np.mean((x - y) ** 2) for x, y in zip(a, b, strict=True)]


def numpy_l1(a, b):
    return [np.mean(np.abs(x - y)) for x, y in zip(a, b, strict=True)]


def numpy_pseudo_huber(a, b):
    c = 0.00054 * math.sqrt(a[0].size)
    return [np.sqrt(np.sum((x - y) ** 2) + c**2) - c for x, y in zip(a, b, strict=True)]


def numpy_linf(a, b):
    return [np.max(np.abs(x - y)) for x, y in zip(a, b, strict=True)]


def bilinear(size, out=32):
    """[out, size]: output i reads the two inputs around (i + 1/2) size / out - 1/2, clamped to the edge."""
    matrix = np.zeros((out, size))
    for i in range(out):
        at = max((i + 0.5) * size / out - 0.5, 0.0)
        low = int(at)
        matrix[i, low] += 1 - (at - low)
        matrix[i, min(low + 1, size - 1)] += at - low
    return matrix


def numpy_l2_at_32(a, b):
    rows, columns = bilinear(a.shape[2]), bilinear(a.shape[3])
    return numpy_l2(rows @ a @ columns.T, rows @ b @ columns.T)


FORMULAS = {
    "l2": numpy_l2,
    "l1": numpy_l1,
    "linf": numpy_linf,
    "l2-32": numpy_l2_at_32,
    "pseudo-huber": numpy_pseudo_huber,
}


def usable():
    """Every registered distance. One that lacks a file on this machine is skipped, with what `check` says."""
    for name in distances.names():
        try:
            distances.parse(name).check(SHAPE)
            yield name
        except CmrayError as error:
            yield pytest.param(name, marks=pytest.mark.skip(reason=str(error)))


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7), (3, 32, 32), (1, 64, 48)])
def test_formula(name, shape):
    a, b = image_pair(4, shape)
    expected = FORMULAS[name](a.double().numpy(), b.double().numpy())
    assert distances.parse(name).build(CPU)(a, b).tolist() == pytest.approx(expected, rel=1e-5)


@given(scale=st.floats(1e-4, 1))
def test_pseudo_huber_is_accurate_for_near_equal_images(scale):
    a, b = image_pair(2)
    b = a + scale * 0.01 * b
    expected = numpy_pseudo_huber(a.double().numpy(), b.double().numpy())
    assert distances.parse("pseudo-huber").build(CPU)(a, b).tolist() == pytest.approx(expected, rel=1e-3)


def test_pseudo_huber_is_quadratic_near_zero_and_linear_far_away():
    d = distances.parse({"name": "pseudo-huber", "factor": 1.0}).build(CPU)  # c = 8 for 64 values
    zero, unit = torch.zeros(1, *SHAPE), torch.ones(1, *SHAPE) / 8  # |unit| = 1
    assert d(zero, 1e-2 * unit).item() == pytest.approx(1e-4 / 16, rel=1e-2)
    assert d(zero, 1e4 * unit).item() == pytest.approx(1e4 - 8, rel=1e-5)


def test_pseudo_huber_with_factor_0_is_the_norm():
    config = distances.parse({"name": "pseudo-huber", "factor": 0})
    a, b = image_pair(3)
    a[1] = b[1]
    a.requires_grad_()
    d = config.build(CPU)(a, b)
    torch.testing.assert_close(d, (a - b).flatten(1).norm(dim=1))
    d.sum().backward()
    lengths = a.grad.flatten(1).norm(dim=1)
    assert lengths.tolist() == pytest.approx([1, 0, 1])
    assert not config.is_smooth


@pytest.mark.parametrize("name", list(usable()))
def test_zero_at_equality_positive_elsewhere_and_one_value_a_sample(name):
    d = distances.parse(name).build(CPU)
    a, b = image_pair(5)
    assert torch.equal(d(a, a), torch.zeros(5))
    assert d(a, b).shape == (5,)
    assert d(a, b).dtype == torch.float32
    assert (d(a, b) > 0).all()
    other = b.clone()
    other[2] = -other[2]
    changed = d(a, other) != d(a, b)
    assert changed.tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("size", range(1, 20))
def test_pseudo_huber_is_zero_at_equality_for_every_image_size(size):
    a, _ = image_pair(2, (3, size, size))
    assert torch.equal(distances.parse("pseudo-huber").build(CPU)(a, a), torch.zeros(2))


@pytest.mark.parametrize("name", list(usable()))
def test_the_gradient_is_finite_at_equality_and_descends_elsewhere(name):
    d = distances.parse(name).build(CPU)
    a, b = image_pair(3)
    at_b = b.clone().requires_grad_()
    d(at_b, b).sum().backward()
    assert at_b.grad.isfinite().all()
    leaf = a.clone().requires_grad_()
    d(leaf, b).sum().backward()
    with torch.no_grad():
        assert (d(a - 1e-3 * leaf.grad, b) < d(a, b)).all()


def test_l2_at_32_is_l2_at_32_pixels_and_that_of_block_means_at_64():
    d, l2 = (distances.parse(name).build(CPU) for name in ("l2-32", "l2"))
    a, b = image_pair(3, (3, 32, 32))
    torch.testing.assert_close(d(a, b), l2(a, b))
    a, b = image_pair(3, (3, 64, 64))
    blocks = [x.unflatten(3, (32, 2)).unflatten(2, (32, 2)).mean((3, 5)) for x in (a, b)]
    torch.testing.assert_close(d(a, b), l2(*blocks))


@pytest.mark.parametrize("name", list(usable()))
def test_smooth_distances_are_quadratic_around_equality_and_no_others(name):
    config = distances.parse(name)
    d = config.build(CPU)
    b, direction = image_pair(4)
    a = b + 1e-4 * direction
    ratio = d(b + 2e-4 * direction, b) / d(a, b)
    assert ratio.tolist() == pytest.approx([4.0 if config.is_smooth else 2.0] * 4, rel=0.05)


def test_a_config_is_smooth_has_no_features_and_fits_every_image_unless_it_says_otherwise():
    base = DistanceConfig()
    assert base.is_smooth
    assert base.features is None
    assert base.check((7, 1, 3)) is None
    with pytest.raises(TypeError, match="DistanceConfig does not define build"):
        base.build(CPU)
