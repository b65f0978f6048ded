"""Schedules of the number of grid points N(k) and of the target network's decay mu(k)."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, model_validator

from cmray.core.registry import ComponentConfig, Registry, component

num_sigmas_schedules: Registry[Any] = Registry("schedule of N", ["cmray.core.curricula"])
mu_schedules: Registry[Any] = Registry("schedule of mu", ["cmray.core.curricula"])


@num_sigmas_schedules.register("fixed")
class FixedNumSigmas(ComponentConfig):
    """N(k) = num_sigmas."""

    num_sigmas: int = Field(18, ge=2, description="points of the grid, one more than its intervals")

    @property
    def label(self) -> str:
        return f"N={self.num_sigmas}"

    def num_sigmas_at(self, step: int, steps: int) -> int:
        return self.num_sigmas


@num_sigmas_schedules.register("adaptive")
class AdaptiveNumSigmas(ComponentConfig):
    """N(k) = ceil(sqrt(k/K ((s1+1)^2 - s0^2) + s0^2) - 1) + 1   (Consistency Models, App. C).

    N(0) = s0 and N grows to s1 + 1, so that the grid has between s0 - 1 and s1 intervals.
    """

    s0: int = Field(2, ge=2, description="points of the grid at the first step")
    s1: int = Field(150, ge=2, description="intervals of the grid at the last step; at least s0")

    @model_validator(mode="after")
    def _ordered(self) -> AdaptiveNumSigmas:
        if self.s1 < self.s0:
            raise ValueError(f"s0 {self.s0} and s1 {self.s1} must satisfy s0 <= s1")
        return self

    @property
    def label(self) -> str:
        return f"N(k) {self.s0}→{self.s1 + 1}"

    def num_sigmas_at(self, step: int, steps: int) -> int:
        s0, s1 = self.s0, self.s1
        # max(1, .) as in the reference code: rounding in the square root must not give an empty grid at k = 0
        return max(1, math.ceil(math.sqrt(step / steps * ((s1 + 1) ** 2 - s0**2) + s0**2) - 1)) + 1


@num_sigmas_schedules.register("doubling")
class DoublingNumSigmas(ComponentConfig):
    """N(k) = min(s0 2^floor(k/K'), s1) + 1 with K' = floor(K / (log2 floor(s1/s0) + 1))   (iCT, Sec. 3.4)."""

    s0: int = Field(10, ge=1, description="intervals of the grid at the first step")
    s1: int = Field(1280, ge=1, description="intervals of the grid at the last step; at least s0")

    @model_validator(mode="after")
    def _ordered(self) -> DoublingNumSigmas:
        if self.s1 < self.s0:
            raise ValueError(f"s0 {self.s0} and s1 {self.s1} must satisfy s0 <= s1")
        return self

    @property
    def label(self) -> str:
        return f"N(k) {self.s0 + 1}⇉{self.s1 + 1}"

    def num_sigmas_at(self, step: int, steps: int) -> int:
        stage_steps = max(1, math.floor(steps / (math.log2(self.s1 // self.s0) + 1)))
        return min(self.s0 * 2 ** (step // stage_steps), self.s1) + 1


@num_sigmas_schedules.register("halving")
class HalvingNumSigmas(ComponentConfig):
    """Sampling steps start, start/2, ..., end; those with 2 and 1 train twice as long   (progressive distillation).

    N(k) is one more than the sampling steps of stage k. With `stage_steps` null the stages fill the run.
    """

    start: int = Field(64, ge=1, description="sampling steps of the first student, a power of two")
    end: int = Field(1, ge=1, description="sampling steps of the last student, a power of two")
    stage_steps: int | None = Field(None, ge=1, description="training steps of a stage; null fills the run")

    @model_validator(mode="after")
    def _powers_of_two(self) -> HalvingNumSigmas:
        for field in ("start", "end"):
            value: int = getattr(self, field)
            if value & (value - 1):
                low = 1 << (value.bit_length() - 1)
                raise ValueError(
                    f"num_sigmas.{field} is {value}, but num_sigmas.name halving needs a power of two; the nearest are "
                    f"{low} and {2 * low}"
                )
        if self.end > self.start:
            raise ValueError(f"start {self.start} and end {self.end} must satisfy end <= start")
        return self

    @property
    def label(self) -> str:
        return f"{self.start}→{self.end} steps"

    @property
    def stages(self) -> list[tuple[int, int]]:
        """(sampling steps, length in units) of each stage."""
        count = self.start.bit_length() - self.end.bit_length() + 1
        return [(n, 2 if n <= 2 else 1) for n in (self.start >> i for i in range(count))]

    @property
    def units(self) -> int:
        """Length of the whole schedule in stages, those of 2 and 1 steps counted twice."""
        return sum(length for _, length in self.stages)

    def num_sigmas_at(self, step: int, steps: int) -> int:
        unit = self.stage_steps or max(1, steps // self.units)
        for sampling_steps, length in self.stages:
            if step < length * unit:
                return sampling_steps + 1
            step -= length * unit
        return self.end + 1


@mu_schedules.register("fixed")
class FixedMu(ComponentConfig):
    """mu(k) = mu; 0 makes the target a copy of the student."""

    mu: float = Field(0.95, ge=0, lt=1, description="kept of the target at each step; 0 copies the student")

    def mu_at(self, num_sigmas: int, s0: int | None) -> float:
        return self.mu


@mu_schedules.register("adaptive")
class AdaptiveMu(ComponentConfig):
    """mu(k) = exp(s0 ln(mu0) / D) with D = N(k) in the paper and D = N(k) - 1 in the reference code.

    s0 is that of the adaptive schedule of N.
    """

    mu0: float = Field(0.9, gt=0, lt=1, description="mu at the first step, where N(k) is s0 and divisor is paper")
    divisor: Literal["paper", "reference"] = Field("paper", description="D: N(k) as printed, N(k) - 1 as in the code")

    def mu_at(self, num_sigmas: int, s0: int | None) -> float:
        if s0 is None:
            raise ValueError("an adaptive mu needs an adaptive num_sigmas, whose s0 it uses")
        intervals = num_sigmas if self.divisor == "paper" else num_sigmas - 1
        return math.exp(s0 * math.log(self.mu0) / intervals)


NumSigmasField = component(
    num_sigmas_schedules, "N(k), points of the grid of noise levels at step k", number=("fixed", "num_sigmas")
)
MuField = component(mu_schedules, "decay of the target network, an average of the student", number=("fixed", "mu"))
