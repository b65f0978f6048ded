"""Inception's three ways are clean-fid's: the same features from PNG files and from memory."""

import hashlib

import numpy as np
import pytest
import torch
from extractor_files import CPU, Mixed, StandIn, pixels, randomised, scripted
from PIL import Image
from torch import nn

from cmray.core.errors import DataError
from cmray.metrics.extractors import extractors
from cmray.metrics.extractors.inception import patched_inception

SCRIPTED = ["inception-clean", "inception-legacy-tensorflow"]
ALL = [*SCRIPTED, "inception-legacy-pytorch"]
PLAIN_NAME = "pt_inception-2015-12-05-6726825d.pth"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """inception-2015-12-05.pt, a stand-in, and the cache of torch.hub with the weights of pytorch-fid, random."""
    folder = tmp_path_factory.mktemp("inception")
    scripted(randomised(StandIn()), folder / "inception-2015-12-05.pt")
    (folder / "hub" / "checkpoints").mkdir(parents=True)
    network = patched_inception(1008).to_empty(device="cpu")
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked.zero_()
    torch.save(randomised(network).state_dict(), folder / "hub" / "checkpoints" / PLAIN_NAME)
    return folder


@pytest.fixture(scope="module")
def build(folder):
    """The extractors, each built once."""
    plain = folder / "hub" / "checkpoints" / PLAIN_NAME
    made = {}

    def one(name):
        file = plain if name.endswith("pytorch") else folder / "inception-2015-12-05.pt"
        if name not in made:
            made[name] = extractors.parse({"name": name, "weights": str(file)}).build(CPU)
        return made[name]

    return one


def mode_of(name):
    return name.removeprefix("inception-").replace("-", "_")


def their_model(name, folder, monkeypatch):
    """The network as clean-fid builds it."""
    from cleanfid.features import feature_extractor
    from cleanfid.inception_torchscript import InceptionV3W

    if name.endswith("pytorch"):
        monkeypatch.setenv("TORCH_HOME", str(folder))
        return feature_extractor("pytorch_inception", device=CPU, use_dataparallel=False)
    return InceptionV3W(str(folder), download=False, resize_inside=mode_of(name) == "legacy_tensorflow").eval()


def theirs(model, mode, images, scratch):
    """What clean-fid says of the images as PNG files."""
    from cleanfid.fid import get_folder_features

    scratch.mkdir()
    for i, image in enumerate(images):
        array = image.numpy().transpose(1, 2, 0)
        Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(scratch / f"{i:03}.png")
    return get_folder_features(
        str(scratch), model=model, num_workers=0, batch_size=8, device=CPU, mode=mode, verbose=False
    )


@pytest.mark.filterwarnings("ignore::UserWarning:torchvision")  # clean-fid calls it in an old way
@pytest.mark.parametrize("name", ALL)
def test_the_features_are_those_of_clean_fid(name, folder, build, tmp_path, monkeypatch):
    extractor, model = build(name), their_model(name, folder, monkeypatch)
    shapes = [(3, 32, 32), (3, 33, 47), (1, 28, 28), (3, 320, 301)]
    for channels, height, width in shapes[:2] if name.endswith("pytorch") else shapes:
        images = pixels(3, channels, height, width, seed=height)
        expected = theirs(model, mode_of(name), images, tmp_path / f"{channels}-{height}")
        found = extractor(images).numpy()
        assert expected.std(0).max() > 0.01, "all images look the same to the network: nothing is compared"
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
        assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_the_three_ways_differ(build):
    images = pixels(2, 3, 20, 20)
    clean, tensorflow = (build(name)(images) for name in SCRIPTED)
    assert (clean - tensorflow).abs().max() > 0.01


