"""Heun's second-order method."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from cmray.core.precond import Denoise, expand
from cmray.solvers.base import SolverConfig, slope, solvers


@solvers.register("heun")
class Heun(SolverConfig):
    """x + (sigma_to - sigma_from) (d + d') / 2, d' the slope after an Euler step   (EDM, Alg. 1).

    sigma_to must be positive: samplers take the last step to 0 with Euler.
    """

    order: ClassVar[int] = 2
    nfe: ClassVar[int] = 2

    def step(self, denoise: Denoise, x: Tensor, sigma_from: Tensor, sigma_to: Tensor, label: Tensor | None) -> Tensor:
        dt = expand(sigma_to - sigma_from, x)
        d = slope(denoise, x, sigma_from, label)
        d_prime = slope(denoise, x + dt * d, sigma_to, label)
        return x + dt * (d + d_prime) / 2
