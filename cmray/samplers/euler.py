"""Euler's method down the grid."""

from __future__ import annotations

from typing import ClassVar

from cmray.samplers.base import SolverSampler, samplers
from cmray.solvers import SolverConfig
from cmray.solvers.euler import Euler


@samplers.register("euler")
class EulerSampler(SolverSampler):
    """x <- x + (sigma_{i-1} - sigma_i) (x - D)/sigma_i, the last step to 0   (EDM, Alg. 1 without its correction)."""

    order: ClassVar[int | None] = 1
    solver: ClassVar[SolverConfig] = Euler()
