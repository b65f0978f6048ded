"""Easy consistency tuning (Geng et al. 2024): from a diffusion model to a consistency model by letting dt shrink."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from cmray.core.distances import DistanceField, PseudoHuber
from cmray.core.precond import PrecondName, expand
from cmray.core.times import Lognormal, TimesField
from cmray.core.weights import WeightName
from cmray.objectives.base import FromTeacher, ObjectiveContext, Roles, objectives
from cmray.objectives.pairs import Levels, Pair, PairConfig, PairObjective, frozen


@objectives.register("ect")
class ECTConfig(FromTeacher, PairConfig):
    """d(f(x_t, t), f(x_r, r)) / (t - r) with r = t (1 - n(t) / q^(stage+1)), n(t) = 1 + k sigmoid(-b t).

    The stages cut the run in equal parts. At r = 0 the goal is the clean image. f has EDM's preconditioning, so that
    the teacher's weights start as they are. The pseudo-Huber distance with factor 0 is the norm of the difference:
    together with 1/dt that is the paper's adaptive weight with p = 1/2.
    """

    precond: ClassVar[PrecondName] = "edm"
    lacks: ClassVar[tuple[str, ...]] = ("solver", "num_sigmas", "mu")

    distance: DistanceField = PseudoHuber(factor=0.0)  # type: ignore[valid-type]
    weight: WeightName = Field("1/dt", description="1/dt is one over t - r; 1/dt or uniform, as r may be 0")
    times: TimesField = Lognormal(P_mean=-1.1, P_std=2.0)  # type: ignore[valid-type]
    mapping: Literal["sigmoid", "constant"] = Field("sigmoid", description="constant sets n(t) to 1")
    q: float = Field(2.0, gt=1, description="each stage divides t - r by q")
    k: float = Field(8.0, ge=0, description="height of the sigmoid in n(t)")
    b: float = Field(1.0, ge=0, description="how fast n(t) falls from 1 + k/2 at t = 0 to 1")
    stages: int = Field(8, ge=1, description="equal parts of the run; q ** stages is at most 65,536")

    @model_validator(mode="after")
    def _weight_exists_at_zero(self) -> ECTConfig:
        if self.weight not in ("1/dt", "uniform"):
            raise ValueError(
                f"weight is {self.weight}, but objective.name ect pairs with noise level 0; use 1/dt or uniform"
            )
        return self

    @model_validator(mode="after")
    def _gap_is_a_number(self) -> ECTConfig:
        if self.q**self.stages > 2**16:
            raise ValueError(
                f"q {self.q:g} and stages {self.stages} make t - r smaller than t / 65,536, which float32 cannot tell "
                f"from 0; lower one of them"
            )
        return self

    @property
    def label(self) -> str:
        return f"ect · {self.distance.name} · q={self.q:g}"

    def check_steps(self, steps: int) -> None:
        if self.stages > steps:
            raise ValueError(f"objective.stages is {self.stages}, but train.steps is only {steps}")

    def build(self, context: ObjectiveContext) -> EasyConsistencyTuning:
        return EasyConsistencyTuning(self, context)


class EasyConsistencyTuning(PairObjective):
    BINS = 40

    def __init__(self, config: ECTConfig, context: ObjectiveContext):
        super().__init__(config, context, config.times.build(context.device, self.BINS))

    def stage_at(self, step: int) -> int:
        """0 .. stages-1."""
        return min(step * self.config.stages // self.context.steps, self.config.stages - 1)

    def gap(self, t: Tensor, step: int) -> Tensor:
        """t - r(t) in (0, t], the shape of t."""
        c = self.config
        n = 1 + c.k * torch.sigmoid(-c.b * t) if c.mapping == "sigmoid" else torch.ones_like(t)
        return t * (n / c.q ** (self.stage_at(step) + 1)).clamp(max=1)

    def levels(self, step: int, batch: int, generator: torch.Generator) -> Levels:
        draw = self.times.sigma(batch, self.curve, generator)
        dt = self.gap(draw.value, step)  # exact, where t - r would lose digits
        return Levels(draw.value - dt, draw.value, dt, draw)

    def goal(self, roles: Roles, pair: Pair, label: Tensor | None) -> Tensor:
        clean = pair.sigma_lo == 0
        # a network cannot be asked at 0, where ln(sigma) is not a number; what it says there is not used
        level = torch.where(clean, pair.sigma_hi, pair.sigma_lo)
        said = frozen(roles)(pair.x_lo, level, label)
        return torch.where(expand(clean, pair.x0), pair.x0, said)

    def schedule(self, step: int) -> dict[str, float]:
        return {"stage": float(self.stage_at(step))}
