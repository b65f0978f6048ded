"""What consistency distillation and consistency training share: everything but where the earlier point comes from."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from cmray.core.curricula import MuField, NumSigmasField
from cmray.core.grids import karras_sigmas
from cmray.core.precond import PrecondName
from cmray.core.times import TimesField
from cmray.objectives.base import ObjectiveContext, Roles
from cmray.objectives.pairs import Levels, Pair, PairConfig, PairObjective, frozen


class ConsistencyConfig(PairConfig):
    """Fields of both. A bare number for `num_sigmas` or `mu` means a fixed one."""

    precond: ClassVar[PrecondName] = "boundary"

    num_sigmas: NumSigmasField = 18  # type: ignore[valid-type]
    mu: MuField = 0.95  # type: ignore[valid-type]
    times: TimesField = "uniform"  # type: ignore[valid-type]
    weight_at: Literal["lower", "upper"] = Field(
        "lower", description="noise level of the pair that lambda is taken at: lower in the paper, upper in its code"
    )

    @model_validator(mode="after")
    def _schedules_agree(self) -> ConsistencyConfig:
        grid = self.num_sigmas.name
        if self.mu.name == "adaptive" and not hasattr(self.num_sigmas, "s0"):
            raise ValueError(
                f"mu.name is adaptive, which uses the s0 of an adaptive num_sigmas, but num_sigmas.name is {grid}"
            )
        if grid == "halving":
            raise ValueError(f"num_sigmas.name is halving, which is for progressive distillation, not {self.name}")
        if self.times.name == "loss-second-moment" and grid != "fixed":
            raise ValueError(
                f"times.name is loss-second-moment, which keeps losses per interval of a fixed grid, but "
                f"num_sigmas.name is {grid}"
            )
        return self

    @property
    def needs_target(self) -> bool:
        """With mu = 0 the target is the student itself, without gradients."""
        return not (self.mu.name == "fixed" and self.mu.mu == 0)

    def search_num_sigmas(self, steps: int) -> int:
        return self.num_sigmas.num_sigmas_at(steps - 1, steps)

    @property
    def label(self) -> str:
        return f"{self.name} · {self.distance.name} · {self.num_sigmas.label}"


class Consistency(PairObjective):
    """The pair is one interval of the Karras grid apart. Subclasses give the earlier point."""

    def __init__(self, config: ConsistencyConfig, context: ObjectiveContext):
        bins = getattr(config.num_sigmas, "num_sigmas", 2) - 1  # only a fixed grid has a learning time sampler
        super().__init__(config, context, config.times.build(context.device, bins))
        self.config: Any = config
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

    def levels(self, step: int, batch: int, generator: torch.Generator) -> Levels:
        sigmas = self.sigmas_at(step)
        draw = self.times.index(batch, sigmas, generator)
        lo, hi = sigmas[draw.value], sigmas[draw.value + 1]
        return Levels(lo, hi, hi - lo, draw)

    def weight_level(self, sigma_lo: Tensor, sigma_hi: Tensor) -> Tensor:
        return sigma_lo if self.config.weight_at == "lower" else sigma_hi

    def earlier(self, roles: Roles, pair: Pair, label: Tensor | None) -> Tensor:
        """x_lo, the point at sigma_lo on (an estimate of) the same trajectory as x_hi. Called without gradients."""
        raise TypeError(f"{type(self).__name__} does not define earlier")

    def goal(self, roles: Roles, pair: Pair, label: Tensor | None) -> Tensor:
        return frozen(roles)(self.earlier(roles, pair, label), pair.sigma_lo, label)

    def target_mu(self, step: int) -> float:
        return self.config.mu.mu_at(self.num_sigmas_at(step), getattr(self.config.num_sigmas, "s0", None))

    def schedule(self, step: int) -> dict[str, float]:
        return {"num_sigmas": float(self.num_sigmas_at(step)), "mu": self.target_mu(step)}
