"""The distance in features of a frozen network."""

import pytest
import torch
from pydantic import ValidationError

from cmray.core.distances import distances
from cmray.core.errors import DataError
from cmray.metrics.digits_cnn import digits_images
from cmray.metrics.extractors import extractors

CPU = torch.device("cpu")


def leaves(node):
    """The tensors that backward from `node` would accumulate gradients into."""
    if node is None:
        return []
    if hasattr(node, "variable"):
        return [node.variable]
    return [leaf for child, _ in node.next_functions for leaf in leaves(child)]


@pytest.fixture
def pair():
    images = digits_images()[0].float() / 127.5 - 1
    return images[:16], images[16:32]


def test_zero_for_equal_and_positive_for_different_images(pair):
    a, b = pair
    distance = distances.parse("features").build(CPU)
    assert torch.equal(distance(a, a), torch.zeros(16))
    assert distance(a, b).shape == (16,)
    assert (distance(a, b) > 0.01).all()
    torch.testing.assert_close(distance(a, b), distance(b, a))


def test_it_is_the_documented_formula(pair):
    a, b = pair
    extractor = extractors.parse("digits").build(CPU)
    expected = 0.5 * (a - b).square().mean((1, 2, 3))
    for fa, fb in zip(extractor.features(a), extractor.features(b), strict=True):
        similarity = torch.nn.functional.cosine_similarity(fa, fb, dim=1)
        expected = expected + (2 - 2 * similarity).mean((1, 2))
    actual = distances.parse({"name": "features", "pixel_weight": 0.5}).build(CPU)(a, b)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pixel_weight", [0.0, 0.5])
def test_the_gradient_reaches_the_first_argument_only(pair, pixel_weight):
    a, b = (x.clone().requires_grad_() for x in pair)
    total = distances.parse({"name": "features", "pixel_weight": pixel_weight}).build(CPU)(a, b).sum()
    # A weight of the network that asked for a gradient would be a leaf of the graph too.
    assert {id(leaf) for leaf in leaves(total.grad_fn)} == {id(a)}
    total.backward()
    assert a.grad is not None
    assert (a.grad.flatten(1).norm(dim=1) > 0).all()
    assert b.grad is None


def test_the_gradient_is_finite_where_images_are_equal_or_blank(pair):
    distance = distances.parse("features").build(CPU)
    for target in (pair[0], torch.zeros_like(pair[0])):
        for value in (pair[0], torch.full_like(pair[0], -1)):
            a = value.clone().requires_grad_()
            distance(a, target).sum().backward()
            assert a.grad is not None
            assert a.grad.isfinite().all()


def test_the_gradient_is_that_of_finite_differences(pair):
    a, b = (x[:1].clone() for x in pair)
    distance = distances.parse("features").build(CPU)
    direction = torch.randn(a.shape, generator=torch.Generator().manual_seed(0))
    a.requires_grad_()
    (gradient,) = torch.autograd.grad(distance(a, b).sum(), a)
    step = 1e-2
    with torch.no_grad():
        numeric = (distance(a + step * direction, b) - distance(a - step * direction, b)) / (2 * step)
    assert (gradient * direction).sum().item() == pytest.approx(numeric.item(), rel=1e-2, abs=1e-3)


def test_samples_do_not_see_each_other(pair):
    a, b = pair
    distance = distances.parse("features").build(CPU)
    whole = distance(a, b)
    alone = torch.cat([distance(a[i : i + 1], b[i : i + 1]) for i in range(len(a))])
    torch.testing.assert_close(alone, whole, rtol=1e-5, atol=1e-6)
    leaf = a.clone().requires_grad_()
    distance(leaf, b)[3].backward()
    assert leaf.grad is not None
    assert leaf.grad[3].norm() > 0
    assert leaf.grad[[i for i in range(16) if i != 3]].abs().max() == 0


def test_the_config_names_its_features_and_refuses_unknown_extractors():
    assert distances.parse("features").features == "digits"
    assert distances.parse("l2").features is None
    with pytest.raises(ValidationError, match="unknown extractor 'digit'; did you mean 'digits'"):
        distances.parse({"name": "features", "extractor": "digit"})
    with pytest.raises(ValidationError, match="pixel_weight"):
        distances.parse({"name": "features", "pixel_weight": -1})


def test_images_the_extractor_does_not_take_are_refused():
    with pytest.raises(DataError, match="1x8x8"):
        distances.parse("features").build(CPU)(torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32))
