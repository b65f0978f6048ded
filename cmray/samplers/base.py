"""What a sampler is. The base owns the loop over noise levels and the seeds; a variant writes one step."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from pydantic import Field, field_validator
from torch import Tensor

from cmray.core.precond import Denoise
from cmray.core.registry import ComponentConfig, Registry
from cmray.core.rng import SampleNoise

samplers: Registry[Any] = Registry("sampler", ["cmray.samplers"])


class Sampler(ComponentConfig):
    """Walks a list of noise levels from the highest to the lowest.

    Args:
        sigmas: ascending noise levels, all positive; sampling starts from sigmas[-1] * z.
    """

    sigmas: tuple[float, ...] = Field(min_length=1)

    @field_validator("sigmas")
    @classmethod
    def _ascending(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if value[0] <= 0 or any(a >= b for a, b in itertools.pairwise(value)):
            raise ValueError(f"sigmas must be positive and ascending, found {list(value)}")
        return value

    @property
    def nfe(self) -> int:
        """Network evaluations per sample."""
        return len(self.sigmas)

    @property
    def times(self) -> list[float]:
        """The noise levels in the order in which they are visited: descending."""
        return list(reversed(self.sigmas))

    def step(self, denoise: Denoise, x: Tensor, i: int, noise: SampleNoise, label: Tensor | None) -> Tensor:
        """From x at sigmas[i] to x at sigmas[i-1], or to the clean image when i is 0."""
        raise TypeError(f"{type(self).__name__} does not define step")

    @torch.no_grad()
    def sample(self, denoise: Denoise, noise: SampleNoise, label: Tensor | None = None) -> Tensor:
        """Clean images, float32 [B,C,H,W], about [-1, 1]. The result depends on weights, sampler and seeds only."""
        x = self.sigmas[-1] * noise.draw()
        for i in reversed(range(len(self.sigmas))):
            x = self.step(denoise, x, i, noise, label)
        return x

    def level(self, i: int, x: Tensor) -> Tensor:
        """sigmas[i] as a batch [B] (0 for i = -1)."""
        return torch.full((x.shape[0],), self.sigmas[i] if i >= 0 else 0.0, device=x.device)
