"""A classifier trained on the digits: what it reaches, what its file says, and what its features tell apart."""

import hashlib
import json

import numpy as np
import pytest
import torch
from extractor_files import CPU, pixels
from safetensors import safe_open
from safetensors.torch import save_file

from cmray.core.errors import DataError
from cmray.metrics.digits_cnn import METADATA_KEY, digits_images, held_out_split
from cmray.metrics.extractors import extractors
from cmray.metrics.frechet import frechet_distance
from cmray.metrics.reference import reference_statistics
from cmray.metrics.trained import (
    Recipe,
    TrainedCNN,
    check_trainable,
    load_features,
    moved,
    save_features,
    train_features,
)

DIGITS = {"name": "digits", "shape": [1, 8, 8], "classes": [str(i) for i in range(10)]}
RECIPE = Recipe(epochs=8, seed=0)


@pytest.fixture(scope="module")
def digits():
    return digits_images()


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    """(file, record) of a training of a few seconds."""
    network, record = train_features(*digits, 10, RECIPE, CPU)
    path = tmp_path_factory.mktemp("trained") / "digits.safetensors"
    save_features(network, {**record, "dataset": DIGITS}, path)
    return path, record


@pytest.fixture(scope="module")
def extractor(trained):
    return extractors.parse({"name": "trained", "path": str(trained[0])}).build(CPU)


def test_the_recorded_accuracy_is_that_of_the_file(trained, digits, extractor):
    path, record = trained
    assert record["accuracy"] >= 0.95
    images, labels = digits
    _, test = held_out_split(labels, RECIPE.seed)
    right = (extractor.extract(images[test]).probabilities.argmax(1) == labels[test]).sum()
    assert (int(right), len(test)) == (record["n_correct"], record["n_test"])
    with safe_open(path, framework="pt") as file:
        told = json.loads(file.metadata()[METADATA_KEY])
    assert told.items() >= {**record, "dataset": DIGITS}.items()
    assert extractor.record == told
    assert extractor.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_outputs_and_the_scale(extractor, digits):
    images, _ = digits
    assert np.trace(reference_statistics(extractor, images).covariance) == pytest.approx(100, abs=1e-2)
    said = extractor.extract(images[:50])
    assert extractor.outputs == {"features", "probabilities", "spatial"}
    assert said.features.shape == (50, extractor.dim)
    assert said.probabilities.shape == (50, extractor.classes)
    assert said.spatial.shape == (50, extractor.spatial_dim) == (50, 7 * 4 * 4)
    torch.testing.assert_close(said.probabilities.sum(1), torch.ones(50))
    assert not said.features.requires_grad


def test_features_do_not_depend_on_the_batch(extractor, digits):
    images = digits[0][:64]
    whole = extractor(images)
    for size in (1, 7, 33):
        torch.testing.assert_close(torch.cat([extractor(s) for s in images.split(size)]), whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(extractor(images.flip(0)).flip(0), whole, rtol=1e-5, atol=1e-5)


def test_the_distance_ranks_damage(extractor, digits):
    images, _ = digits
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    halves = [reference_statistics(extractor, images[part]) for part in order.chunk(2)]
    noise = 60 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    noisy = reference_statistics(extractor, (images + noise).round().clamp(0, 255).to(torch.uint8))
    blank = reference_statistics(extractor, torch.zeros_like(images[:100]))
    whole = reference_statistics(extractor, images)
    assert frechet_distance(*halves) < 2
    assert 4 < frechet_distance(noisy, whole) < 50 < frechet_distance(blank, whole)


def test_maps_can_be_trained_through(extractor):
    x = torch.zeros(2, 1, 8, 8, requires_grad=True)
    sum(m.square().sum() for m in extractor.features(x)).backward()
    assert x.grad.abs().max() > 0


def test_one_seed_makes_one_file(digits, tmp_path):
    images, labels = digits[0][:300], digits[1][:300]

    def content(seed):
        torch.randn(3)  # the generator's state must not matter
        network, record = train_features(images, labels, 10, Recipe(epochs=2, seed=seed), CPU)
        save_features(network, {**record, "dataset": DIGITS}, tmp_path / "x.safetensors")
        return (tmp_path / "x.safetensors").read_bytes()

    before, state = torch.are_deterministic_algorithms_enabled(), torch.get_rng_state()
    first = content(0)
    assert first == content(0)
    assert first != content(1)
    torch.set_rng_state(state)
    train_features(images, labels, 10, Recipe(epochs=1), CPU)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.are_deterministic_algorithms_enabled() == before


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 64, 64), (1, 9, 40), (1, 28, 28)])
def test_any_size_from_8_to_64(shape, tmp_path):
    images, labels = pixels(24, *shape), torch.arange(24) % 3
    images[:, :, :4, :4] //= 1 + 4 * labels[:, None, None, None].byte()
    told = []
    network, record = train_features(images, labels, 3, Recipe(epochs=1), CPU, lambda *now: told.append(now))
    assert [step for step, _, _ in told] == list(range(1, told[0][1] + 1))
    dataset = {"shape": list(shape), "classes": ["a", "b", "c"]}
    save_features(network, {**record, "dataset": dataset}, tmp_path / "f")
    extractor = extractors.parse({"name": "trained", "path": str(tmp_path / "f")}).build(CPU)
    said = extractor.extract(images)
    assert said.spatial.shape == (24, extractor.spatial_dim)
    assert [m.shape[-2:] for m in extractor.features(images / 127.5 - 1)] == network.sides
    assert max(network.sides[-1]) <= 4
    torch.testing.assert_close(said.features.double().var(0).sum(), torch.tensor(100.0).double(), rtol=1e-3, atol=0)


