"""DPM-Solver-2."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from cmray.core.precond import Denoise, expand
from cmray.solvers.base import SolverConfig, slope, solvers


@solvers.register("dpm-solver-2")
class DPMSolver2(SolverConfig):
    """The midpoint rule in lambda = -ln sigma, whose midpoint is s = sqrt(sigma_from sigma_to)   (DPM-Solver, Alg. 1).

    With alpha = 1 the slope is epsilon, and sigma_to (e^h - 1) = sigma_from - sigma_to for h = lambda_to - lambda_from:
    u = x + (s - sigma_from) eps(x, sigma_from), x(sigma_to) = x + (sigma_to - sigma_from) eps(u, s).
    sigma_to must be positive: samplers take the last step to 0 with Euler.
    """

    order: ClassVar[int] = 2
    nfe: ClassVar[int] = 2

    def step(self, denoise: Denoise, x: Tensor, sigma_from: Tensor, sigma_to: Tensor, label: Tensor | None) -> Tensor:
        s = (sigma_from * sigma_to).sqrt()
        u = x + expand(s - sigma_from, x) * slope(denoise, x, sigma_from, label)
        return x + expand(sigma_to - sigma_from, x) * slope(denoise, u, s, label)
