"""Networks in files: any program, CLIP and DINOv2."""

import numpy as np
import pytest
import torch
from extractor_files import CPU, pixels, randomised, scripted
from PIL import Image
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from cmray.core.errors import DataError
from cmray.metrics import resize
from cmray.metrics.extractors import extractors, transformers
from cmray.metrics.extractors.transformers import CLIP_B32, DINO_B14, DINO_L14, renamed
from cmray.metrics.extractors.vit import VisionTransformer, quick_gelu


class Small(nn.Module):
    """Two outputs by name."""

    def __init__(self, channels: int = 3):
        super().__init__()
        self.conv = nn.Conv2d(channels, 6, 3, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = self.conv(x)
        return {"maps": maps, "pooled": maps.mean((2, 3))}


class One(Small):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).flatten(1)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("programs")
    scripted(randomised(Small()), folder / "small.pt")
    scripted(randomised(One(1)), folder / "gray.pt")
    return folder


def built(path, **options):
    return extractors.parse({"name": "torchscript", "path": str(path), **options}).build(CPU)


def complaint(path, images=None, **options):
    def use():
        extractor = built(path, **options)
        return extractor if images is None else extractor(images)

    with pytest.raises(DataError) as error:
        use()
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


# ---------------------------------------------------------------- any program


def test_pixels_reach_a_program_as_its_options_say(files):
    options = {"range": [-1, 1], "mean": [0.1, 0.2, 0.3], "std": 0.5, "resizer": "bilinear", "key": "pooled"}
    extractor = built(files / "small.pt", size=20, **options)
    images = pixels(5, 3, 9, 14)
    x = resize.bilinear(images, 20) / 127.5 - 1
    x = (x - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / 0.5
    expected = torch.jit.load(str(files / "small.pt"))(x)["pooled"]
    torch.testing.assert_close(extractor(images), expected, rtol=1e-5, atol=1e-5)
    assert (extractor.dim, extractor.resizer, extractor.outputs) == (6, "bilinear", {"features"})
    maps = built(files / "small.pt", size=20, **{**options, "key": "maps"})
    assert maps.dim == 6 * 9 * 9
    assert torch.equal(extractor(pixels(2, 1, 9, 9)), extractor(pixels(2, 1, 9, 9).repeat(1, 3, 1, 1)))


def test_a_program_of_torch_export_is_as_good(tmp_path, files):
    network = randomised(One())
    batch = torch.export.Dim("batch", min=1, max=4096)
    program = torch.export.export(network, (torch.zeros(3, 3, 16, 16),), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "one.pt2")
    scripted(network, tmp_path / "one.pt")
    images = pixels(19, 3, 16, 16)
    exported, script = (built(tmp_path / name, size=16, resizer="none") for name in ("one.pt2", "one.pt"))
    torch.testing.assert_close(exported(images), script(images))
    assert exported(images).std(0).min() > 0


def test_images_do_not_depend_on_their_batch(files):
    extractor = built(files / "small.pt", size=33, key="pooled")
    images = pixels(40, 3, 12, 12)
    parts = torch.cat([extractor(some) for some in images.split(3)])
    torch.testing.assert_close(parts, extractor(images), rtol=1e-5, atol=1e-5)


def test_programs_for_gray_images(files):
    extractor = built(files / "gray.pt", channels=1, size=16)
    assert extractor(pixels(2, 1, 8, 8)).shape == (2, extractor.dim)
    assert extractor.note((1, 8, 8)) is None
    with pytest.raises(DataError, match="has channels: 1; these images are 3x8x8"):
        extractor(pixels(2, 3, 8, 8))


def test_every_option_changes_the_hash_and_the_place_does_not(files, tmp_path):
    usual = {"size": 20, "key": "pooled"}
    first = built(files / "small.pt", **usual)
    (tmp_path / "moved.pt").write_bytes((files / "small.pt").read_bytes())
    assert built(tmp_path / "moved.pt", **usual).sha256 == first.sha256
    images = pixels(3, 3, 20, 26)
    changes = [
        {"size": 24}, {"key": "maps"}, {"resizer": "tensorflow"}, {"range": [0, 2]}, {"mean": 0.5}, {"std": [1, 2, 3]}
    ]  # fmt: skip
    others = [built(files / "small.pt", **{**usual, **change}) for change in changes]
    others.append(built(scripted(randomised(Small(), seed=1), tmp_path / "other.pt"), **usual))
    assert len({first.sha256, *(other.sha256 for other in others)}) == len(others) + 1
    for other in others:
        said = other(images)
        assert said.shape != first(images).shape or (said - first(images)).abs().max() > 1e-3


def test_programs_that_do_not_fit_are_told_in_one_line(files, tmp_path):
    small = files / "small.pt"
    assert "gives several outputs; choose one with key, of: ['maps', 'pooled']" in complaint(small)
    assert "key is other; the outputs are ['maps', 'pooled']" in complaint(small, key="other")
    assert "does not run on images of [1, 3, 224, 224]: " in complaint(files / "gray.pt")
    assert "key is 0; the outputs are one tensor, without keys" in complaint(files / "gray.pt", channels=1, key="0")
    wrong = complaint(small, pixels(1, 3, 9, 9), size=8, resizer="none", key="pooled")
    assert "resizer: none and size: 8; these images are 3x9x9" in wrong
    torch.save({"a": torch.zeros(1)}, tmp_path / "state.pt")
    assert "neither a TorchScript file" in complaint(tmp_path / "state.pt")
    assert "No such file" in complaint(tmp_path / "none.pt")
    sha = "0" * 64
    assert f"path_sha256 is {sha}, but {small} has" in complaint(small, key="pooled", path_sha256=sha)


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"mean": [0.1, 0.2]}, "one number, or one for each of 3 channels"),
        ({"std": 0}, "must be above 0"),
        ({"range": [1, 0]}, "with low < high"),
        ({"resizer": "lanczos"}, "resizer"),
        ({"size": 0}, "greater than or equal to 1"),
        ({"side": 8}, "unknown key; did you mean 'size'"),
    ],
)
def test_options_that_cannot_be(option, says):
    with pytest.raises(ValidationError, match=says):
        extractors.parse({"name": "torchscript", "path": "x.pt", **option})


