"""LPIPS: the distance in features of an ImageNet classifier, weighted by heads fitted to human judgements.

The heads come with the `lpips` package. The classifier's weights are a file of torchvision, which is looked for and
never downloaded. The classifier is torchvision's; the package itself is not imported, because what it builds first
initialises a whole random classifier, warns, and prints.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from cmray.core.distances import Distance, DistanceConfig, distances
from cmray.core.errors import CmrayError, DataError
from cmray.core.flops import flops_of
from cmray.metrics.distances import unit
from cmray.metrics.weights_files import FilePath, FileSha256, WeightsFile, content_of, torch_cache

Net = Literal["vgg", "alex", "squeeze"]

#: Mean and standard deviation of ImageNet per channel, for images in [-1, 1].
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
#: The reference resizes images narrower than _NATIVE_FROM to _RESIZED x _RESIZED.
_NATIVE_FROM, _RESIZED = 256, 224


@dataclass(frozen=True)
class Backbone:
    """A torchvision classifier. `taps` index the layers of `features` that are compared, all after a ReLU."""

    model: str
    file: str
    megabytes: int
    taps: tuple[int, ...]
    smallest: int  # pixels a side at which every tap has a value


# fmt: off
BACKBONES: Mapping[str, Backbone] = {
    "vgg":     Backbone("vgg16",         "vgg16-397923af.pth",         528, (3, 8, 15, 22, 29),         16),
    "alex":    Backbone("alexnet",       "alexnet-owt-7be5be79.pth",   233, (1, 4, 7, 9, 11),           31),
    "squeeze": Backbone("squeezenet1_1", "squeezenet1_1-b8a52dc0.pth",   5, (1, 4, 7, 9, 10, 11, 12),   17),
}
# fmt: on


def _hub() -> tuple[Path, ...]:
    return (torch_cache(),)


def _weights_file(net: str) -> WeightsFile:
    backbone = BACKBONES[net]
    return WeightsFile(
        f"distance lpips with net {net}",
        backbone.file,
        backbone.megabytes,
        f"https://download.pytorch.org/models/{backbone.file}",
        "distance.weights",
        _hub,
    )


def weights_path(net: str, weights: str | None = None) -> Path:
    """Where the weights of a backbone are looked for: `weights`, or the cache of torch.hub ($TORCH_HOME)."""
    return _weights_file(net).path(weights)


def how_to_get(net: str) -> str:
    """What to do about missing weights, as a clause."""
    return _weights_file(net).how_to_get()


def _empty_features(net: str) -> nn.Sequential:
    """The layers of a backbone up to the last tap, without memory for weights. Leaves torch's generator alone."""
    import torchvision

    backbone = BACKBONES[net]
    with torch.device("meta"):
        model: Any = getattr(torchvision.models, backbone.model)(weights=None)
    return model.features[: backbone.taps[-1] + 1]


def load_features(net: str, path: Path) -> dict[str, Tensor]:
    """The weights of a backbone's features, as the layers of `features` call them, on the CPU.

    Other entries of the file, such as the classifier's last layers, are not needed and not looked at.

    Raises:
        DataError: the file is missing, cannot be read, or is of another network.
    """
    found = _weights_file(net).read_tensors(path)
    wanted = _empty_features(net).state_dict()
    for name, empty in wanted.items():
        value = found.get(f"features.{name}")
        if not isinstance(value, Tensor) or value.shape != empty.shape:
            has = f"one of {list(value.shape)}" if isinstance(value, Tensor) else "none"
            raise DataError(
                f"distance lpips: {path} does not hold torchvision's {BACKBONES[net].model}, which net {net} is made "
                f"of: features.{name} of shape {list(empty.shape)} is needed, it has {has}"
            )
    return {name: found[f"features.{name}"] for name in wanted}


@functools.lru_cache(maxsize=8)
def _examine(net: str, path: Path, size: int, modified: int) -> None:
    """`load_features` for its errors, once for a state of the file."""
    load_features(net, path)


def _heads(net: str) -> list[Tensor]:
    """Weights w_l of the channels of each tap, [1, C_l, 1, 1], version 0.1 of the package. None is negative."""
    spec = importlib.util.find_spec("lpips")
    if spec is None or not spec.submodule_search_locations:
        raise CmrayError("distance lpips needs the package lpips: pip install -c constraints.txt lpips")
    file = Path(spec.submodule_search_locations[0]) / "weights" / "v0.1" / f"{net}.pth"
    state = torch.load(file, map_location="cpu", weights_only=True)
    return [state[f"lin{i}.model.1.weight"] for i in range(len(BACKBONES[net].taps))]


def _averaged(pool: nn.MaxPool2d) -> nn.AvgPool2d:
    """The average pool over the same windows."""
    size: Any = (pool.kernel_size, pool.stride, pool.padding)
    return nn.AvgPool2d(*size, ceil_mode=pool.ceil_mode)


