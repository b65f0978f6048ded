"""The shipped digits classifier is the one its metadata describes."""

import hashlib

import numpy as np
import pytest
import torch

from cmray.core.errors import DataError, UnknownNameError
from cmray.metrics.digits_cnn import WEIGHTS, digits_images, digits_metadata, held_out_split, load_digits_cnn
from cmray.metrics.extractors import extractors
from cmray.metrics.frechet import frechet_distance
from cmray.metrics.reference import reference_statistics


@pytest.fixture(scope="module")
def extractor():
    return extractors.parse("digits").build(torch.device("cpu"))


@pytest.fixture(scope="module")
def digits():
    return digits_images()


def test_the_recorded_accuracy_is_reproduced(digits):
    images, labels = digits
    record = digits_metadata()
    network, _ = load_digits_cnn()
    _, test = held_out_split(labels, record["split_seed"])
    correct = int((network(images[test].float() / 127.5 - 1).argmax(1) == labels[test]).sum())
    assert (correct, len(test)) == (record["n_correct"], record["n_test"])
    assert record["accuracy"] == correct / len(test) >= 0.98
    assert sum(parameter.numel() for parameter in network.parameters()) == record["parameters"]
    assert float(network.feature_scale) == pytest.approx(record["scale"], rel=1e-6)


def test_the_covariance_of_all_digits_has_trace_100(extractor, digits):
    reference = reference_statistics(extractor, digits[0])
    assert reference.n == 1797
    assert np.trace(reference.covariance) == pytest.approx(100, abs=1e-3)
    assert reference_statistics(extractor, digits[0].numpy()).sha256() == reference.sha256()


def test_the_distance_ranks_obvious_damage(extractor, digits):
    images = digits[0]
    reference = reference_statistics(extractor, images)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    halves = [reference_statistics(extractor, images[part]) for part in order.chunk(2)]
    mean = images.float().mean(0, keepdim=True).round().to(torch.uint8).expand(100, -1, -1, -1)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    noisy = (images + 20 * noise).round().clamp(0, 255).to(torch.uint8)
    assert frechet_distance(*halves) < 2
    assert 0.5 < frechet_distance(reference_statistics(extractor, noisy), reference) < 20
    assert frechet_distance(reference_statistics(extractor, mean), reference) > 50


def test_features_do_not_depend_on_the_batch(extractor, digits):
    images = digits[0][:64]
    whole = extractor(images)
    assert whole.shape == (64, extractor.dim)
    assert whole.dtype == torch.float32
    assert not whole.requires_grad
    for size in (1, 7, 33):
        parts = torch.cat([extractor(part) for part in images.split(size)])
        assert (parts - whole).abs().max() < 1e-5
    assert (extractor(images.flip(0)).flip(0) - whole).abs().max() < 1e-5


def test_all_outputs_are_those_of_the_network(extractor, digits):
    images, labels = digits[0][:300], digits[1][:300]
    said = extractor.extract(images)
    assert extractor.outputs == {"features", "probabilities", "spatial"}
    assert said.features.shape == (300, extractor.dim)
    assert said.probabilities.shape == (300, extractor.classes)
    assert said.spatial.shape == (300, extractor.spatial_dim)
    assert torch.equal(said.features, extractor(images))
    network, _ = load_digits_cnn()
    x = images.float() / 127.5 - 1
    torch.testing.assert_close(said.probabilities, network(x).softmax(1), rtol=1e-4, atol=1e-5)
    assert (said.probabilities.argmax(1) == labels).float().mean() > 0.97
    torch.testing.assert_close(said.spatial, network.maps(x)[1][:, :7].flatten(1), rtol=1e-5, atol=1e-5)
    only = extractor.extract(images, {"features"})
    assert (only.probabilities, only.spatial) == (None, None)
    with pytest.raises(DataError, match="does not offer logits; it offers features, probabilities, spatial"):
        extractor.extract(images, {"logits"})
    assert extractor.note((1, 8, 8)) is None


def test_autocast_of_the_caller_changes_nothing(extractor, digits):
    images = digits[0][:8]
    x = images.float() / 127.5 - 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = [extractor(images), *extractor.features(x)]
    for a, b in zip(inside, [extractor(images), *extractor.features(x)], strict=True):
        assert torch.equal(a, b)


def test_sha256_is_of_the_weights_file(extractor):
    assert extractor.sha256 == hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()
    assert extractor.name == "digits"


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 32, 32), (8, 8)])
def test_other_shapes_are_refused(extractor, shape):
    with pytest.raises(DataError, match="takes images of 1x8x8"):
        extractor.check(shape)


@pytest.mark.parametrize(
    "images", [torch.zeros(2, 1, 8, 8), torch.zeros(1, 8, 8).byte(), torch.zeros(0, 1, 8, 8).byte()]
)
def test_only_uint8_batches_are_taken(extractor, images):
    with pytest.raises(DataError, match="takes images as uint8"):
        extractor(images)
    with pytest.raises(DataError, match="takes images as uint8"):
        reference_statistics(extractor, images)


def test_missing_and_damaged_weights_are_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.safetensors"):
        load_digits_cnn(tmp_path / "gone.safetensors")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(WEIGHTS.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"damaged\.safetensors"):
        load_digits_cnn(damaged)


def test_a_mistyped_extractor_is_told_the_nearest_name():
    with pytest.raises(UnknownNameError, match="did you mean 'digits'"):
        extractors.get("digit")