def test_images_are_moved_by_whole_pixels_and_the_border_is_repeated():
    images = pixels(200, 3, 16, 16)
    out = moved(images, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(images.float(), (2, 2, 2, 2), mode="replicate").byte()
    seen = set()
    for image, around in zip(out, padded, strict=True):
        at = [
            (i, j) for i in range(5) for j in range(5) if torch.equal(around[:, i : i + 16, j : j + 16], image)
        ]  # fmt: skip
        assert len(at) == 1
        seen.update(at)
    assert len(seen) == 25


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("shape", "labels", "classes", "says"),
    [
        ((1, 8, 8), None, (), "D has no labels; features are trained on labelled images"),
        ((3, 128, 128), [0, 1], ("a", "b"), "D has images of 3x128x128 (C x H x W); features are trained on 1 or 3"),
        ((3, 7, 8), [0, 1], ("a", "b"), "8 to 64 pixels a side"),
        ((1, 8, 8), [0] * 20, ("a", "b"), "D has images of 1 class; a classifier needs at least 2 classes"),
        ((1, 8, 8), [0] * 20 + [1] * 4, ("a", "b"), "D: class 'b' has 4 images; each class needs at least 5, or none"),
    ],
)
def test_datasets_that_cannot_be_learned(shape, labels, classes, says):
    with pytest.raises(DataError) as error:
        check_trainable(shape, None if labels is None else torch.tensor(labels), classes, "D")
    assert says in str(error.value)
    check_trainable((1, 8, 64), torch.tensor([0] * 5 + [2] * 5), ("a", "b", "c"), "D")


def test_other_shapes_are_refused(extractor):
    with pytest.raises(DataError, match=r"takes images of 1x8x8 .*, on which it was trained; these are 3x32x32"):
        extractor(pixels(1, 3, 32, 32))


def test_files_that_are_no_such_checkpoint(trained, tmp_path):
    def complaint(path, **options):
        with pytest.raises(DataError) as error:
            extractors.parse({"name": "trained", "path": str(path), **options}).build(CPU)
        assert len(str(error.value).splitlines()) == 1
        return str(error.value)

    path, record = trained
    other = tmp_path / "other"
    assert f"cannot read {other}: No such file" in complaint(other)
    other.write_text("no tensors")
    assert "is not a file of `cmray features train`, or is damaged" in complaint(other)
    other.write_bytes(path.read_bytes()[:-50])
    assert "or is damaged" in complaint(other)
    save_file({"w": torch.zeros(1)}, other)
    assert "is a safetensors file, but none of `cmray features train`" in complaint(other)
    save_features(TrainedCNN((1, 8, 8), 10), {**record, "dataset": {}}, other)
    assert "does not say which images it was trained on" in complaint(other)
    save_features(TrainedCNN((1, 8, 8), 3), {**record, "dataset": DIGITS}, other)
    assert "head.weight of shape [10, 64] is needed, it has one of [3, 64]" in complaint(other)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert f"path_sha256 is {sha256}, but {other} has" in complaint(other, path_sha256=sha256)
    with pytest.raises(DataError, match=r"needs path: FILE, made by `cmray features train DATA --out FILE`"):
        extractors.parse("trained").build(CPU)


def test_a_written_file_loads_as_what_it_was(digits, tmp_path):
    network, record = train_features(digits[0][:200], digits[1][:200], 10, Recipe(epochs=1), CPU)
    save_features(network, {**record, "dataset": DIGITS}, tmp_path / "f")
    again, told = load_features(tmp_path / "f")
    x = digits[0][200:264].float() / 127.5 - 1
    assert torch.equal(again(x), network(x))
    assert float(again.feature_scale) == told["scale"] == record["scale"]
