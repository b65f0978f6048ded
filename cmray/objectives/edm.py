"""EDM denoising score matching: how teachers are trained."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from cmray.core.precond import PrecondName, expand
from cmray.core.times import lognormal_sigma
from cmray.core.weights import weight
from cmray.objectives.base import Loss, Objective, ObjectiveConfig, ObjectiveContext, Roles, objectives


@objectives.register("edm")
class EDMConfig(ObjectiveConfig):
    """E lambda(sigma) ||D(x0 + sigma z, sigma) - x0||^2, ln sigma ~ N(P_mean, P_std^2)   (EDM, Table 1)."""

    precond: ClassVar[PrecondName] = "edm"

    P_mean: float = -1.2
    P_std: float = Field(1.2, gt=0)

    def build(self, context: ObjectiveContext) -> Objective:
        return EDM(self, context)


class EDM(Objective):
    """The squared error is averaged over the image's values."""

    def __init__(self, config: EDMConfig, context: ObjectiveContext):
        super().__init__(context)
        self.config = config

    def loss(self, roles: Roles, x0: Tensor, label: Tensor | None, step: int, generator: torch.Generator) -> Loss:
        sigma = lognormal_sigma(x0.shape[0], self.config.P_mean, self.config.P_std, generator)
        z = torch.randn(x0.shape, generator=generator, device=x0.device)
        denoised = roles.student(x0 + expand(sigma, x0) * z, sigma, label)
        error = (denoised - x0).square().flatten(1).mean(1)
        return Loss(weight("karras", sigma, self.context.sigma_data) * error, sigma)
