"""Distances d(a, b) between images, one value per sample, and the registry where others join."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from cmray.core.registry import ComponentConfig, Registry, component

#: d(a, b): a, b float32 [B,C,H,W] -> [B]. Differentiable in a.
Distance = Callable[[Tensor, Tensor], Tensor]

distances: Registry[Any] = Registry("distance", ["cmray.core.distances", "cmray.metrics.distances"])
DistanceField = component(distances)


class DistanceConfig(ComponentConfig):
    """Options of one distance. `features` names the extractor whose features it compares, None for pixels."""

    @property
    def features(self) -> str | None:
        return None

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

    def build(self, device: torch.device) -> Distance:
        return lambda a, b: (a - b).abs().flatten(1).mean(1)


@distances.register("pseudo-huber")
class PseudoHuber(DistanceConfig):
    """sqrt(||a - b||^2 + c^2) - c with c = factor sqrt(D), D values per image   (iCT, Eq. 7 and Sec. 3.3)."""

    factor: float = Field(0.00054, gt=0, description="c over the square root of the number of values")

    def build(self, device: torch.device) -> Distance:
        def distance(a: Tensor, b: Tensor) -> Tensor:
            c = self.factor * math.sqrt(a[0].numel())
            squared = (a - b).square().flatten(1).sum(1)
            # the same number, without the cancellation that leaves a few ulps of c at a = b
            return squared / ((squared + c**2).sqrt() + c)

        return distance
