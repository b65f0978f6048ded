"""Progressive distillation (Salimans & Ho 2022), on the Karras grid as in the Consistency Models paper."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from cmray.core.curricula import HalvingNumSigmas, NumSigmasField
from cmray.core.distances import DistanceField
from cmray.core.grids import karras_sigmas
from cmray.core.precond import PrecondName, expand
from cmray.core.times import Draw, uniform_index
from cmray.core.weights import DenoisingWeightName, weight
from cmray.objectives.base import (
    Kind,
    Loss,
    Objective,
    ObjectiveConfig,
    ObjectiveContext,
    Roles,
    Transition,
    objectives,
)
from cmray.solvers.euler import Euler


@objectives.register("pd")
class PDConfig(ObjectiveConfig):
    """One Euler step of the student learns to land where two of the teacher land; then the student is the teacher.

    lambda(sigma_hi) d(D(x_hi, sigma_hi), D*), D* = x_hi - sigma_hi (x_lo - x_hi)/(sigma_lo - sigma_hi), x_lo after two
    steps of the teacher through the middle of the interval. With N steps, the grid has N + 1 points.
    """

    precond: ClassVar[PrecondName] = "edm"
    kind: ClassVar[Kind] = "few-step"
    needs_teacher: ClassVar[bool] = True
    lacks: ClassVar[tuple[str, ...]] = ("solver", "mu", "times")
    replaces_teacher: ClassVar[bool] = True

    num_sigmas: NumSigmasField = HalvingNumSigmas()  # type: ignore[valid-type]
    distance: DistanceField = "l2"  # type: ignore[valid-type]
    weight: DenoisingWeightName = Field("truncated-snr", description="lambda(sigma_hi)")

    @model_validator(mode="before")
    @classmethod
    def _plain_number(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("num_sigmas"), int):
            raise ValueError(
                f"num_sigmas is {value['num_sigmas']}, a fixed grid, but objective.name pd halves it; write "
                f"num_sigmas: {{name: halving, start: 64}}"
            )
        return value

    @model_validator(mode="after")
    def _halves(self) -> PDConfig:
        if self.num_sigmas.name != "halving":
            raise ValueError(f"num_sigmas.name is {self.num_sigmas.name}, but objective.name pd needs halving")
        return self

    @property
    def starts_from(self) -> Literal["random", "teacher"]:
        return "teacher"

    @property
    def own_nfe(self) -> int | None:
        schedule: Any = self.num_sigmas
        return schedule.end

    @property
    def frozen_forwards(self) -> int:
        return 2

    @property
    def features(self) -> str | None:
        return self.distance.features

    @property
    def label(self) -> str:
        return f"pd · {self.distance.name} · {self.num_sigmas.label}"

    def check_steps(self, steps: int) -> None:
        schedule: Any = self.num_sigmas
        needed = schedule.units * (schedule.stage_steps or 1)
        if needed > steps:
            raise ValueError(
                f"objective.num_sigmas.start is {schedule.start}, whose stages"
                f"{f' with stage_steps {schedule.stage_steps}' if schedule.stage_steps else ''} take {needed} steps, "
                f"but train.steps is {steps}"
            )

    def build(self, context: ObjectiveContext) -> ProgressiveDistillation:
        return ProgressiveDistillation(self, context)


class ProgressiveDistillation(Objective):
    def __init__(self, config: PDConfig, context: ObjectiveContext):
        super().__init__(context)
        self.config: Any = config
        self.distance = self.config.distance.build(context.device)
        self._fine: tuple[int, Tensor] = (0, torch.empty(0))

    def num_sigmas_at(self, step: int) -> int:
        return self.config.num_sigmas.num_sigmas_at(step, self.context.steps)

    def levels(self, step: int, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """(sigma_lo, the middle, sigma_hi) [B]: neighbours on the student's grid and the teacher's point between."""
        c, n = self.context, self.num_sigmas_at(step)
        if self._fine[0] != n:  # moved once a stage, not at every step
            fine = torch.from_numpy(karras_sigmas(2 * n - 1, c.sigma_min, c.sigma_max, c.rho)).float().to(c.device)
            self._fine = (n, fine)
        fine = self._fine[1]
        index = 2 * uniform_index(batch, n, generator)
        return fine[index], fine[index + 1], fine[index + 2]

    def loss(self, roles: Roles, x0: Tensor, label: Tensor | None, step: int, generator: torch.Generator) -> Loss:
        sigma_lo, sigma_mid, sigma_hi = self.levels(step, x0.shape[0], generator)
        z = torch.randn(x0.shape, generator=generator, device=x0.device)
        x_hi = x0 + expand(sigma_hi, x0) * z
        assert roles.teacher is not None
        with torch.no_grad():
            x_mid = Euler().step(roles.teacher, x_hi, sigma_hi, sigma_mid, label)
            x_lo = Euler().step(roles.teacher, x_mid, sigma_mid, sigma_lo, label)
            goal = x_hi - expand(sigma_hi / (sigma_lo - sigma_hi), x0) * (x_lo - x_hi)
        d = self.distance(roles.student(x_hi, sigma_hi, label), goal)
        scale = weight(self.config.weight, sigma_hi, self.context.sigma_data)
        return Loss(scale * d, sigma_hi, Draw(sigma_hi))

    def transition(self, step: int) -> Transition | None:
        if self.num_sigmas_at(step) == self.num_sigmas_at(step - 1):
            return None
        return Transition(teacher_from_student=True, ema_from_student=True, reset_optimizer=True)

    def schedule(self, step: int) -> dict[str, float]:
        return {"num_sigmas": float(self.num_sigmas_at(step))}
