"""The Charbonnier distance: an l1 that is smooth at zero."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from cmray.core.distances import Distance, DistanceConfig, distances


@distances.register("charbonnier")
class Charbonnier(DistanceConfig):
    """The mean over all values of sqrt((a - b)^2 + eps^2) - eps   (Charbonnier et al., 1994).

    Where pseudo-huber looks at the norm of an image's difference, this looks at each value: a few large errors do not
    make the small ones cheap.
    """

    eps: float = Field(0.01, gt=0, description="differences much smaller count squared, much larger ones as they are")

    def build(self, device: torch.device) -> Distance:
        def distance(a: Tensor, b: Tensor) -> Tensor:
            squared = (a - b).square()
            # the same number without the cancellation: exactly 0 at a = b
            return (squared / ((squared + self.eps**2).sqrt() + self.eps)).flatten(1).mean(1)

        return distance
