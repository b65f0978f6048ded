"""Inception-v3 as FID uses it, with the three ways of resizing that clean-fid knows.

`clean` and `legacy-tensorflow` take the TorchScript file that clean-fid takes; `legacy-pytorch` takes the weights of
pytorch-fid. Both were converted from the network of 2015 that defined FID.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cmray.core.errors import DataError
from cmray.metrics.extractors.base import Extractor, Outputs, extractors
from cmray.metrics.extractors.published import PublishedConfig, images_at_a_time, load_program
from cmray.metrics.resize import RESIZERS, as_rgb, tensorflow
from cmray.metrics.weights_files import WeightsFile, cache_folder, fill, torch_cache

SIDE, DIM = 299, 2048
#: of the layer mixed_6/conv, 17x17 each: spatial FID (Nash et al., 2021)
SPATIAL_CHANNELS = 7


def _places() -> tuple[Path, ...]:
    return (Path("/tmp"), torch_cache(), cache_folder())  # the first is where clean-fid keeps it


def _torch_places() -> tuple[Path, ...]:
    return (cache_folder(), torch_cache())


def scripted_file(user: str) -> WeightsFile:
    name = "inception-2015-12-05.pt"
    source = f"https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/{name}"
    return WeightsFile(f"extractor '{user}'", name, 92, source, "weights", _places)


def plain_file(user: str) -> WeightsFile:
    name = "pt_inception-2015-12-05-6726825d.pth"
    source = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{name}"
    return WeightsFile(f"extractor '{user}'", name, 91, source, "weights", _torch_places)


def layout(device: torch.device) -> torch.memory_format:
    """Of weights and pixels. On a CPU, channels side by side take 64 ms an image where the usual order takes 114: torch
    need not rearrange between layers. What comes out differs by rounding."""
    return torch.channels_last if device.type == "cpu" else torch.contiguous_format


class InceptionExtractor(Extractor):
    """Pooled features [B, 2048], and class probabilities and spatial features [B, 2023] where the file offers them.

    The probabilities are softmax(W f) without the bias of the last layer, as the Inception Score has always had them.
    """

    dim = DIM
    replicates = True

    def __init__(self, device: torch.device, name: str, resizer: str, network: Any, sha256: str):
        super().__init__(device)
        self.name = name  # pyright: ignore[reportAttributeAccessIssue] - of the instance: one class has three names
        self.resizer, self.network, self.sha256 = resizer, network, sha256
        self.part = images_at_a_time(device)
        self.outputs = frozenset({"features", *network.offers})
        self.classes = network.classes
        if "spatial" in network.offers:
            self.spatial_dim = SPATIAL_CHANNELS * 17 * 17

    def check(self, shape: Sequence[int]) -> None:
        self.check_rgb(shape)

    def describe(self, images: Tensor, wanted: frozenset[str]) -> Outputs:
        if self.network.resizes_itself:
            return self.network(as_rgb(images).float(), wanted)
        x = as_rgb(RESIZERS[self.resizer](images, SIDE))
        return self.network(x.contiguous(memory_format=layout(self.device)), wanted)


class ScriptedInception:
    """The TorchScript file. What it can do besides features is found out by trying, on a few random pixels.

    Args:
        base: the loaded file: forward(x, return_features=True) -> [B, 2048] with x in [0, 255] of any size, and
            `layers`, what follows the resizing in it.
        inside: whether images are to be resized by the file, as clean-fid's legacy_tensorflow does.

    Raises:
        DataError: the file is not such a network.
    """

    def __init__(self, base: Any, inside: bool, user: str, path: Path, device: torch.device):
        base.to(memory_format=layout(device))
        self._base, self._layers = base, getattr(base, "layers", None)
        g = torch.Generator().manual_seed(0)
        pixels = torch.randint(256, (2, 3, 40, 33), generator=g).float().to(device)
        try:
            assert self._layers is not None
            x = tensorflow(pixels, SIDE)
            expected = self._layers((x - 128) / 128).reshape(2, DIM)
            whole = base(pixels, return_features=True).reshape(2, DIM)
        except (RuntimeError, TypeError, AssertionError, AttributeError):  # what torch raises for another network
            raise DataError(
                f"extractor '{user}': {path} is a network, but not the Inception that clean-fid uses: it needs "
                f"`layers` with {DIM} features for images of {SIDE}x{SIDE}, and forward(x, return_features=True)"
            ) from None
        same_resizing = torch.allclose(expected, whole, rtol=1e-3, atol=1e-4)
        self.resizes_itself = inside and not same_resizing
        self._weight = self._find_weight(pixels, whole)
        self._steps = self._find_steps(x, expected)
        self.classes = None if self._weight is None else len(self._weight)
        spatial = self._steps and not self.resizes_itself
        self.offers = {*(["probabilities"] if self.classes else []), *(["spatial"] if spatial else [])}

    def _find_weight(self, pixels: Tensor, features: Tensor) -> Tensor | None:
        """W [classes, 2048] of the last layer, if the file's own probabilities are those of `_probabilities`."""
        try:
            weight = self._base.output.weight
            theirs = self._base(pixels, no_output_bias=True)
            same = torch.allclose(_probabilities(features, weight), theirs, rtol=1e-3, atol=1e-5)
        except (RuntimeError, TypeError, AttributeError):
            return None
        return weight if same else None

    def _find_steps(self, x: Tensor, features: Tensor) -> list[tuple[str, Any]]:
        """The layers one after the other, if that is the network and mixed_6/conv is among them; else []."""
        try:
            steps = list(self._layers.named_children())  # pyright: ignore[reportOptionalMemberAccess]
            again, spatial = _walk(steps, (x - 128) / 128)
            same = torch.allclose(again.reshape(2, DIM), features, rtol=1e-3, atol=1e-4)
        except (RuntimeError, TypeError, AttributeError):
            return []
        return steps if same and spatial is not None and spatial.shape == (2, SPATIAL_CHANNELS * 17 * 17) else []

    def __call__(self, x: Tensor, wanted: frozenset[str]) -> Outputs:
        """x float32 in [0, 255] [B, 3, H, W], of 299x299 unless the file resizes."""
        spatial = None
        if self.resizes_itself:
            features = self._base(x, return_features=True)
        elif "spatial" in wanted:
            features, spatial = _walk(self._steps, (x - 128) / 128)
        else:
            features = self._layers((x - 128) / 128)  # pyright: ignore[reportOptionalCall]
        features = features.reshape(len(x), DIM).float()
        return Outputs(features, _probabilities(features, self._weight) if "probabilities" in wanted else None, spatial)


