"""Consistency distillation over several intervals of the grid at once."""

from __future__ import annotations

import torch
from pydantic import Field

from cmray.objectives.base import ObjectiveContext, objectives
from cmray.objectives.cd import CDConfig, ConsistencyDistillation
from cmray.objectives.pairs import Levels


@objectives.register("cd-skip")
class SkippingConfig(CDConfig):
    """The pair is (sigma_n, sigma_min(n + skip, N - 1)): consistency over `skip` intervals of a fine grid, each bridged
    by one solver step of the teacher   (the skipping step of Luo et al. 2023, Sec. 4.3). With skip 1 it is `cd`.
    """

    skip: int = Field(2, ge=1, description="grid intervals between the two points of a pair")

    @property
    def label(self) -> str:
        return f"{super().label} · skip {self.skip}"

    def build(self, context: ObjectiveContext) -> SkippingDistillation:
        return SkippingDistillation(self, context)


class SkippingDistillation(ConsistencyDistillation):
    def levels(self, step: int, batch: int, generator: torch.Generator) -> Levels:
        sigmas = self.sigmas_at(step)  # ascending, [N]
        draw = self.times.index(batch, sigmas, generator)  # n in 0 .. N-2
        above = (draw.value + self.config.skip).clamp(max=len(sigmas) - 1)
        lo, hi = sigmas[draw.value], sigmas[above]
        return Levels(lo, hi, hi - lo, draw)
