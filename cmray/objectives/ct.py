"""Consistency training."""

from __future__ import annotations

from torch import Tensor

from cmray.core.precond import expand
from cmray.objectives.base import ObjectiveContext, Roles, objectives
from cmray.objectives.consistency import Consistency, ConsistencyConfig, Pair


@objectives.register("ct")
class CTConfig(ConsistencyConfig):
    """x_lo = x0 + sigma_lo z with the z of x_hi: no teacher   (Consistency Models, Alg. 3)."""

    def build(self, context: ObjectiveContext) -> Consistency:
        return ConsistencyTraining(self, context)


class ConsistencyTraining(Consistency):
    def earlier(self, roles: Roles, pair: Pair, label: Tensor | None) -> Tensor:
        return pair.x0 + expand(pair.sigma_lo, pair.x0) * pair.z
