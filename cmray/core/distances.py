"""Distances d(a, b) between images, one value per sample, and the registry where others join."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from cmray.core.registry import ComponentConfig, Registry, component

#: d(a, b): a, b float32 [B,C,H,W] -> [B]. Differentiable in a.
Distance = Callable[[Tensor, Tensor], Tensor]

distances: Registry[Any] = Registry(
    "distance", ["cmray.core.distances", "cmray.metrics.distances", "cmray.metrics.lpips"]
)
DistanceField = component(distances, "d(a, b) between two images")


class DistanceConfig(ComponentConfig):
    """Options of one distance. `features` names the extractor whose features it compares, None for pixels."""

    @property
    def features(self) -> str | None:
        return None

    @property
    def is_smooth(self) -> bool:
        """Twice differentiable in a at a = b, which the limit of ever closer time points needs."""
        return True

    def check(self, shape: Sequence[int]) -> None:
        """Raises CmrayError when images of (C, H, W) = `shape` do not fit or a file is missing, before a run starts."""

    def flops(self, shape: Sequence[int]) -> int:
        """Floating-point operations of its frozen network on one image of (C, H, W) = `shape`; 0 without a network.

        Needs no files; 0 too where that cannot be known without them.
        """
        return 0

    def build(self, device: torch.device) -> Distance:
        raise TypeError(f"{type(self).__name__} does not define build")


@distances.register("l2")
class L2(DistanceConfig):
    """Mean squared error per sample: the paper's squared l2 over the number of values."""

    def build(self, device: torch.device) -> Distance:
        return lambda a, b: (a - b).square().flatten(1).mean(1)


@distances.register("l1")
class L1(DistanceConfig):
    """Mean absolute error per sample."""

    @property
    def is_smooth(self) -> bool:
        return False

    def build(self, device: torch.device) -> Distance:
        return lambda a, b: (a - b).abs().flatten(1).mean(1)


@distances.register("linf")
class Linf(DistanceConfig):
    """Largest absolute error per sample. Its gradient reaches that one value only."""

    @property
    def is_smooth(self) -> bool:
        return False

    def build(self, device: torch.device) -> Distance:
        return lambda a, b: (a - b).abs().flatten(1).amax(1)


@distances.register("l2-32")
class L2At32(DistanceConfig):
    """Mean squared error of both images resized to 32x32, `l2-32` of openai/consistency_models.

    As there: bilinear, corners not aligned, no antialiasing, and smaller images are enlarged. At 32x32 it is l2.
    Above 64 pixels a value of the small image reads its 2x2 nearest pixels, so that the others do not count.
    """

    def build(self, device: torch.device) -> Distance:
        def distance(a: Tensor, b: Tensor) -> Tensor:
            # resizing is linear: once for the difference is once for each
            small = F.interpolate(a - b, size=(32, 32), mode="bilinear", align_corners=False)
            return small.square().flatten(1).mean(1)

        return distance


@distances.register("pseudo-huber")
class PseudoHuber(DistanceConfig):
    """sqrt(||a - b||^2 + c^2) - c with c = factor sqrt(D), D values per image   (iCT, Eq. 7 and Sec. 3.3)."""

    factor: float = Field(0.00054, ge=0, description="c over the square root of the number of values")

    @property
    def is_smooth(self) -> bool:
        return self.factor > 0  # at factor 0 it is the norm

    def build(self, device: torch.device) -> Distance:
        def distance(a: Tensor, b: Tensor) -> Tensor:
            c = self.factor * math.sqrt(a[0].numel())
            squared = (a - b).square().flatten(1).sum(1)
            # the same number, without the cancellation that leaves a few ulps of c at a = b
            # with c = 0 it is the norm, whose gradient at 0 is set to 0
            return squared / ((squared + c**2).clamp(min=1e-24).sqrt() + c)

        return distance
