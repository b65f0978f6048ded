"""DPM-Solver-3, singlestep."""

from __future__ import annotations

import math
from typing import ClassVar

from torch import Tensor

from cmray.core.precond import Denoise
from cmray.core.rng import SampleNoise
from cmray.samplers.base import Sampler, batch_of, samplers
from cmray.solvers.base import slope

R1, R2 = 1 / 3, 2 / 3


@samplers.register("dpm-solver-3")
class DPMSolver3(Sampler):
    """Steps of DPM-Solver-3 with r1 = 1/3, r2 = 2/3 and a last Euler step to 0   (DPM-Solver, Alg. 2).

    From s to t with lambda = -ln sigma, h = lambda_t - lambda_s and s_k = s e^{-r_k h}. With alpha = 1,
    sigma_k (e^{r_k h} - 1) = s - s_k:
        u1 = x + (s1 - s) eps(x, s),                                      D1 = eps(u1, s1) - eps(x, s)
        u2 = x + (s2 - s) eps(x, s) - (r2/r1) ((s - s2)/(r2 h) - s2) D1,  D2 = eps(u2, s2) - eps(x, s)
        x(t) = x + (t - s) eps(x, s) - (1/r2) ((s - t)/h - t) D2
    """

    order: ClassVar[int | None] = 3

    @property
    def nfe_step(self) -> int:
        return 3

    def step(
        self, denoise: Denoise, x: Tensor, i: int, noise: SampleNoise, label: Tensor | None, past: list[Tensor]
    ) -> Tensor:
        if i == 0:
            return denoise(x, self.level(0, x), label)
        s, t = self.sigmas[i], self.sigmas[i - 1]
        h = math.log(s / t)
        s1, s2 = s * math.exp(-R1 * h), s * math.exp(-R2 * h)
        eps = slope(denoise, x, self.level(i, x), label)
        u1 = x + (s1 - s) * eps
        d1 = slope(denoise, u1, batch_of(s1, x), label) - eps
        u2 = x + (s2 - s) * eps - R2 / R1 * ((s - s2) / (R2 * h) - s2) * d1
        d2 = slope(denoise, u2, batch_of(s2, x), label) - eps
        return x + (t - s) * eps - 1 / R2 * ((s - t) / h - t) * d2
