"""What an objective is: it declares the networks it needs and turns a batch into losses, one per sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from cmray.core.precond import Denoise, PrecondName
from cmray.core.registry import ComponentConfig, Registry, component
from cmray.core.times import Draw, KarrasCurve, TimeSampler

#: network evaluations of 18 Heun steps, as EDM takes on CIFAR-10
TEACHER_NFE = 35

objectives: Registry[Any] = Registry("objective", ["cmray.objectives"])
ObjectiveField = component(objectives, "what is minimised")


@dataclass(frozen=True)
class ObjectiveContext:
    """What an objective may know of the run it serves."""

    sigma_min: float
    sigma_max: float
    rho: float
    sigma_data: float
    steps: int  # K, the length of the run, for curricula
    device: torch.device


#: What a trained network is used as: a denoiser samples with an ODE solver and can teach, a consistency function maps
#: any noise level to the image, a few-step denoiser is right only on the grid it was distilled to.
Kind = Literal["denoiser", "consistency", "few-step"]


@dataclass(frozen=True)
class Roles:
    """The networks of one step, all of the form D(x, sigma, label). Only `student` carries gradients.

    In one step, student and target see the same dropout mask: every call of either starts from the same random state.
    """

    student: Denoise
    target: Denoise | None = None
    teacher: Denoise | None = None


@dataclass(frozen=True)
class Loss:
    """Weighted loss per sample [B], the noise level each sample was drawn at [B], and how it was drawn."""

    loss: Tensor
    sigma: Tensor
    draw: Draw | None = None

    def mean(self) -> Tensor:
        """What is minimised: the mean over the batch, with the importance of each draw."""
        if self.draw is None or self.draw.importance is None:
            return self.loss.mean()
        return (self.loss * self.draw.importance).mean()


@dataclass(frozen=True)
class Transition:
    """What the engine is to do between two steps, when a stage of an objective ends."""

    teacher_from_student: bool = False
    ema_from_student: bool = False
    reset_optimizer: bool = False


class ObjectiveConfig(ComponentConfig):
    """Options of one objective, and what can be known of it without building it."""

    precond: ClassVar[PrecondName]
    kind: ClassVar[Kind]
    #: whether `Roles.teacher` is used in every step
    needs_teacher: ClassVar[bool] = False
    #: whether `transition` may ask for another teacher, so that the teacher is part of the checkpoint
    replaces_teacher: ClassVar[bool] = False
    #: fields of other objectives that this one has no use for, refused by name
    lacks: ClassVar[tuple[str, ...]] = ()
    #: whether it differentiates the network forwards, which torch.compile and fused attention do not support
    needs_jvp: ClassVar[bool] = False

    @model_validator(mode="before")
    @classmethod
    def _not_of_others(cls, value: Any) -> Any:
        for field in cls.lacks if isinstance(value, dict) else ():
            if field in value:
                raise ValueError(
                    f"{field} is {value[field]!r}, but objective.name is {value.get('name')}, which has no {field}"
                )
        return value

    @property
    def is_denoiser(self) -> bool:
        """Whether what it trains is a denoiser, as teachers are."""
        return self.kind == "denoiser"

    @property
    def needs_target(self) -> bool:
        """Whether it compares with a network of its own, a moving average of the student."""
        return False

    @property
    def uses_teacher(self) -> bool:
        """Whether a run needs a teacher at all: in its steps, or to start from."""
        return self.needs_teacher or self.starts_from == "teacher"

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

    @property
    def own_nfe(self) -> int | None:
        """The one budget that a few-step model was distilled for; None for others."""
        return None

    @property
    def usual_nfe(self) -> int:
        """Network evaluations of a sample unless somebody says: 18 Heun steps of a denoiser, as EDM on CIFAR-10."""
        return TEACHER_NFE if self.is_denoiser else self.own_nfe or 1

    def search_num_sigmas(self, steps: int) -> int:
        """Points of the grid that sampling times are searched on unless an experiment says another number.

        That of the last training step; 40, as in the paper's code, where training has no grid.
        """
        return 40

    def check_steps(self, steps: int) -> None:
        """Raises ValueError with one sentence when the objective's schedules do not fit a run of so many steps."""

    def build(self, context: ObjectiveContext) -> Objective:
        raise TypeError(f"{type(self).__name__} does not define build")


class FromTeacher(ObjectiveConfig):
    """Joined by objectives whose student may start from the teacher's weights."""

    init: Literal["teacher", "random"] = Field("teacher", description="where the student's weights start")

    @property
    def starts_from(self) -> Literal["random", "teacher"]:
        return self.init


class Objective:
    """A loss and its schedules. Randomness comes from the generator that the engine passes in."""

    def __init__(self, context: ObjectiveContext, times: TimeSampler | None = None):
        self.context = context
        self.times = times or TimeSampler()

    @property
    def curve(self) -> KarrasCurve:
        """The Karras curve of the run's noise levels."""
        return KarrasCurve(self.context.sigma_min, self.context.sigma_max, self.context.rho)

    def loss(self, roles: Roles, x0: Tensor, label: Tensor | None, step: int, generator: torch.Generator) -> Loss:
        """x0 float32 [B,C,H,W] in [-1,1], label int64 [B] | None, step k in 0..K-1 -> Loss."""
        raise TypeError(f"{type(self).__name__} does not define loss")

    def target_mu(self, step: int) -> float:
        """mu(k): target <- mu target + (1 - mu) student after the k-th update. Only asked when there is a target."""
        return 0.0

    def schedule(self, step: int) -> dict[str, float]:
        """What to log of the schedules at step k, such as N and mu."""
        return {}

    def transition(self, step: int) -> Transition | None:
        """What has to happen before step k, k > 0; None for most."""
        return None
