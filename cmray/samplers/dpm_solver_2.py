"""DPM-Solver-2 down the grid."""

from __future__ import annotations

from typing import ClassVar

from cmray.samplers.base import SolverSampler, samplers
from cmray.solvers import SolverConfig
from cmray.solvers.dpm2 import DPMSolver2


@samplers.register("dpm-solver-2")
class DPMSolver2Sampler(SolverSampler):
    """Steps of DPM-Solver-2 and a last Euler step to 0   (DPM-Solver, Alg. 1)."""

    order: ClassVar[int | None] = 2
    solver: ClassVar[SolverConfig] = DPMSolver2()
