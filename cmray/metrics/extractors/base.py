"""What an extractor is, and the registry where extractors join."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from cmray.core.errors import DataError
from cmray.core.registry import ComponentConfig, Registry


class Extractor(ABC):
    """A frozen network on one device. Features depend on neither the batch nor the caller's autocast.

    A variant sets `name`, `dim` and `sha256` and writes `check`, `embed` and `maps`; the base owns dtype,
    range, device and gradient.
    """

    name: ClassVar[str]  # registered name; the distance in its features is fd/<name>
    dim: int  # D, the length of a feature vector
    sha256: str  # of the weights file, hex

    def __init__(self, device: torch.device | str):
        self.device = torch.device(device)

    @abstractmethod
    def check(self, shape: Sequence[int]) -> None:
        """Raises DataError with one sentence when images of (C, H, W) = `shape` do not fit."""

    @abstractmethod
    def embed(self, x: Tensor) -> Tensor:
        """x float32 in [-1, 1] [B, C, H, W] on `device` -> features [B, D]."""

    @abstractmethod
    def maps(self, x: Tensor) -> list[Tensor]:
        """x float32 in [-1, 1] [B, C, H, W] on `device` -> maps [B, C_l, H_l, W_l], shallow to deep."""

    def check_images(self, images: Tensor) -> None:
        """Raises DataError unless `images` is uint8 [B, C, H, W], B >= 1, of a fitting shape."""
        if images.dtype != torch.uint8 or images.ndim != 4 or len(images) == 0:
            found = f"{str(images.dtype).removeprefix('torch.')} {list(images.shape)}"
            need = "takes images as uint8 [B, C, H, W] with B >= 1"
            raise DataError(f"extractor '{self.name}' {need}; found {found}")
        self.check(images.shape[1:])

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """images uint8 [B, C, H, W], any device -> float32 features [B, D] on `device`. Raises DataError."""
        self.check_images(images)
        with torch.autocast(self.device.type, enabled=False):
            return self.embed(images.to(self.device).float() / 127.5 - 1)

    def features(self, x: Tensor) -> list[Tensor]:
        """x float in [-1, 1] [B, C, H, W] -> float32 maps [B, C_l, H_l, W_l], differentiable in x.

        Values a little out of range are taken as they are: a network in training makes them.

        Raises:
            DataError: a shape the extractor does not take.
        """
        if x.ndim != 4:
            raise DataError(f"extractor '{self.name}' takes images as [B, C, H, W]; found {list(x.shape)}")
        self.check(x.shape[1:])
        with torch.autocast(self.device.type, enabled=False):
            return self.maps(x.float())


class ExtractorConfig(ComponentConfig):
    """Options of one extractor."""

    def build(self, device: torch.device) -> Extractor:
        raise TypeError(f"{type(self).__name__} does not define build")


extractors: Registry[ExtractorConfig] = Registry("extractor", ["cmray.metrics.extractors"])
