"""EDM's Heun sampler, with churn."""

from __future__ import annotations

import math
from typing import ClassVar

from pydantic import Field, model_validator
from torch import Tensor

from cmray.core.precond import Denoise
from cmray.core.rng import SampleNoise
from cmray.samplers.base import SolverSampler, batch_of, samplers
from cmray.solvers import SolverConfig
from cmray.solvers.euler import Euler
from cmray.solvers.heun import Heun


@samplers.register("edm-heun")
class EDMHeun(SolverSampler):
    """Heun steps down the grid and a last Euler step to 0   (EDM, Alg. 1), with churn (EDM, Alg. 2):

    before a step from t, t^ = t + gamma t and x^ = x + sqrt(t^^2 - t^2) S_noise z, with
    gamma = min(S_churn / N, sqrt(2) - 1) where S_min <= t <= S_max, else 0; N steps.
    """

    order: ClassVar[int | None] = 2
    solver: ClassVar[SolverConfig] = Heun()

    S_churn: float = Field(0.0, ge=0, description="how much noise is added over all steps; at 0 none is drawn")
    S_min: float = Field(0.0, ge=0, description="lowest noise level that is churned")
    S_max: float | None = Field(None, gt=0, description="highest noise level that is churned; null has no bound")
    S_noise: float = Field(1.0, gt=0, description="standard deviation of the added noise; EDM uses 1 to 1.007")

    @model_validator(mode="after")
    def _consistent(self) -> EDMHeun:
        if self.S_max is not None and self.S_max < self.S_min:
            raise ValueError(f"S_max {self.S_max} is below S_min {self.S_min}")
        if self.S_churn == 0 and (self.S_min, self.S_max, self.S_noise) != (0, None, 1):
            raise ValueError("S_min, S_max and S_noise say how to churn, but S_churn is 0")
        return self

    @property
    def is_deterministic(self) -> bool:
        return self.S_churn == 0

    def gamma(self, t: float) -> float:
        """How much a level is raised before its step   (EDM, Alg. 2, line 4)."""
        if not self.S_min <= t <= (math.inf if self.S_max is None else self.S_max):
            return 0.0
        return min(self.S_churn / len(self.sigmas), math.sqrt(2) - 1)

    def step(
        self, denoise: Denoise, x: Tensor, i: int, noise: SampleNoise, label: Tensor | None, past: list[Tensor]
    ) -> Tensor:
        t = self.sigmas[i]
        gamma = self.gamma(t)
        if gamma == 0:
            return super().step(denoise, x, i, noise, label, past)
        t_hat = t + gamma * t
        x = x + math.sqrt(t_hat**2 - t**2) * self.S_noise * noise.draw()
        solver = self.solver if i > 0 else Euler()
        return solver.step(denoise, x, batch_of(t_hat, x), self.level(i - 1, x), label)
