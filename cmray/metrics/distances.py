"""Distances between images in the features of a frozen network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field, SerializeAsAny, field_validator
from pydantic_core import PydanticCustomError
from torch import Tensor

from cmray.core.distances import Distance, DistanceConfig, distances
from cmray.core.errors import DataError, UnknownNameError
from cmray.core.flops import flops_of
from cmray.metrics.extractors import ExtractorConfig, extractors

#: Added to squared norms: keeps the gradient finite where a position has no activation at all.
_EPS = 1e-10


def unit(features: Tensor) -> Tensor:
    """Each position's channel vector, scaled to length 1: [B, C, H, W] -> [B, C, H, W]."""
    return features * (features.square().sum(1, keepdim=True) + _EPS).rsqrt()


@distances.register("features")
class FeatureDistance(DistanceConfig):
    """sum_l mean_hw |u_l(a) - u_l(b)|^2 + pixel_weight mean (a - b)^2, u_l maps of unit channel vectors.

    LPIPS (Zhang et al., 2018, Eq. 1) without learned channel weights, in a frozen network. A model trained
    with it is trained in the features it may be judged by: `features` names them, so that reports can flag
    the row.

    A built distance takes a, b float [B, C, H, W] in about [-1, 1] and gives float32 [B], in [0, 4 L] for L
    maps plus the pixel term. The gradient reaches `a` only. Raises DataError for a shape the extractor does
    not take.
    """

    extractor: str | SerializeAsAny[ExtractorConfig] = Field(
        "digits", description="the extractor whose maps are compared: its name, or a mapping of name and options"
    )
    pixel_weight: float = Field(0.0, ge=0, description="weight of the mean squared pixel difference")

    @field_validator("extractor", mode="before")
    @classmethod
    def _known_extractor(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return extractors.parse(value)
        try:
            extractors.get(value)
        except UnknownNameError as error:
            raise PydanticCustomError("component", "{message}", {"message": str(error)}) from None
        return value

    @property
    def features(self) -> str | None:
        return self.extractor if isinstance(self.extractor, str) else self.extractor.name

    def flops(self, shape: Sequence[int]) -> int:
        try:
            extractor = extractors.parse(self.extractor).build(torch.device("cpu"))
            return flops_of(lambda: extractor.features(torch.zeros(1, *(int(n) for n in shape))))
        except DataError:
            return 0

    def build(self, device: torch.device) -> Distance:
        extractor = extractors.parse(self.extractor).build(device)

        def distance(a: Tensor, b: Tensor) -> Tensor:
            # The target needs no graph, and building one would cost time at every step.
            with torch.no_grad():
                targets = [unit(features) for features in extractor.features(b)]
            total = torch.zeros(len(a), device=a.device)
            for features, target in zip(extractor.features(a), targets, strict=True):
                total = total + (unit(features) - target).square().sum(1).mean((1, 2))
            if self.pixel_weight:
                total = total + self.pixel_weight * (a - b.detach()).float().square().flatten(1).mean(1)
            return total

        return distance
