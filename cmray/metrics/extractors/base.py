"""What an extractor is, and the registry where extractors join."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cmray.core.errors import DataError
from cmray.core.registry import ComponentConfig, Registry


@dataclass(frozen=True)
class Outputs:
    """What an extractor says about B images, float32 on its device.

    Args:
        features: [B, D].
        probabilities: [B, classes], the softmax of its classifier, or None.
        spatial: [B, spatial_dim], values that keep where in the image they come from, or None.
    """

    features: Tensor
    probabilities: Tensor | None = None
    spatial: Tensor | None = None


def joined(parts: Sequence[Outputs]) -> Outputs:
    """The outputs of consecutive parts of a batch as those of the batch."""
    if len(parts) == 1:
        return parts[0]

    def cat(values: Sequence[Tensor | None]) -> Tensor | None:
        some = [value for value in values if value is not None]
        return torch.cat(some) if some else None

    features = torch.cat([part.features for part in parts])
    return Outputs(features, cat([part.probabilities for part in parts]), cat([part.spatial for part in parts]))


class Extractor(ABC):
    """A frozen network on one device. What it says depends on neither the batch nor the caller's autocast.

    A variant sets `name`, `dim`, `sha256` and what else it offers, and writes `check` and `describe`; the base owns
    dtype, device and gradient.
    """

    name: ClassVar[str]  # registered name; the distance in its features is fd/<name>
    dim: int  # D, the length of a feature vector
    sha256: str  # of the weights and of all that decides the features beside them, hex
    outputs: frozenset[str] = frozenset({"features"})  # of features, probabilities, spatial
    classes: int | None = None  # with probabilities
    spatial_dim: int | None = None  # with spatial
    resizer: str = "none"  # how images become the size of the network
    replicates: bool = False  # whether grayscale images are taken, as three equal channels
    part: int | None = None  # images at a time where a batch needs much memory; None takes all at once

    def __init__(self, device: torch.device | str):
        self.device = torch.device(device)

    @abstractmethod
    def check(self, shape: Sequence[int]) -> None:
        """Raises DataError with one sentence when images of (C, H, W) = `shape` do not fit."""

    @abstractmethod
    def describe(self, images: Tensor, wanted: frozenset[str]) -> Outputs:
        """images uint8 [B, C, H, W] of a fitting shape on `device` -> features, and what else is in `wanted`."""

    def maps(self, x: Tensor) -> list[Tensor]:
        """x float32 in [-1, 1] [B, C, H, W] on `device` -> maps [B, C_l, H_l, W_l], shallow to deep."""
        raise DataError(f"extractor '{self.name}' has no maps to compare images by; digits and trained have")

    def note(self, shape: Sequence[int]) -> str | None:
        """What is done to images of (C, H, W) = `shape` that readers of a number should know, or None."""
        return "grayscale replicated to 3 channels" if self.replicates and int(shape[0]) == 1 else None

    def check_images(self, images: Tensor) -> None:
        """Raises DataError unless `images` is uint8 [B, C, H, W], B >= 1, of a fitting shape."""
        if images.dtype != torch.uint8 or images.ndim != 4 or len(images) == 0:
            found = f"{str(images.dtype).removeprefix('torch.')} {list(images.shape)}"
            need = "takes images as uint8 [B, C, H, W] with B >= 1"
            raise DataError(f"extractor '{self.name}' {need}; found {found}")
        self.check(images.shape[1:])

    @torch.no_grad()
    def extract(self, images: Tensor, wanted: Iterable[str] | None = None) -> Outputs:
        """images uint8 [B, C, H, W], any device -> features and what else is `wanted`, by default all of `outputs`.

        Raises:
            DataError: images that do not fit, or outputs that are not offered.
        """
        asked = self.outputs if wanted is None else frozenset(wanted)
        if not asked <= self.outputs:
            missing, offered = ", ".join(sorted(asked - self.outputs)), ", ".join(sorted(self.outputs))
            raise DataError(f"extractor '{self.name}' does not offer {missing}; it offers {offered}")
        self.check_images(images)
        with torch.autocast(self.device.type, enabled=False):
            parts = images.split(self.part or len(images))
            return joined([self.describe(some.to(self.device), asked) for some in parts])

    def __call__(self, images: Tensor) -> Tensor:
        """images uint8 [B, C, H, W], any device -> float32 features [B, D] on `device`. Raises DataError."""
        return self.extract(images, ("features",)).features

    def features(self, x: Tensor) -> list[Tensor]:
        """x float in [-1, 1] [B, C, H, W] -> float32 maps [B, C_l, H_l, W_l], differentiable in x.

        Values a little out of range are taken as they are: a network in training makes them.

        Raises:
            DataError: a shape the extractor does not take, or an extractor without maps.
        """
        if x.ndim != 4:
            raise DataError(f"extractor '{self.name}' takes images as [B, C, H, W]; found {list(x.shape)}")
        self.check(x.shape[1:])
        with torch.autocast(self.device.type, enabled=False):
            return self.maps(x.float())

    def check_rgb(self, shape: Sequence[int]) -> None:
        """`check` of extractors that take RGB of any size, and grayscale as three equal channels."""
        if len(shape) != 3 or int(shape[0]) not in (1, 3) or min(int(n) for n in shape) < 1:
            raise DataError(
                f"extractor '{self.name}' takes images of 3 channels, or of 1, which is replicated; these are "
                f"{size_text(shape)} (C x H x W)"
            )


class ExtractorConfig(ComponentConfig):
    """Options of one extractor."""

    def build(self, device: torch.device) -> Extractor:
        """Reads the weights. Raises DataError when they are missing, or not what they should be."""
        raise TypeError(f"{type(self).__name__} does not define build")


def size_text(shape: Sequence[int]) -> str:
    """1x8x8."""
    return "x".join(str(int(n)) for n in shape)


extractors: Registry[ExtractorConfig] = Registry("extractor", ["cmray.metrics.extractors"])
