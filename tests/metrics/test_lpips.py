"""LPIPS with random backbones: the package's values, the reference's options, and files that do not fit."""

import hashlib
import os
import pickle
import shutil
import warnings
from types import SimpleNamespace

import pytest
import torch
import torchvision
import yaml
from pydantic import ValidationError
from small_run import SMALL, small_values
from torch import nn
from torch.nn import functional as F

from cmray.cli.doctor import _backbones
from cmray.config.identity import content_hash
from cmray.config.load import merged
from cmray.config.plan import plan_experiment
from cmray.core.distances import distances
from cmray.core.errors import CmrayError, ConfigError, DataError
from cmray.metrics import lpips as module
from cmray.metrics.lpips import BACKBONES

CPU = torch.device("cpu")
NETS = list(BACKBONES)


def random_features(net):
    """The features of a backbone with activations of ordinary size at every depth."""
    with torch.device("meta"):
        features = getattr(torchvision.models, BACKBONES[net].model)(weights=None).features
    features.to_empty(device="cpu")
    torch.manual_seed(0)
    for layer in features.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.normal_(layer.bias, std=0.1)
    return features.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    """net -> (features, the file that holds them), each made once."""

    class Made(dict):
        def __missing__(self, net):
            features, path = random_features(net), tmp_path_factory.mktemp("weights") / f"{net}.pth"
            torch.save({f"features.{name}": value for name, value in features.state_dict().items()}, path)
            return self.setdefault(net, (features, str(path)))

    return Made()


@pytest.fixture
def squeeze(backbones):
    """A config of the smallest backbone, with options."""
    return lambda **options: distances.parse(
        {"name": "lpips", "net": "squeeze", "weights": backbones["squeeze"][1], **options}
    )


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty torch.hub cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def images(size=32, batch=2, channels=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.rand((batch, channels, size, size), generator=g) * 2 - 1 for _ in range(2)]


def complaint(config, shape=(3, 32, 32)):
    """What check and build both say, in one line."""
    with pytest.raises(DataError) as checked:
        config.check(shape)
    with pytest.raises(DataError) as built:
        config.build(CPU)
    assert str(checked.value) == str(built.value)
    assert len(str(checked.value).splitlines()) == 1
    return str(checked.value)


# ---------------------------------------------------------------- values


