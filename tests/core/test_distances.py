"""Pixel distances against numpy; what every registered distance promises."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cmray.core.distances import distances

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


FORMULAS = {"l2": numpy_l2, "l1": numpy_l1, "pseudo-huber": numpy_pseudo_huber}


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7)])
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


@pytest.mark.parametrize("name", distances.names())
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


@pytest.mark.parametrize("name", distances.names())
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
