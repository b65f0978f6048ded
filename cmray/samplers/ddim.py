"""DDIM."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from cmray.core.precond import Denoise
from cmray.core.rng import SampleNoise
from cmray.samplers.ancestral import ancestral_step
from cmray.samplers.base import Sampler, samplers


@samplers.register("ddim")
class DDIM(Sampler):
    """x <- D + sigma_down (x - D)/sigma_i + sigma_up z   (DDIM, Eq. 12, divided by sqrt(alpha_{t-1})).

    In sigma = sqrt((1 - alpha) / alpha) the deterministic DDIM is Euler's method (DDIM, Eq. 13 and 14).

    Args:
        eta: 0 adds no noise and gives "euler"; 1 adds the variance of the diffusion's posterior and gives
            "ancestral"; in between, DDIM's Eq. 16.
    """

    order: ClassVar[int | None] = 1

    eta: float = Field(0.0, ge=0, le=1, description="share of the posterior's noise: 0 is euler, 1 is ancestral")

    @property
    def is_deterministic(self) -> bool:
        return self.eta == 0

    def step(
        self, denoise: Denoise, x: Tensor, i: int, noise: SampleNoise, label: Tensor | None, past: list[Tensor]
    ) -> Tensor:
        return ancestral_step(self, denoise, x, i, noise, label, self.eta)
