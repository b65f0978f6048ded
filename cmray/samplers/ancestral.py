"""Euler ancestral sampling."""

from __future__ import annotations

import math

from torch import Tensor

from cmray.core.precond import Denoise
from cmray.core.rng import SampleNoise
from cmray.samplers.base import Sampler, batch_of, samplers
from cmray.solvers.euler import Euler


def split_level(sigma_from: float, sigma_to: float, eta: float) -> tuple[float, float]:
    """(sigma_down, sigma_up): the level to step down to, and the noise to add so that sigma_to is reached.

    sigma_up^2 = eta^2 sigma_to^2 (sigma_from^2 - sigma_to^2) / sigma_from^2,  sigma_down^2 = sigma_to^2 - sigma_up^2.
    At eta = 1 this is the posterior of the diffusion (DDPM, Eq. 7), and for any eta DDIM's Eq. 16, with
    sigma^2 = (1 - alpha) / alpha and x divided by sqrt(alpha).
    """
    sigma_up = eta * sigma_to * math.sqrt(1 - (sigma_to / sigma_from) ** 2)
    return math.sqrt(sigma_to**2 - sigma_up**2), sigma_up


@samplers.register("ancestral")
class Ancestral(Sampler):
    """An Euler step to sigma_down, then sigma_up z; the last step, to 0, adds no noise   (DDPM, Alg. 2, in the
    variance-exploding form; Consistency Models, reference code, `sample_euler_ancestral`)."""

    def step(
        self, denoise: Denoise, x: Tensor, i: int, noise: SampleNoise, label: Tensor | None, past: list[Tensor]
    ) -> Tensor:
        return ancestral_step(self, denoise, x, i, noise, label, eta=1.0)


def ancestral_step(
    sampler: Sampler, denoise: Denoise, x: Tensor, i: int, noise: SampleNoise, label: Tensor | None, eta: float
) -> Tensor:
    """One step of ancestral sampling with a part eta of its noise; arguments as in Sampler.step."""
    sigma_to = sampler.sigmas[i - 1] if i > 0 else 0.0
    sigma_down, sigma_up = split_level(sampler.sigmas[i], sigma_to, eta)
    x = Euler().step(denoise, x, sampler.level(i, x), batch_of(sigma_down, x), label)
    return x + sigma_up * noise.draw() if sigma_up > 0 else x
