"""Multistep consistency sampling."""

from __future__ import annotations

import math
from typing import ClassVar

from pydantic import Field, model_validator
from torch import Tensor

from cmray.core.precond import Denoise
from cmray.core.rng import SampleNoise
from cmray.samplers.base import Sampler, samplers


@samplers.register("multistep")
class Multistep(Sampler):
    """x <- f(x, tau); x <- x + sqrt(tau'^2 - sigma_min^2) z; ...   (Consistency Models, Alg. 1)."""

    of_consistency: ClassVar[bool] = True

    sigma_min: float = Field(
        0.002,
        ge=0,
        description="epsilon, the noise that f leaves in its output; below every noise level. 0 for an f with EDM's "
        "preconditioning, whose boundary is the clean image. Taken from the model",
    )

    @model_validator(mode="after")
    def _above(self) -> Multistep:
        if self.sigmas[0] < self.sigma_min:
            raise ValueError(f"sigmas starts at {self.sigmas[0]}, below sigma_min {self.sigma_min}")
        return self

    @property
    def is_deterministic(self) -> bool:
        return len(self.sigmas) == 1

    @property
    def title(self) -> str:
        # sigma_min is a fact of the model, not a choice
        return f"{self.name} clip_denoised=True" if self.clip_denoised else self.name

    def step(
        self, denoise: Denoise, x: Tensor, i: int, noise: SampleNoise, label: Tensor | None, past: list[Tensor]
    ) -> Tensor:
        x = denoise(x, self.level(i, x), label)
        if i == 0:
            return x
        return x + math.sqrt(self.sigmas[i - 1] ** 2 - self.sigma_min**2) * noise.draw()
