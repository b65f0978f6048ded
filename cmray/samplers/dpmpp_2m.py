"""DPM-Solver++(2M)."""

from __future__ import annotations

import math
from typing import ClassVar

from torch import Tensor

from cmray.core.precond import Denoise
from cmray.core.rng import SampleNoise
from cmray.samplers.base import Sampler, samplers


@samplers.register("dpmpp-2m")
class DPMSolverPP2M(Sampler):
    """Second-order multistep method on the data prediction D   (DPM-Solver++, Alg. 2).

    From sigma_i to sigma_{i-1} with lambda = -ln sigma and alpha = 1:
        x <- (sigma_{i-1} / sigma_i) x - (e^{-h} - 1) D~,   D~ = (1 + 1/(2 r)) D_i - 1/(2 r) D_{i+1},
    with h = ln(sigma_i / sigma_{i-1}) and r = ln(sigma_{i+1} / sigma_i) / h. The first step and the last one, to 0,
    take D~ = D_i.
    """

    order: ClassVar[int | None] = 2

    def step(
        self, denoise: Denoise, x: Tensor, i: int, noise: SampleNoise, label: Tensor | None, past: list[Tensor]
    ) -> Tensor:
        data = denoise(x, self.level(i, x), label)
        if i == 0:
            return data
        here, there = self.sigmas[i], self.sigmas[i - 1]
        previous = past.pop() if past else None
        past.append(data)
        if previous is not None:
            r = math.log(self.sigmas[i + 1] / here) / math.log(here / there)
            data = (1 + 1 / (2 * r)) * data - 1 / (2 * r) * previous
        return there / here * x + (1 - there / here) * data
