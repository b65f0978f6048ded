"""What consistency distillation and consistency training share: everything but where the earlier point comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import model_validator
from torch import Tensor

from cmray.core.curricula import MuField, NumSigmasField
from cmray.core.distances import DistanceField
from cmray.core.grids import karras_sigmas
from cmray.core.precond import PrecondName, expand
from cmray.core.times import uniform_index
from cmray.core.weights import WeightName, weight
from cmray.objectives.base import Loss, Objective, ObjectiveConfig, ObjectiveContext, Roles


class ConsistencyConfig(ObjectiveConfig):
    """Fields of both. A bare number for `num_sigmas` or `mu` means a fixed one."""

    precond: ClassVar[PrecondName] = "boundary"
    needs_target: ClassVar[bool] = True

    num_sigmas: NumSigmasField = 18  # type: ignore[valid-type]
    mu: MuField = 0.95  # type: ignore[valid-type]
    distance: DistanceField = "l2"  # type: ignore[valid-type]
    weight: WeightName = "uniform"

    @model_validator(mode="after")
    def _schedules_agree(self) -> ConsistencyConfig:
        if self.mu.name == "adaptive" and not hasattr(self.num_sigmas, "s0"):
            raise ValueError(
                f"mu.name is adaptive, which uses the s0 of an adaptive num_sigmas, but num_sigmas.name is "
                f"{self.num_sigmas.name}"
            )
        return self

    @property
    def frozen_forwards(self) -> int:
        return 1

    @property
    def features(self) -> str | None:
        return self.distance.features

    @property
    def label(self) -> str:
        n: Any = self.num_sigmas
        grid = f"N={n.num_sigmas}" if n.name == "fixed" else f"N(k) {n.s0}→{n.s1 + 1}"
        return f"{self.name} · {self.distance.name} · {grid}"


@dataclass(frozen=True)
class Pair:
    """Two neighbours on the grid: x_hi = x0 + sigma_hi z [B,C,H,W], sigma_hi > sigma_lo [B]."""

    x0: Tensor
    z: Tensor
    x_hi: Tensor
    sigma_hi: Tensor
    sigma_lo: Tensor


class Consistency(Objective):
    """lambda(sigma_lo) d(f(x_hi, sigma_hi), f_target(x_lo, sigma_lo)), the pair one grid interval apart.

    Subclasses give x_lo.
    """

    def __init__(self, config: ConsistencyConfig, context: ObjectiveContext):
        super().__init__(context)
        self.config: Any = config
        self.distance = self.config.distance.build(context.device)
        self._grid: tuple[int, Tensor] = (0, torch.empty(0))

    def num_sigmas_at(self, step: int) -> int:
        return self.config.num_sigmas.num_sigmas_at(step, self.context.steps)

    def sigmas_at(self, step: int) -> Tensor:
        """The ascending grid of step k, float32 [N(k)], kept until N changes."""
        n = self.num_sigmas_at(step)
        if self._grid[0] != n:
            c = self.context
            grid = torch.from_numpy(karras_sigmas(n, c.sigma_min, c.sigma_max, c.rho)).float().to(c.device)
            self._grid = (n, grid)
        return self._grid[1]

    def earlier(self, roles: Roles, pair: Pair, label: Tensor | None) -> Tensor:
        """x_lo, the point at sigma_lo on (an estimate of) the same trajectory as x_hi. Called without gradients."""
        raise TypeError(f"{type(self).__name__} does not define earlier")

    def loss(self, roles: Roles, x0: Tensor, label: Tensor | None, step: int, generator: torch.Generator) -> Loss:
        sigmas = self.sigmas_at(step)
        n = uniform_index(x0.shape[0], len(sigmas), generator)
        sigma_lo, sigma_hi = sigmas[n], sigmas[n + 1]
        z = torch.randn(x0.shape, generator=generator, device=x0.device)
        x_hi = x0 + expand(sigma_hi, x0) * z
        assert roles.target is not None
        with torch.no_grad():
            x_lo = self.earlier(roles, Pair(x0, z, x_hi, sigma_hi, sigma_lo), label)
            goal = roles.target(x_lo, sigma_lo, label)
        d = self.distance(roles.student(x_hi, sigma_hi, label), goal)
        return Loss(weight(self.config.weight, sigma_lo, self.context.sigma_data, sigma_hi - sigma_lo) * d, sigma_hi)

    def target_mu(self, step: int) -> float:
        return self.config.mu.mu_at(self.num_sigmas_at(step), getattr(self.config.num_sigmas, "s0", None))

    def schedule(self, step: int) -> dict[str, float]:
        return {"num_sigmas": float(self.num_sigmas_at(step)), "mu": self.target_mu(step)}