# ---------------------------------------------------------------- transformers


class PublishedClip(nn.Module):
    """CLIP's image half, of torch's own attention, with the names of its file."""

    def __init__(self, width, depth, heads, project):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 32, stride=32, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn(50, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList()
        for _ in range(depth):
            block = nn.Module()
            block.attn = nn.MultiheadAttention(width, heads, batch_first=True)
            block.ln_1, block.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
            block.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})
            self.transformer.resblocks.append(block)
        self.proj = nn.Parameter(torch.randn(width, project))

    def forward(self, x):
        x = self.conv1(x).flatten(2).mT
        x = torch.cat([self.class_embedding.repeat(len(x), 1, 1), x], 1) + self.positional_embedding
        x = self.ln_pre(x)
        for block in self.transformer.resblocks:
            y = block.ln_1(x)
            x = x + block.attn(y, y, y)[0]
            y = block.mlp["c_fc"](block.ln_2(x))
            x = x + block.mlp["c_proj"](y / (1 + (-1.702 * y).exp()))
        return self.ln_post(x)[:, 0] @ self.proj


class PublishedDino(nn.Module):
    """DINOv2, written out, with the names of its file."""

    def __init__(self, width, depth, heads):
        super().__init__()
        self.heads = heads
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + 37 * 37, width))
        self.mask_token = nn.Parameter(torch.randn(1, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, 14, stride=14)})
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.blocks = nn.ModuleList()
        for _ in range(depth):
            block = nn.Module()
            block.norm1, block.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
            block.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
            block.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})
            block.ls1, block.ls2 = nn.Module(), nn.Module()
            block.ls1.gamma, block.ls2.gamma = (nn.Parameter(torch.rand(width)) for _ in range(2))
            self.blocks.append(block)

    def forward(self, x):
        x = self.patch_embed["proj"](x)
        side, width = int(x.shape[-1]), self.norm.bias.numel()
        learned = self.pos_embed[:, 1:].mT.reshape(1, width, 37, 37)
        scale = (side + 0.1) / 37
        learned = F.interpolate(learned, scale_factor=scale, mode="bicubic").flatten(2).mT
        x = torch.cat([self.cls_token.repeat(x.shape[0], 1, 1), x.flatten(2).mT], 1)
        x = x + torch.cat([self.pos_embed[:, :1], learned], 1)
        for block in self.blocks:
            q, k, v = (t.unflatten(2, (self.heads, -1)) for t in block.attn["qkv"](block.norm1(x)).chunk(3, dim=2))
            weights = torch.einsum("bqhd,bkhd->bhqk", q, k / q.shape[-1] ** 0.5).softmax(-1)
            y = torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2)
            x = x + block.ls1.gamma * block.attn["proj"](y)
            y = block.mlp["fc1"](block.norm2(x))
            y = y * 0.5 * (1 + torch.erf(y / 2**0.5))
            x = x + block.ls2.gamma * block.mlp["fc2"](y)
        return self.norm(x)[:, 0]


@pytest.fixture
def small(monkeypatch):
    """The published networks with few channels: (reference, the shape of ours) by name."""
    from dataclasses import replace

    torch.manual_seed(0)
    clip = replace(CLIP_B32, width=32, depth=2, heads=4, project=16)
    dino = replace(DINO_B14, width=32, depth=2, heads=4)
    monkeypatch.setattr(transformers.Clip, "shape", clip)
    monkeypatch.setattr(transformers.DinoB, "shape", dino)
    return {"clip": PublishedClip(32, 2, 4, 16).eval(), "dinov2-b": PublishedDino(32, 2, 4).eval()}


