"""Euler's method."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from cmray.core.precond import Denoise, expand
from cmray.solvers.base import SolverConfig, slope, solvers


@solvers.register("euler")
class Euler(SolverConfig):
    """x + (sigma_to - sigma_from) dx/dsigma."""

    order: ClassVar[int] = 1
    nfe: ClassVar[int] = 1

    def step(self, denoise: Denoise, x: Tensor, sigma_from: Tensor, sigma_to: Tensor, label: Tensor | None) -> Tensor:
        return x + expand(sigma_to - sigma_from, x) * slope(denoise, x, sigma_from, label)