def _walk(steps: list[tuple[str, Any]], x: Tensor) -> tuple[Tensor, Tensor | None]:
    """What the layers give one after the other, and the spatial features on the way."""
    spatial = None
    for name, layer in steps:
        if name == "mixed_6":
            spatial = layer.conv(x)[:, :SPATIAL_CHANNELS].flatten(1).float()
        x = layer(x)
    return x, spatial


def _probabilities(features: Tensor, weight: Tensor | None) -> Tensor:
    assert weight is not None
    return (features @ weight.float().T).softmax(1)


def patched_inception(classes: int) -> Any:
    """torchvision's Inception-v3 with the blocks that clean-fid patches, without memory for weights."""
    from cleanfid import inception_pytorch as patched
    from torchvision.models.inception import Inception3

    with torch.device("meta"):
        network: Any = Inception3(num_classes=classes, aux_logits=False, init_weights=False)
        for name, block, *options in (
            *(("Mixed_5b", patched.FIDInceptionA, 192, 32), ("Mixed_5c", patched.FIDInceptionA, 256, 64)),
            *(("Mixed_5d", patched.FIDInceptionA, 288, 64), ("Mixed_6b", patched.FIDInceptionC, 768, 128)),
            *(("Mixed_6c", patched.FIDInceptionC, 768, 160), ("Mixed_6d", patched.FIDInceptionC, 768, 160)),
            *(("Mixed_6e", patched.FIDInceptionC, 768, 192), ("Mixed_7b", patched.FIDInceptionE_1, 1280)),
            ("Mixed_7c", patched.FIDInceptionE_2, 2048),
        ):
            setattr(network, name, block(*options))
    return network


class PlainInception:
    """`patched_inception` with the weights of pytorch-fid."""

    resizes_itself = False
    offers = frozenset({"probabilities", "spatial"})
    classes = 1008
    #: in order; the pools have no weights
    STEPS = (
        *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "maxpool1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "maxpool2"),
        *("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
        *("Mixed_7a", "Mixed_7b", "Mixed_7c", "avgpool"),
    )

    def __init__(self, state: dict[str, Any], user: str, path: Path, device: torch.device):
        network = patched_inception(self.classes)
        network.to_empty(device=device)
        fill(network, state, f"extractor '{user}': {path} does not hold the Inception of pytorch-fid: ")
        network.eval().requires_grad_(False).to(memory_format=layout(device))
        self._steps: list[tuple[str, nn.Module]] = [(name, getattr(network, name)) for name in self.STEPS]
        self._weight: Tensor = network.fc.weight

    def __call__(self, x: Tensor, wanted: frozenset[str]) -> Outputs:
        """x float32 in [0, 255] [B, 3, 299, 299]."""
        x = 2 * (x / 255) - 1
        spatial = None
        for name, layer in self._steps:
            if name == "Mixed_6d" and "spatial" in wanted:
                branch: Any = layer.branch1x1
                spatial = branch(x)[:, :SPATIAL_CHANNELS].flatten(1)
            x = layer(x)
        features = x.flatten(1)
        return Outputs(features, _probabilities(features, self._weight) if "probabilities" in wanted else None, spatial)


class _Scripted(PublishedConfig):
    resizer: ClassVar[str]

    def build(self, device: torch.device) -> InceptionExtractor:
        path, sha256 = self.found()
        user = self.name
        base = load_program(path, f"extractor '{user}'", device)
        with torch.no_grad():
            network = ScriptedInception(base, self.resizer == "tensorflow", user, path, device)
        return InceptionExtractor(device, user, self.resizer, network, sha256)


@extractors.register("inception-clean")
class InceptionClean(_Scripted):
    """clean-fid's mode `clean`: antialiased bicubic resizing in floating point."""

    file: ClassVar[WeightsFile] = scripted_file("inception-clean")
    resizer: ClassVar[str] = "clean"


@extractors.register("inception-legacy-tensorflow")
class InceptionLegacyTensorflow(_Scripted):
    """clean-fid's mode `legacy_tensorflow`: bilinear resizing of TensorFlow 1, as in most published FIDs."""

    file: ClassVar[WeightsFile] = scripted_file("inception-legacy-tensorflow")
    resizer: ClassVar[str] = "tensorflow"


@extractors.register("inception-legacy-pytorch")
class InceptionLegacyPytorch(PublishedConfig):
    """clean-fid's mode `legacy_pytorch`: bilinear resizing of PyTorch, as pytorch-fid did."""

    file: ClassVar[WeightsFile] = plain_file("inception-legacy-pytorch")

    def build(self, device: torch.device) -> InceptionExtractor:
        path, sha256 = self.found()
        network = PlainInception(self.file.read_tensors(path), self.name, path, device)
        return InceptionExtractor(device, self.name, "bilinear", network, sha256)
