"""What every discrete consistency objective shares: a pair of points on one trajectory, and a distance between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from cmray.core.distances import DistanceField
from cmray.core.precond import expand
from cmray.core.times import Draw, TimeSampler
from cmray.core.weights import WeightName, weight
from cmray.objectives.base import Kind, Loss, Objective, ObjectiveConfig, ObjectiveContext, Roles


class PairConfig(ObjectiveConfig):
    """Fields of all of them."""

    kind: ClassVar[Kind] = "consistency"

    distance: DistanceField = "l2"  # type: ignore[valid-type]
    weight: WeightName = Field("uniform", description="lambda of a pair; 1/dt is one over sigma_hi - sigma_lo")

    @property
    def frozen_forwards(self) -> int:
        return 1

    @property
    def features(self) -> str | None:
        return self.distance.features


@dataclass(frozen=True)
class Levels:
    """sigma_lo, sigma_hi and dt = sigma_hi - sigma_lo, float32 [B] each, and how they were drawn."""

    sigma_lo: Tensor
    sigma_hi: Tensor
    dt: Tensor
    draw: Draw


@dataclass(frozen=True)
class Pair:
    """Two noise levels of one trajectory: x_hi = x0 + sigma_hi z [B,C,H,W], sigma_hi > sigma_lo, dt their gap [B]."""

    x0: Tensor
    z: Tensor
    x_hi: Tensor
    sigma_hi: Tensor
    sigma_lo: Tensor
    dt: Tensor

    @property
    def x_lo(self) -> Tensor:
        """x0 + sigma_lo z, the earlier point without a teacher."""
        return self.x0 + expand(self.sigma_lo, self.x0) * self.z


class PairObjective(Objective):
    """lambda d(f(x_hi, sigma_hi), goal), the goal being what a frozen network says of an earlier point.

    Subclasses draw the two noise levels and give the goal.
    """

    def __init__(self, config: PairConfig, context: ObjectiveContext, times: TimeSampler):
        super().__init__(context, times)
        self.config: Any = config
        self.distance = self.config.distance.build(context.device)

    def levels(self, step: int, batch: int, generator: torch.Generator) -> Levels:
        """The noise levels of a batch."""
        raise TypeError(f"{type(self).__name__} does not define levels")

    def goal(self, roles: Roles, pair: Pair, label: Tensor | None) -> Tensor:
        """What f(x_hi, sigma_hi) should be [B,C,H,W]. Called without gradients."""
        raise TypeError(f"{type(self).__name__} does not define goal")

    def weight_level(self, sigma_lo: Tensor, sigma_hi: Tensor) -> Tensor:
        """The noise level that lambda is taken at."""
        return sigma_lo

    def loss(self, roles: Roles, x0: Tensor, label: Tensor | None, step: int, generator: torch.Generator) -> Loss:
        at = self.levels(step, x0.shape[0], generator)
        z = torch.randn(x0.shape, generator=generator, device=x0.device)
        pair = Pair(x0, z, x0 + expand(at.sigma_hi, x0) * z, at.sigma_hi, at.sigma_lo, at.dt)
        return Loss(self.pair_loss(roles, pair, label), at.sigma_hi, at.draw)

    def pair_loss(self, roles: Roles, pair: Pair, label: Tensor | None) -> Tensor:
        """The weighted loss of given pairs [B]: nothing in it is random."""
        with torch.no_grad():
            goal = self.goal(roles, pair, label)
        d = self.distance(roles.student(pair.x_hi, pair.sigma_hi, label), goal)
        level = self.weight_level(pair.sigma_lo, pair.sigma_hi)
        return weight(self.config.weight, level, self.context.sigma_data, pair.dt) * d


def frozen(roles: Roles) -> Any:
    """The network that gives goals: the target, or the student itself when the target's mu is 0."""
    return roles.student if roles.target is None else roles.target
