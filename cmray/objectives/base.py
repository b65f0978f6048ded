"""What an objective is: it declares the networks it needs and turns a batch into losses, one per sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from cmray.core.precond import Denoise, PrecondName
from cmray.core.registry import ComponentConfig, Registry, component

objectives: Registry[Any] = Registry("objective", ["cmray.objectives"])
ObjectiveField = component(objectives)


@dataclass(frozen=True)
class ObjectiveContext:
    """What an objective may know of the run it serves."""

    sigma_min: float
    sigma_max: float
    rho: float
    sigma_data: float
    steps: int  # K, the length of the run, for curricula
    device: torch.device


@dataclass(frozen=True)
class Roles:
    """The networks of one step, all of the form D(x, sigma, label). Only `student` carries gradients."""

    student: Denoise
    target: Denoise | None = None
    teacher: Denoise | None = None


@dataclass(frozen=True)
class Loss:
    """Weighted loss per sample [B] and the noise level each sample was drawn at [B]."""

    loss: Tensor
    sigma: Tensor


class ObjectiveConfig(ComponentConfig):
    """Options of one objective, and what can be known of it without building it."""

    precond: ClassVar[PrecondName]
    needs_target: ClassVar[bool] = False
    needs_teacher: ClassVar[bool] = False

    @property
    def is_denoiser(self) -> bool:
        """Whether what it trains is a denoiser, as teachers are, rather than a consistency function."""
        return self.precond == "edm"

    #: where the student's weights come from
    @property
    def starts_from(self) -> Literal["random", "teacher"]:
        return "random"

    @property
    def label(self) -> str:
        """A few words for tables and figures."""
        return self.name

    @property
    def frozen_forwards(self) -> int:
        """Network evaluations without gradients per sample and step, for time estimates."""
        return 0

    @property
    def features(self) -> str | None:
        """The extractor whose features the loss compares, None for pixels."""
        return None

    def build(self, context: ObjectiveContext) -> Objective:
        raise TypeError(f"{type(self).__name__} does not define build")


class Objective:
    """A loss and its schedules. Randomness comes from the generator that the engine passes in."""

    def __init__(self, context: ObjectiveContext):
        self.context = context

    def loss(self, roles: Roles, x0: Tensor, label: Tensor | None, step: int, generator: torch.Generator) -> Loss:
        """x0 float32 [B,C,H,W] in [-1,1], label int64 [B] | None, step k in 0..K-1 -> Loss."""
        raise TypeError(f"{type(self).__name__} does not define loss")

    def target_mu(self, step: int) -> float:
        """mu(k): target <- mu target + (1 - mu) student after the k-th update. Only asked when there is a target."""
        return 0.0

    def schedule(self, step: int) -> dict[str, float]:
        """What to log of the schedules at step k, such as N and mu."""
        return {}
