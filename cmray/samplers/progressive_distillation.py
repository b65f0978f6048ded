"""The sampler of progressively distilled denoisers."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from cmray.core.precond import Denoise
from cmray.core.rng import SampleNoise
from cmray.samplers.base import Sampler, samplers
from cmray.solvers.euler import Euler


@samplers.register("progressive-distillation")
class ProgressiveDistillation(Sampler):
    """Euler steps over a grid of n + 1 levels that end at the lowest level rather than at 0: n evaluations.

    A student of progressive distillation learns where two Euler steps between these levels lead (Salimans & Ho 2022,
    Alg. 2; grid and end as in `sample_progdist` of the Consistency Models reference code).
    """

    order: ClassVar[int | None] = 1

    sigmas: tuple[float, ...] = Field(
        min_length=2, description="noise levels, positive and ascending; the lowest is where sampling ends"
    )

    @property
    def nfe_last(self) -> int:
        return 0

    def step(
        self, denoise: Denoise, x: Tensor, i: int, noise: SampleNoise, label: Tensor | None, past: list[Tensor]
    ) -> Tensor:
        if i == 0:
            return x
        return Euler().step(denoise, x, self.level(i, x), self.level(i - 1, x), label)
