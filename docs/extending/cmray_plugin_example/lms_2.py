"""A linear multistep sampler: second order for one evaluation a step."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from cmray.core.precond import Denoise
from cmray.core.rng import SampleNoise
from cmray.samplers.base import Sampler, samplers
from cmray.solvers.base import slope


@samplers.register("lms-2")
class LinearMultistep2(Sampler):
    """The two-step method of Adams and Bashforth in sigma, for unequal steps.

    x <- x + h ((1 + w/2) d_i - w/2 d_{i+1}),  d_i = (x - D(x, sigma_i)) / sigma_i,
    h = sigma_{i-1} - sigma_i,  w = h / (sigma_i - sigma_{i+1}).  The first step and the last one, to 0, take d_i alone.
    """

    order: ClassVar[int | None] = 2

    def step(
        self, denoise: Denoise, x: Tensor, i: int, noise: SampleNoise, label: Tensor | None, past: list[Tensor]
    ) -> Tensor:
        d = slope(denoise, x, self.level(i, x), label)
        h = (self.sigmas[i - 1] if i > 0 else 0.0) - self.sigmas[i]
        previous = past.pop() if past else None
        past.append(d)
        if previous is None or i == 0:
            return x + h * d
        w = h / (self.sigmas[i] - self.sigmas[i + 1])
        return x + h * ((1 + w / 2) * d - w / 2 * previous)