@pytest.mark.parametrize("net", NETS)
def test_with_max_pooling_at_the_native_size_it_is_the_package(net, backbones, monkeypatch):
    import lpips

    features, path = backbones[net]
    pretrained = SimpleNamespace(**{BACKBONES[net].model: lambda pretrained: SimpleNamespace(features=features)})
    monkeypatch.setattr(lpips.pretrained_networks, "tv", pretrained)
    theirs = lpips.LPIPS(net=net, verbose=False)
    config = distances.parse({"name": "lpips", "net": net, "weights": path, "size": "native", "pooling": "max"})
    config.check((3, 64, 64))
    a, b = images(64, batch=3)
    with torch.no_grad():
        expected = theirs(a, b).flatten()
    assert (expected > 0.01).all()
    torch.testing.assert_close(config.build(CPU)(a, b), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pooling", ["max", "average"])
def test_zero_for_equal_images_only_and_symmetric(pooling, squeeze):
    distance = squeeze(size="native", pooling=pooling).build(CPU)
    a, b = images(batch=4)
    assert torch.equal(distance(a, a), torch.zeros(4))
    assert (distance(a, b) > 0.01).all()
    torch.testing.assert_close(distance(a, b), distance(b, a))
    mixed = torch.stack([a[0], b[1], a[2], b[3]])
    assert (distance(a, mixed) > 0).tolist() == [False, True, False, True]
    alone = torch.cat([distance(a[i : i + 1], b[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(distance(a, b), alone, rtol=1e-4, atol=1e-6)


def test_average_pooling_is_that_of_the_windows_of_the_max_pools(backbones, monkeypatch):
    features, path = backbones["vgg"]
    w = torch.rand((1, 128, 1, 1), generator=torch.Generator().manual_seed(1))
    others = [torch.zeros(1, channels, 1, 1) for channels in (64, 256, 512, 512)]
    monkeypatch.setattr(module, "_heads", lambda net: [others[0], w, *others[1:]])  # the second tap alone

    def by_hand(x):
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        x = ((x + 1) / 2 - mean[:, None, None]) / std[:, None, None]
        x = features[2](features[0](x).relu()).relu()
        x = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean((3, 5))  # 2x2 windows, as in the reference
        x = features[7](features[5](x).relu()).relu()
        return x / x.norm(dim=1, keepdim=True)

    a, b = images(32)
    expected = (w * (by_hand(a) - by_hand(b)).square()).sum(1).mean((1, 2))
    values = {"name": "lpips", "weights": path, "size": "native"}
    averaged, maximal = (distances.parse({**values, "pooling": p}).build(CPU)(a, b) for p in ("average", "max"))
    torch.testing.assert_close(averaged, expected, rtol=1e-4, atol=1e-6)
    assert ((averaged - maximal).abs() > 1e-3 * expected).all()


@pytest.mark.parametrize(
    ("size", "width", "resized"), [(224, 32, True), (224, 255, True), (224, 256, False), ("native", 32, False)]
)
def test_size_224_resizes_images_narrower_than_256(size, width, resized, squeeze, monkeypatch):
    asked = []
    interpolate = F.interpolate
    monkeypatch.setattr(F, "interpolate", lambda x, **how: asked.append((x.shape[-1], how)) or interpolate(x, **how))
    a, b = images(width, batch=1)
    actual = squeeze(size=size).build(CPU)(a, b)
    bilinear = {"size": (224, 224), "mode": "bilinear", "align_corners": False}
    assert asked == [(width, bilinear)] * 2 * resized
    if resized:
        a, b = (interpolate(x, **bilinear) for x in (a, b))
    torch.testing.assert_close(actual, squeeze(size="native").build(CPU)(a, b))


def test_gray_images_are_repeated(squeeze):
    distance = squeeze(size="native").build(CPU)
    a, b = images(channels=1)
    torch.testing.assert_close(distance(a, b), distance(*(x.repeat(1, 3, 1, 1) for x in (a, b))))


def leaves(node):
    """The tensors that backward from `node` would accumulate gradients into."""
    if node is None:
        return []
    if hasattr(node, "variable"):
        return [node.variable]
    return [leaf for child, _ in node.next_functions for leaf in leaves(child)]


def test_the_gradient_reaches_the_first_argument_only_and_is_finite(squeeze):
    distance = squeeze(size="native").build(CPU)
    a, b = (x.requires_grad_() for x in images())
    total = distance(a, b).sum()
    assert {id(leaf) for leaf in leaves(total.grad_fn)} == {id(a)}
    total.backward()
    assert (a.grad.flatten(1).norm(dim=1) > 0).all()
    assert b.grad is None
    for value in (b.detach(), torch.zeros_like(b), torch.full_like(b, -1)):  # equal, and blank
        a = value.clone().requires_grad_()
        distance(a, b).sum().backward()
        assert a.grad.isfinite().all()


def test_the_second_derivative_at_equality_is_that_of_finite_differences(squeeze):
    distance = squeeze(size="native").build(CPU)
    b, v = images()
    with warnings.catch_warnings(action="ignore"):  # torch's own, of torch.func
        _, product = torch.func.jvp(torch.func.grad(lambda a: distance(a, b).sum()), (b,), (v,))
    step = 1e-3
    torch.testing.assert_close(
        (product * v).flatten(1).sum(1), 2 * distance(b + step * v, b) / step**2, rtol=0.02, atol=0
    )


def test_autocast_and_half_images_do_not_change_the_precision(squeeze):
    distance = squeeze(size="native").build(CPU)
    a, b = (x.bfloat16() for x in images())
    expected = distance(a.float(), b.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(distance(a, b), expected)
    assert expected.dtype == torch.float32


def test_building_it_is_silent_and_leaves_the_random_state_alone(squeeze, capfd):
    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = squeeze(size="native")
        config.check((3, 32, 32))
        config.build(CPU)(*images())
    assert capfd.readouterr() == ("", "")
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------- options


def test_the_defaults_are_those_of_the_reference():
    config = distances.parse("lpips")
    assert (config.net, config.size, config.pooling, config.weights) == ("vgg", 224, "average", None)
    assert config.is_smooth
    assert config.features is None


@pytest.mark.parametrize(
    "option", [{"net": "resnet"}, {"size": 128}, {"pooling": "mean"}, {"weights": ""}, {"weights_sha256": "ab"}]
)
def test_other_options_are_refused(option):
    with pytest.raises(ValidationError, match=next(iter(option))):
        distances.parse({"name": "lpips", **option})


def test_a_relative_path_is_that_of_the_folder_it_was_read_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert distances.parse({"name": "lpips", "weights": "a/b.pth"}).weights == str(tmp_path / "a" / "b.pth")


@pytest.mark.parametrize("net", NETS)
def test_the_smallest_image_is_that_of_the_backbone(net, backbones):
    smallest = BACKBONES[net].smallest
    config = distances.parse({"name": "lpips", "net": net, "weights": backbones[net][1], "size": "native"})
    config.check((3, smallest, smallest))
    distance = config.build(CPU)
    assert distance(*images(smallest)).isfinite().all()
    with pytest.raises(DataError, match=f"at least {smallest} pixels a side; these are {smallest}x{smallest - 1}"):
        config.check((3, smallest, smallest - 1))
    with pytest.raises(RuntimeError, match="too small"):
        distance(*images(smallest - 1))
    config.model_copy(update={"size": 224}).check((3, 1, 1))


def test_other_channel_counts_are_refused(squeeze):
    squeeze().check((1, 8, 8))
    for channels in (2, 4):
        with pytest.raises(DataError, match=f"1 or 3 channels; these are {channels}x8x8"):
            squeeze().check((channels, 8, 8))


# ---------------------------------------------------------------- weights files


def test_weights_are_found_in_the_cache_of_torch(cache, backbones):
    path = cache / BACKBONES["squeeze"].file
    os.link(backbones["squeeze"][1], path)
    config = distances.parse({"name": "lpips", "net": "squeeze"})
    config.check((1, 8, 8))
    path_given = config.model_copy(update={"weights": str(path)})
    assert torch.equal(config.build(CPU)(*images()), path_given.build(CPU)(*images()))


@pytest.mark.parametrize("net", NETS)
def test_the_names_are_those_of_torchvision(net):
    backbone = BACKBONES[net]
    weights = torchvision.models.get_model_weights(backbone.model).IMAGENET1K_V1
    assert weights.url == f"https://download.pytorch.org/models/{backbone.file}"
    assert backbone.megabytes == round(weights.meta["_file_size"])


def test_missing_weights_are_named_with_where_they_were_looked_for_and_how_to_get_them(cache):
    text = complaint(distances.parse("lpips"))
    for part in ("vgg16-397923af.pth", "528 MB", str(cache), "https://download.pytorch.org", "distance.weights: PATH"):
        assert part in text
    elsewhere = cache / "none.pth"
    assert f"looked for {elsewhere}" in complaint(distances.parse({"name": "lpips", "weights": str(elsewhere)}))


def test_a_change_of_the_file_is_noticed(cache, squeeze):
    path = cache / "weights.pth"
    config = squeeze(weights=str(path))
    complaint(config)
    torch.save({}, path)
    assert "it has none" in complaint(config)
    torch.save({f"features.{n}": v for n, v in random_features("squeeze").state_dict().items()}, path)
    config.check((1, 8, 8))
    path.write_bytes(path.read_bytes()[:1000])
    assert "damaged" in complaint(config)


class Code:
    """What a pickle with code in it may do when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("writes", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
@pytest.mark.filterwarnings("error::UserWarning")
def test_code_in_a_file_is_never_run(writes, tmp_path, squeeze):
    path = tmp_path / "code.pth"
    writes({"features.0.weight": Code(tmp_path / "ran")}, path)
    assert "code in a file is never run" in complaint(squeeze(weights=str(path)))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"\x80", b"not found\n", b"PK\x03\x04" + bytes(100), bytes(1000)])
def test_damaged_files(content, tmp_path, squeeze):
    path = tmp_path / "damaged.pth"
    path.write_bytes(content)
    text = complaint(squeeze(weights=str(path)))
    assert str(path) in text
    assert "damaged" in text
    assert BACKBONES["squeeze"].file in text


def test_a_folder_is_no_file(tmp_path, squeeze):
    assert f"{tmp_path}: Is a directory" in complaint(squeeze(weights=str(tmp_path)))


@pytest.mark.parametrize("content", [[1], {"features.0.weight": 1}, {"state_dict": {}}, torch.zeros(3)])
def test_files_of_other_things(content, tmp_path, squeeze):
    torch.save(content, tmp_path / "other.pth")
    text = complaint(squeeze(weights=str(tmp_path / "other.pth")))
    assert "does not hold torchvision's squeezenet1_1" in text
    assert "features.0.weight of shape [64, 3, 3, 3] is needed, it has none" in text


def test_weights_of_another_network(backbones):
    config = distances.parse({"name": "lpips", "net": "alex", "weights": backbones["squeeze"][1]})
    text = complaint(config)
    assert "does not hold torchvision's alexnet, which net alex is made of" in text
    assert "features.0.weight of shape [64, 3, 11, 11] is needed, it has one of [64, 3, 3, 3]" in text


def test_files_of_old_torch_versions_and_of_half_precision_are_read(tmp_path, squeeze):
    state = {f"features.{n}": v.double() for n, v in random_features("squeeze").state_dict().items()}
    torch.save(
        state | {"classifier.1.bias": torch.zeros(7)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False
    )
    old = squeeze(weights=str(tmp_path / "old.pth"), size="native")
    old.check((3, 32, 32))
    assert torch.equal(old.build(CPU)(*images()), squeeze(size="native").build(CPU)(*images()))


# ---------------------------------------------------------------- what names a trial


def named(**options):
    return content_hash(distances.parse({"name": "lpips", "net": "squeeze", **options}))


def test_the_content_of_the_weights_counts_and_not_where_they_lie(tmp_path, cache, backbones):
    here, copy, other = backbones["squeeze"][1], tmp_path / "copy.pth", tmp_path / "other.pth"
    shutil.copy(here, copy)
    torch.save({f"features.{n}": v + 1 for n, v in random_features("squeeze").state_dict().items()}, other)
    assert named(weights=here) == named(weights=str(copy))
    assert named(weights=here) != named(weights=str(other))
    assert named(weights=here) != named(), "nothing is in the cache yet"
    os.link(here, cache / BACKBONES["squeeze"].file)
    assert named(weights=here) == named()
    shutil.copy(other, copy)
    assert named(weights=str(copy)) == named(weights=str(other)), "it was read again"


def test_a_written_config_keeps_the_content_that_it_was_made_with(tmp_path, squeeze):
    path = tmp_path / "gone.pth"
    shutil.copy(squeeze().weights, path)
    config = squeeze(weights=str(path), size="native")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert config.weights_sha256 == sha256
    path.unlink()
    elsewhere = distances.parse(config.model_dump(mode="json"))  # as where a checkpoint is sampled
    assert elsewhere == config
    assert "looked for" in complaint(elsewhere)
    torch.save({f"features.{n}": v + 1 for n, v in random_features("squeeze").state_dict().items()}, path)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    assert complaint(elsewhere) == f"distance.weights_sha256 is {sha256}, but {path} has {found}"
    shutil.copy(squeeze().weights, path)
    elsewhere.check((3, 32, 32))
    assert elsewhere.build(CPU)(*images()).isfinite().all()


# ---------------------------------------------------------------- plan and doctor


def test_a_plan_finds_what_is_missing(tmp_path, monkeypatch, cache, backbones):
    monkeypatch.chdir(tmp_path)

    def plan(**distance):
        changes = {"objective": {"name": "ct", "distance": {"name": "lpips", **distance}}}
        values = small_values(changes, **merged(SMALL, {"name": "exp", "noise": {"sigma_data": None}}))
        (tmp_path / "exp.yaml").write_text(yaml.safe_dump(values))
        return plan_experiment(tmp_path / "exp.yaml", [], tmp_path / "storage")

    with pytest.raises(CmrayError, match=r"^exp\.yaml: objective\.distance: distance lpips with net vgg needs the f"):
        plan()
    with pytest.raises(CmrayError, match="at least 17 pixels a side; these are 8x8, and size is native"):
        plan(net="squeeze", weights=backbones["squeeze"][1], size="native")
    weights = backbones["squeeze"][1]
    (trial,) = plan(net="squeeze", weights=weights).trials
    os.link(weights, tmp_path / "moved.pth")
    (moved,) = plan(net="squeeze", weights="moved.pth").trials
    assert moved.name == trial.name
    with pytest.raises(
        ConfigError, match=rf"^exp\.yaml: objective\.distance: distance\.weights_sha256 is {'0' * 64}, bu"
    ):
        plan(net="squeeze", weights="moved.pth", weights_sha256="0" * 64)
    assert not (tmp_path / "storage").exists()


def test_the_doctor_says_which_weights_are_here(cache, backbones):
    checks = {c.name: c for c in _backbones()}
    assert list(checks) == [f"lpips {net}" for net in NETS]
    for net in NETS:
        assert checks[f"lpips {net}"].ok  # only some runs need them
        assert f"{BACKBONES[net].file} is not here" in checks[f"lpips {net}"].found
        assert "https://download.pytorch.org" in checks[f"lpips {net}"].found
    os.link(backbones["squeeze"][1], cache / BACKBONES["squeeze"].file)
    (cache / BACKBONES["alex"].file).write_bytes(b"half of it")
    checks = {c.name: c for c in _backbones()}
    assert checks["lpips squeeze"].found == str(cache / BACKBONES["squeeze"].file)
    assert checks["lpips squeeze"].ok
    assert not checks["lpips alex"].ok
    assert "damaged" in checks["lpips alex"].found
