"""What a solver is, and the registry of solvers."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from cmray.core.precond import Denoise, expand
from cmray.core.registry import ComponentConfig, Registry, component

solvers: Registry[Any] = Registry("solver", ["cmray.solvers"])
SolverField = component(solvers, "one step along the teacher's probability-flow ODE")


class SolverConfig(ComponentConfig):
    """One explicit step Phi of the probability-flow ODE. Stateless: the config is the solver.

    `order` is the order of the global error and `nfe` the denoiser evaluations of one step; tests measure both.
    """

    order: ClassVar[int]
    nfe: ClassVar[int]

    def step(self, denoise: Denoise, x: Tensor, sigma_from: Tensor, sigma_to: Tensor, label: Tensor | None) -> Tensor:
        """x(sigma_to) from x(sigma_from). x float32 [B,C,H,W]; sigmas float32 [B], sigma_from > 0, sigma_to >= 0."""
        raise TypeError(f"{type(self).__name__} does not define step")


def slope(denoise: Denoise, x: Tensor, sigma: Tensor, label: Tensor | None) -> Tensor:
    """dx/dsigma = (x - D(x, sigma)) / sigma   (EDM, Eq. 3 with Eq. 1)."""
    return (x - denoise(x, sigma, label)) / expand(sigma, x)
