"""One network evaluation: f(sigma_max z, sigma_max)."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from cmray.core.precond import Denoise
from cmray.core.rng import SampleNoise
from cmray.samplers.base import Sampler, samplers


@samplers.register("one-step")
class OneStep(Sampler):
    """x = f(sigma_max z, sigma_max). For a denoiser this is one Euler step from sigma_max to 0."""

    of_consistency: ClassVar[bool] = True

    sigmas: tuple[float, ...] = Field(min_length=1, max_length=1, description="the one noise level, positive")

    @property
    def is_deterministic(self) -> bool:
        return True

    def step(
        self, denoise: Denoise, x: Tensor, i: int, noise: SampleNoise, label: Tensor | None, past: list[Tensor]
    ) -> Tensor:
        return denoise(x, self.level(i, x), label)
