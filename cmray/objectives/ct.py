"""Consistency training."""

from __future__ import annotations

from typing import Any

from pydantic import model_validator
from torch import Tensor

from cmray.objectives.base import ObjectiveContext, Roles, objectives
from cmray.objectives.consistency import Consistency, ConsistencyConfig
from cmray.objectives.pairs import Pair


@objectives.register("ct")
class CTConfig(ConsistencyConfig):
    """x_lo = x0 + sigma_lo z with the z of x_hi: no teacher   (Consistency Models, Alg. 3)."""

    @model_validator(mode="before")
    @classmethod
    def _no_solver(cls, value: Any) -> Any:
        if isinstance(value, dict) and "solver" in value:
            raise ValueError(
                f"solver is {value['solver']!r}, which steps along a teacher's ODE, but objective.name is "
                f"{value.get('name', 'ct')}, which has no teacher; remove solver, or set name to cd"
            )
        return value

    def build(self, context: ObjectiveContext) -> Consistency:
        return ConsistencyTraining(self, context)


class ConsistencyTraining(Consistency):
    def earlier(self, roles: Roles, pair: Pair, label: Tensor | None) -> Tensor:
        return pair.x_lo
