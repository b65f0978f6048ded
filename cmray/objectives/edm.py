"""EDM denoising score matching: how teachers are trained."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from cmray.core.precond import PrecondName, expand
from cmray.core.times import Lognormal, TimesField
from cmray.core.weights import DenoisingWeightName, weight
from cmray.objectives.base import Kind, Loss, Objective, ObjectiveConfig, ObjectiveContext, Roles, objectives


@objectives.register("edm")
class EDMConfig(ObjectiveConfig):
    """E lambda(sigma) ||D(x0 + sigma z, sigma) - x0||^2, ln sigma ~ N(P_mean, P_std^2)   (EDM, Table 1)."""

    precond: ClassVar[PrecondName] = "edm"
    kind: ClassVar[Kind] = "denoiser"

    times: TimesField = Lognormal(P_mean=-1.2, P_std=1.2)  # type: ignore[valid-type]
    weight: DenoisingWeightName = Field("karras", description="lambda(sigma)")

    def build(self, context: ObjectiveContext) -> Objective:
        return EDM(self, context)


class EDM(Objective):
    """The squared error is averaged over the image's values."""

    #: bins of a time sampler that learns, over the Karras curve
    BINS = 40

    def __init__(self, config: EDMConfig, context: ObjectiveContext):
        super().__init__(context, config.times.build(context.device, self.BINS))
        self.config = config

    def loss(self, roles: Roles, x0: Tensor, label: Tensor | None, step: int, generator: torch.Generator) -> Loss:
        draw = self.times.sigma(x0.shape[0], self.curve, generator)
        sigma = draw.value
        z = torch.randn(x0.shape, generator=generator, device=x0.device)
        denoised = roles.student(x0 + expand(sigma, x0) * z, sigma, label)
        error = (denoised - x0).square().flatten(1).mean(1)
        return Loss(weight(self.config.weight, sigma, self.context.sigma_data) * error, sigma, draw)