def as_input(images, mean, std):
    """What clean-fid's preprocessing for CLIP makes of pictures, by torchvision."""
    from torchvision import transforms as t

    steps = t.Compose(
        [
            t.Resize(224, interpolation=t.InterpolationMode.BICUBIC),
            t.CenterCrop(224),
            t.ToTensor(),
            t.Normalize(mean, std),
        ]
    )
    arrays = images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    return torch.stack([steps(Image.fromarray(np.ascontiguousarray(array))) for array in arrays])


def published(name, network, path):
    prefix = "visual." if name == "clip" else ""
    torch.save({f"{prefix}{key}": value for key, value in network.state_dict().items()}, path)
    return path


CONFIGS = {"clip": transformers.Clip, "dinov2-b": transformers.DinoB}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_transformer_is_the_published_one(name, small, tmp_path):
    path = published(name, small[name], tmp_path / "w.pt")
    extractor = extractors.parse({"name": name, "weights": str(path)}).build(CPU)
    for shape in [(3, 32, 32), (3, 40, 27), (1, 28, 28)]:
        images = pixels(3, *shape)
        with torch.no_grad():
            expected = small[name](as_input(images, CONFIGS[name].mean, CONFIGS[name].std))
        torch.testing.assert_close(extractor(images), expected, rtol=1e-4, atol=1e-4)
        assert expected.std(0).min() > 0
    parts = torch.cat([extractor(image[None]) for image in images])
    torch.testing.assert_close(parts, extractor(images), rtol=1e-5, atol=1e-5)
    assert (extractor.name, extractor.resizer, extractor.outputs) == (name, "pillow", {"features"})


def test_clip_is_read_from_a_program_in_half_precision_too(small, tmp_path):
    """As it was published: only the tensors of the program are used."""
    plain = extractors.parse({"name": "clip", "weights": str(published("clip", small["clip"], tmp_path / "w.pt"))})

    class Archive(nn.Module):
        def __init__(self, visual):
            super().__init__()
            self.visual = visual

        def forward(self, x: Tensor) -> Tensor:
            return x

    with torch.no_grad():
        traced = torch.jit.trace(Archive(small["clip"].half()), torch.zeros(1))
    traced.save(str(tmp_path / "ViT-B-32.pt"))
    script = extractors.parse({"name": "clip", "weights": str(tmp_path / "ViT-B-32.pt")})
    images = pixels(2, 3, 32, 32)
    torch.testing.assert_close(script.build(CPU)(images), plain.build(CPU)(images), rtol=0.02, atol=0.02)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_dinov2_is_read_from_a_program_too(small, tmp_path):
    network = small["dinov2-b"].requires_grad_(False)
    plain = extractors.parse({"name": "dinov2-b", "weights": str(published("dinov2-b", network, tmp_path / "w.pt"))})
    traced = torch.jit.trace(network, torch.zeros(2, 3, 224, 224), check_trace=False)
    traced.save(str(tmp_path / "dino.pt"))
    script = extractors.parse({"name": "dinov2-b", "weights": str(tmp_path / "dino.pt")}).build(CPU)
    images = pixels(3, 3, 32, 32)
    torch.testing.assert_close(script(images), plain.build(CPU)(images), rtol=1e-4, atol=1e-4)
    scripted(One(), tmp_path / "other.pt")
    other = extractors.parse({"name": "dinov2-b", "weights": str(tmp_path / "other.pt")}).build(CPU)
    with pytest.raises(DataError, match=r"the file gives \[3, 73926\], where \[3, 32\] is needed"):
        other(images)


@pytest.mark.parametrize(
    ("name", "shape", "parameters"),
    [("clip", CLIP_B32, 87_849_216), ("dinov2-b", DINO_B14, 86_579_712), ("dinov2-l", DINO_L14, 304_367_616)],
)
def test_the_sizes_are_the_published_ones(name, shape, parameters):
    """Without the token for masked patches, which DINOv2's files hold too and features do not need."""
    with torch.device("meta"):
        network = VisionTransformer(shape)
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_a_file_of_another_network_is_refused(small, tmp_path):
    path = published("dinov2-b", small["dinov2-b"], tmp_path / "w.pt")
    for name, says in [
        ("clip", r"w\.pt does not hold ViT-B-32\.pt: token of shape \[32\] is needed, it has none"),
        ("dinov2-l", r"w\.pt does not hold dinov2_vitl14_pretrain\.pth: .* is needed, it has one of"),
    ]:
        with pytest.raises(DataError, match=says):
            extractors.parse({"name": name, "weights": str(path)}).build(CPU)


def test_names_are_told_apart_by_their_whole():
    state = {"a.1.w.weight": 1, "a.11.w.weight": 2, "a.1.w.b.c": 3, "x": 4, "x.y": 5, "a.1.in_weight": 6}
    names = {"a.#.w.": "b.#.", "x": "z", "a.#.in_": "c.#."}
    assert renamed(state, names, 2) == {"b.1.weight": 1, "z": 4, "c.1.weight": 6}


def test_quick_gelu():
    x = torch.linspace(-3, 3, 7)
    torch.testing.assert_close(quick_gelu(x), x / (1 + (-1.702 * x).exp()))
