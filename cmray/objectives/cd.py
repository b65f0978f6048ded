"""Consistency distillation."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from cmray.objectives.base import FromTeacher, ObjectiveContext, Roles, objectives
from cmray.objectives.consistency import Consistency, ConsistencyConfig
from cmray.objectives.pairs import Pair
from cmray.solvers import SolverField


@objectives.register("cd")
class CDConfig(FromTeacher, ConsistencyConfig):
    """x_lo is one solver step along the teacher's probability-flow ODE   (Consistency Models, Alg. 2)."""

    needs_teacher: ClassVar[bool] = True

    solver: SolverField = "heun"  # type: ignore[valid-type]

    @property
    def frozen_forwards(self) -> int:
        return 1 + self.solver.nfe

    @property
    def label(self) -> str:
        return super().label.replace("cd · ", f"cd · {self.solver.name} · ", 1)

    def build(self, context: ObjectiveContext) -> Consistency:
        return ConsistencyDistillation(self, context)


class ConsistencyDistillation(Consistency):
    def earlier(self, roles: Roles, pair: Pair, label: Tensor | None) -> Tensor:
        assert roles.teacher is not None
        return self.config.solver.step(roles.teacher, pair.x_hi, pair.sigma_hi, pair.sigma_lo, label)