class _Network(nn.Module):
    """The frozen backbone with its heads: images float32 in [-1, 1] [B, 3, H, W] -> unit maps of each tap."""

    shift: Tensor
    scale: Tensor

    def __init__(self, net: str, path: Path, average: bool, device: torch.device):
        super().__init__()
        weights = load_features(net, path)
        self.taps = BACKBONES[net].taps
        self.features = _empty_features(net).to_empty(device=device)
        self.features.load_state_dict(weights)  # copies: the file may go away afterwards
        if average:
            for i, layer in enumerate(self.features):
                if isinstance(layer, nn.MaxPool2d):
                    self.features[i] = _averaged(layer)
        self.heads = [head.to(device) for head in _heads(net)]
        self.register_buffer("shift", torch.tensor(_SHIFT, device=device).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(_SCALE, device=device).view(1, 3, 1, 1))
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = (x - self.shift) / self.scale
        maps = []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self.taps:
                maps.append(unit(x))
        return maps


@distances.register("lpips")
class LPIPS(DistanceConfig):
    """sum_l mean_hw sum_c w_lc (u_lc(a) - u_lc(b))^2, u_l unit channel vectors (Zhang et al., 2018, Eq. 1).

    The defaults are those of openai/consistency_models, which calls LPIPS of `piq`: VGG-16 with average pooling, and
    images narrower than 256 pixels resized to 224x224 (bilinear, corners not aligned, no antialiasing). With
    `pooling: max` and `size: native` it is the `lpips` package.

    A built distance takes a, b float [B, 1 or 3, H, W] in about [-1, 1] and gives float32 [B], computed without
    autocast. The gradient reaches `a` only. `check` raises DataError for other channel counts and images too small
    for the backbone; `check` and `build` raise it for weights that are missing, damaged, of another network or of
    another content than `weights_sha256`.
    """

    net: Net = Field("vgg", description="the classifier whose features are compared")
    size: Literal["native", 224] = Field(
        224, description="224 resizes images narrower than 256 pixels to 224x224; native resizes none"
    )
    pooling: Literal["max", "average"] = Field(
        "average", description="average replaces the classifier's max pools by average pools over the same windows"
    )
    weights: FilePath = Field(
        None, description="the classifier's state dict (.pth); null looks in the cache of torch.hub"
    )
    weights_sha256: FileSha256 = Field(None, description="SHA-256 of that file; filled in, or checked when given")

    @model_validator(mode="after")
    def _content(self) -> LPIPS:
        if self.weights_sha256 is None:  # a run that was planned carries it, and does not look for the file again
            object.__setattr__(self, "weights_sha256", content_of(weights_path(self.net, self.weights)))
        return self

    def _file(self) -> Path:
        """The weights. Raises DataError when they are there but not those that name the trial."""
        path = weights_path(self.net, self.weights)
        found = content_of(path)
        if found is not None and self.weights_sha256 not in (None, found):
            raise DataError(f"distance.weights_sha256 is {self.weights_sha256}, but {path} has {found}")
        return path

    def _resizes(self, width: int) -> bool:
        return self.size == _RESIZED and width < _NATIVE_FROM

    def check(self, shape: Sequence[int]) -> None:
        channels, height, width = (int(n) for n in shape)
        if channels not in (1, 3):
            raise DataError(
                f"distance lpips takes images of 1 or 3 channels; these are {channels}x{height}x{width} (C x H x W)"
            )
        smallest = BACKBONES[self.net].smallest
        if not self._resizes(width) and min(height, width) < smallest:
            raise DataError(
                f"distance lpips with net {self.net} takes images of at least {smallest} pixels a side; these are "
                f"{height}x{width}, and size is {self.size}"
            )
        path = self._file()
        try:
            state = path.stat()
        except (OSError, ValueError):
            load_features(self.net, path)  # says what is wrong
            return
        _examine(self.net, path, state.st_size, state.st_mtime_ns)

    def flops(self, shape: Sequence[int]) -> int:
        _, height, width = (int(n) for n in shape)
        sides = (_RESIZED, _RESIZED) if self._resizes(width) else (height, width)
        features = _empty_features(self.net)
        return flops_of(lambda: features(torch.empty(1, 3, *sides, device="meta")))

    def build(self, device: torch.device) -> Distance:
        network = _Network(self.net, self._file(), self.pooling == "average", device)

        def maps(x: Tensor) -> list[Tensor]:
            x = x.float()
            if self._resizes(x.shape[-1]):
                x = F.interpolate(x, size=(_RESIZED, _RESIZED), mode="bilinear", align_corners=False)
            return network(x.expand(-1, 3, -1, -1))

        def distance(a: Tensor, b: Tensor) -> Tensor:
            with torch.autocast(a.device.type, enabled=False):
                with torch.no_grad():
                    targets = maps(b)
                total = torch.zeros(len(a), device=a.device)
                for features, target, w in zip(maps(a), targets, network.heads, strict=True):
                    total = total + F.conv2d((features - target).square(), w).mean((1, 2, 3))
                return total

        return distance