@pytest.mark.parametrize("name", SCRIPTED)
def test_what_a_file_offers_is_found_out_and_right(name, folder, build):
    extractor, base = build(name), torch.jit.load(str(folder / "inception-2015-12-05.pt"))
    assert extractor.outputs == {"features", "probabilities", "spatial"}
    assert (extractor.dim, extractor.classes, extractor.spatial_dim) == (2048, 1008, 2023)
    images = pixels(3, 3, 299, 299)
    said = extractor.extract(images)
    assert torch.equal(extractor(images), extractor.extract(images, {"features"}).features)
    x = (images.float() - 128) / 128
    for name in ("conv", "pool0", "conv_1", "mixed_5"):
        x = getattr(base.layers, name)(x)
    spatial = base.layers.mixed_6.conv(x)[:, :7].flatten(1)
    torch.testing.assert_close(said.spatial, spatial, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(said.probabilities, base(images, no_output_bias=True), rtol=1e-3, atol=1e-6)
    assert (base(images) - said.probabilities).abs().max() > 1e-4, "the bias makes no difference: it is not tested"


def test_the_plain_network_offers_all_and_its_spatial_features_come_from_mixed_6d(build, folder):
    extractor = build("inception-legacy-pytorch")
    assert extractor.outputs == {"features", "probabilities", "spatial"}
    network = patched_inception(1008).to_empty(device="cpu")
    network.load_state_dict(torch.load(folder / "hub" / "checkpoints" / PLAIN_NAME))
    network.eval()
    seen = {}
    network.Mixed_6d.branch1x1.register_forward_hook(lambda _m, _i, out: seen.update(spatial=out))
    network.avgpool.register_forward_hook(lambda _m, _i, out: seen.update(pooled=out))
    images = pixels(1, 3, 299, 299)
    network.transform_input = False
    with torch.no_grad():
        network(images.float() / 127.5 - 1)
    said = extractor.extract(images)
    torch.testing.assert_close(said.spatial, seen["spatial"][:, :7].flatten(1), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(said.features, seen["pooled"].flatten(1), rtol=1e-3, atol=1e-4)
    assert said.spatial.shape == (1, extractor.spatial_dim) == (1, 2023)
    assert said.probabilities.sum() == pytest.approx(1, abs=1e-4)


def test_a_file_without_the_middle_layer_offers_no_spatial_features(tmp_path):
    path = scripted(randomised(StandIn(middle="mixed_4")), tmp_path / "other.pt")
    extractor = extractors.parse({"name": "inception-clean", "weights": str(path)}).build(CPU)
    assert extractor.outputs == {"features", "probabilities"}
    assert extractor.spatial_dim is None
    images = pixels(2, 3, 8, 8)
    assert extractor.extract(images).spatial is None
    with pytest.raises(DataError, match="does not offer spatial; it offers features, probabilities"):
        extractor.extract(images, {"spatial"})


def test_a_file_that_resizes_otherwise_is_left_to_do_so(tmp_path):
    """legacy-tensorflow is what the file does, whatever that is."""
    network = randomised(StandIn())
    network.half_pixel = 0.0
    path = scripted(network, tmp_path / "other.pt")
    extractor = extractors.parse({"name": "inception-legacy-tensorflow", "weights": str(path)}).build(CPU)
    images = pixels(3, 3, 12, 9)
    base = torch.jit.load(str(path))
    torch.testing.assert_close(extractor(images), base(images.float(), return_features=True))
    assert extractor.outputs == {"features", "probabilities"}


@pytest.mark.parametrize("name", SCRIPTED)
def test_images_do_not_depend_on_their_batch(name, build):
    extractor = build(name)
    images = pixels(20, 3, 15, 11)  # more than are taken at a time
    images[7] = images[2]
    whole = extractor.extract(images)
    for size in (1, 7):
        parts = torch.cat([extractor(some) for some in images.split(size)])
        torch.testing.assert_close(parts, whole.features, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(extractor(images.flip(0)).flip(0), whole.features, rtol=1e-5, atol=1e-5)
    for values in (whole.features, whole.probabilities, whole.spatial):
        torch.testing.assert_close(values[7], values[2], rtol=1e-5, atol=1e-5)
    assert (whole.features[7] - whole.features[3]).abs().max() > 1e-3


def test_grayscale_is_replicated_and_says_so(build):
    extractor = build("inception-clean")
    gray = pixels(2, 1, 28, 28)
    assert torch.equal(extractor(gray), extractor(gray.repeat(1, 3, 1, 1)))
    assert extractor.note((1, 28, 28)) == "grayscale replicated to 3 channels"
    assert extractor.note((3, 28, 28)) is None
    with pytest.raises(DataError, match="takes images of 3 channels, or of 1, which is replicated; these are 4x8x8"):
        extractor(pixels(1, 4, 8, 8))


def test_names_resizers_and_hashes(build, folder):
    assert [build(name).name for name in ALL] == ALL
    assert [build(name).resizer for name in ALL] == ["clean", "tensorflow", "bilinear"]
    content = (folder / "inception-2015-12-05.pt").read_bytes()
    assert build("inception-clean").sha256 == hashlib.sha256(content).hexdigest()


# ---------------------------------------------------------------- files


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No cache holds anything. A file that clean-fid left in its own place would be found."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def complaint(**options):
    with pytest.raises(DataError) as error:
        extractors.parse(options).build(CPU)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def test_a_missing_file_is_named_with_its_size_and_how_to_provide_it(nowhere):
    text = complaint(name="inception-legacy-pytorch")
    for part in (PLAIN_NAME, "91 MB", "looked in ", str(nowhere / "cache" / "cmray" / "weights"), "weights: PATH"):
        assert part in text
    text = complaint(name="inception-clean", weights=str(nowhere / "none.pt"))
    assert f"looked for {nowhere / 'none.pt'}" in text
    for part in ("inception-2015-12-05.pt", "92 MB", "https://nvlabs-fi-cdn.nvidia.com"):
        assert part in text


def test_the_caches_are_looked_in(nowhere, folder, build):
    cache = nowhere / "cache" / "cmray" / "weights"
    cache.mkdir(parents=True)
    (cache / PLAIN_NAME).symlink_to(folder / "hub" / "checkpoints" / PLAIN_NAME)
    config = extractors.parse("inception-legacy-pytorch")
    assert config.weights_sha256 == build("inception-legacy-pytorch").sha256
    assert config.found()[0] == cache / PLAIN_NAME


def test_a_file_of_another_network_is_refused(tmp_path):
    text = complaint(name="inception-clean", weights=str(scripted(Mixed(3), tmp_path / "mixed.pt")))
    assert "mixed.pt is a network, but not the Inception that clean-fid uses" in text
    other = complaint(name="inception-clean", weights=str(scripted(StandIn(dim=64), tmp_path / "small.pt")))
    assert "2048 features" in other
    torch.save({"fc.weight": torch.zeros(3)}, tmp_path / "state.pt")
    text = complaint(name="inception-clean", weights=str(tmp_path / "state.pt"))
    assert "is neither a TorchScript file (torch.jit.save) nor one of torch.export.save" in text
    text = complaint(name="inception-legacy-pytorch", weights=str(tmp_path / "state.pt"))
    assert "does not hold the Inception of pytorch-fid: Conv2d_1a_3x3.conv.weight of shape [32, 3, 3, 3] is" in text


@pytest.mark.parametrize("name", ["inception-clean", "inception-legacy-pytorch", "clip", "dinov2-b"])
@pytest.mark.parametrize("content", [b"", b"no network\n", b"PK\x03\x04" + bytes(100)])
def test_damaged_files(name, content, tmp_path):
    path = tmp_path / "damaged.pt"
    path.write_bytes(content)
    assert str(path) in complaint(name=name, weights=str(path))
    assert str(tmp_path) in complaint(name=name, weights=str(tmp_path))


def test_another_content_than_was_asked_for_is_refused(tmp_path, folder):
    path = tmp_path / "inception-2015-12-05.pt"
    path.write_bytes((folder / "inception-2015-12-05.pt").read_bytes())
    config = extractors.parse({"name": "inception-clean", "weights": str(path)})
    was = config.weights_sha256
    scripted(randomised(StandIn(), seed=1), path)
    with pytest.raises(DataError, match=f"^weights_sha256 is {was}, but .*has [0-9a-f]{{64}}$"):
        config.build(CPU)
    assert extractors.parse({"name": "inception-clean", "weights": str(path)}).build(CPU).sha256 != was
