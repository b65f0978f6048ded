"""EDM's deterministic Heun sampler."""

from __future__ import annotations

from torch import Tensor

from cmray.core.precond import Denoise
from cmray.core.rng import SampleNoise
from cmray.samplers.base import Sampler, samplers
from cmray.solvers.euler import Euler
from cmray.solvers.heun import Heun


@samplers.register("edm-heun")
class EDMHeun(Sampler):
    """Heun steps down the grid and a last Euler step to 0   (EDM, Alg. 1)."""

    @property
    def nfe(self) -> int:
        return 2 * len(self.sigmas) - 1

    def step(self, denoise: Denoise, x: Tensor, i: int, noise: SampleNoise, label: Tensor | None) -> Tensor:
        solver = Heun() if i > 0 else Euler()
        return solver.step(denoise, x, self.level(i, x), self.level(i - 1, x), label)
