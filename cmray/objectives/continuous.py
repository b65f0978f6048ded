"""Consistency models in continuous time: the limits of CD and CT as the grid becomes infinitely fine."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from cmray.core.distances import Distance, DistanceField
from cmray.core.precond import Denoise, PrecondName, expand
from cmray.core.times import TimesField
from cmray.core.weights import WeightName, weight
from cmray.objectives.base import (
    FromTeacher,
    Kind,
    Loss,
    Objective,
    ObjectiveConfig,
    ObjectiveContext,
    Roles,
    objectives,
)
from cmray.solvers.base import slope


class ContinuousConfig(ObjectiveConfig):
    """Fields of both. sigma = tau(u), u uniform in [0, 1], tau the Karras curve.

    Weight 1/dt stands for lambda = (tau^{-1})'(sigma), the limit of 1/(sigma_hi - sigma_lo) up to the number of points.
    """

    precond: ClassVar[PrecondName] = "boundary"
    kind: ClassVar[Kind] = "consistency"
    needs_jvp: ClassVar[bool] = True
    lacks: ClassVar[tuple[str, ...]] = ("num_sigmas", "solver", "mu")  # the grid is endlessly fine

    distance: DistanceField = "l2"  # type: ignore[valid-type]
    weight: WeightName = Field("uniform", description="lambda(sigma); 1/dt is the limit of that of a grid")
    times: TimesField = "uniform"  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _smooth(self) -> ContinuousConfig:
        if not self.distance.is_smooth and not self._allows_rough():
            raise ValueError(
                f"distance.name is {self.distance.name}, which has no second derivative at 0, but objective.name is "
                f"{self.name}; use a smooth one, such as l2"
            )
        return self

    def _allows_rough(self) -> bool:
        return False

    @property
    def features(self) -> str | None:
        return self.distance.features

    @property
    def label(self) -> str:
        return f"{self.name} · {self.distance.name}"


@objectives.register("cd-continuous")
class ContinuousCDConfig(FromTeacher, ContinuousConfig):
    """theta_minus = stopgrad: Theorem 5. theta_minus = student: Theorem 3, or Theorem 4 when the distance is l1."""

    needs_teacher: ClassVar[bool] = True

    theta_minus: Literal["stopgrad", "student"] = Field(
        "stopgrad", description="what stands for the target: the student without gradients, or with them (l2 and l1)"
    )

    @property
    def frozen_forwards(self) -> int:
        return 3 if self.theta_minus == "stopgrad" else 1  # teacher, and a derivative that costs about two forwards

    @property
    def label(self) -> str:
        return f"{super().label} · θ⁻={self.theta_minus}"

    def _allows_rough(self) -> bool:
        return self.theta_minus == "student" and self.distance.name == "l1"

    def build(self, context: ObjectiveContext) -> Continuous:
        return ContinuousDistillation(self, context)


@objectives.register("ct-continuous")
class ContinuousCTConfig(ContinuousConfig):
    """Theorem 6: the teacher's direction is replaced by (x - x0)/sigma = z; theta_minus is stopgrad of the student."""

    @property
    def frozen_forwards(self) -> int:
        return 2

    def build(self, context: ObjectiveContext) -> Continuous:
        return ContinuousTraining(self, context)


def total_derivative(
    f: Denoise, x: Tensor, sigma: Tensor, direction: Tensor, label: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(f(x, sigma), df/dsigma + df/dx direction), both [B,C,H,W], in one forward-mode pass.

    direction [B,C,H,W] is dx/dsigma. Fused attention has no forward derivative, so the plain one is used here.
    """
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.script.*")  # of torch's own rules for forward mode
        out = torch.func.jvp(lambda x_, s_: f(x_, s_, label), (x, sigma), (direction, torch.ones_like(sigma)))
    return out[0], out[1]


def metric_product(distance: Distance, at: Tensor, v: Tensor) -> Tensor:
    """G(at) v [B,C,H,W] with G the Hessian of d(at, y) in y at y = at   (Consistency Models, Theorem 3)."""

    def gradient(y: Tensor) -> Tensor:
        return torch.func.grad(lambda y_: distance(y_, at).sum())(y)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.script.*")
        return torch.func.jvp(gradient, (at,), (v,))[1]


@dataclass(frozen=True)
class Point:
    """x [B,C,H,W] at sigma [B], the direction dx/dsigma of its trajectory, and speed = tau'(sigma) [B]."""

    x: Tensor
    sigma: Tensor
    direction: Tensor
    speed: Tensor


class Continuous(Objective):
    """The gradient of (N - 1) L_N in the limit N -> infinity, with theta_minus = stopgrad(theta).

    lambda tau'(sigma) f_theta^T G df/dsigma has that gradient but no meaning as a number. The loss here is
    lambda tau'(sigma) ||f_theta - stopgrad(f_theta) + G df/dsigma||^2 / 2, which has the same gradient and is zero
    where the model is consistent.
    """

    BINS = 40

    def __init__(self, config: ContinuousConfig, context: ObjectiveContext):
        super().__init__(context, config.times.build(context.device, self.BINS))
        self.config: Any = config
        self.distance = self.config.distance.build(context.device)

    def direction(self, roles: Roles, x: Tensor, z: Tensor, sigma: Tensor, label: Tensor | None) -> Tensor:
        """dx/dsigma [B,C,H,W]. Called without gradients."""
        raise TypeError(f"{type(self).__name__} does not define direction")

    def loss(self, roles: Roles, x0: Tensor, label: Tensor | None, step: int, generator: torch.Generator) -> Loss:
        draw = self.times.sigma(x0.shape[0], self.curve, generator)
        sigma = draw.value.clamp(self.context.sigma_min, self.context.sigma_max)
        z = torch.randn(x0.shape, generator=generator, device=x0.device)
        return Loss(self.point_loss(roles, x0, z, sigma, label), sigma, draw)

    def point_loss(self, roles: Roles, x0: Tensor, z: Tensor, sigma: Tensor, label: Tensor | None) -> Tensor:
        """The weighted loss [B] at x0 + sigma z: nothing in it is random."""
        x = x0 + expand(sigma, x0) * z
        with torch.no_grad():
            direction = self.direction(roles, x, z, sigma, label)
        speed = self.curve.slope(sigma)
        scale = weight(self.config.weight, sigma, self.context.sigma_data, speed) * speed
        return self.unscaled(roles, Point(x, sigma, direction, speed), label) * scale

    def unscaled(self, roles: Roles, point: Point, label: Tensor | None) -> Tensor:
        """The loss [B] without lambda tau'(sigma)."""
        with torch.no_grad():
            f, derivative = total_derivative(roles.student, point.x, point.sigma, point.direction, label)
            pull = metric_product(self.distance, f, derivative)
        f_theta = roles.student(point.x, point.sigma, label)
        return (f_theta - f_theta.detach() + pull).square().flatten(1).sum(1) / 2


class ContinuousDistillation(Continuous):
    """The direction is the teacher's; with theta_minus = student the derivative itself is minimised."""

    def direction(self, roles: Roles, x: Tensor, z: Tensor, sigma: Tensor, label: Tensor | None) -> Tensor:
        assert roles.teacher is not None
        return slope(roles.teacher, x, sigma, label)

    def unscaled(self, roles: Roles, point: Point, label: Tensor | None) -> Tensor:
        if self.config.theta_minus == "stopgrad":
            return super().unscaled(roles, point, label)
        f, derivative = total_derivative(roles.student, point.x, point.sigma, point.direction, label)
        if self.config.distance.name == "l1":  # lim (N - 1) L_N: lambda tau' ||df/dsigma||_1   (Theorem 4)
            return derivative.abs().flatten(1).mean(1)
        # lim (N - 1)^2 L_N: lambda tau'^2 (df/dsigma)^T G df/dsigma / 2   (Theorem 3)
        quadratic = (derivative * metric_product(self.distance, f, derivative)).flatten(1).sum(1) / 2
        return point.speed * quadratic


class ContinuousTraining(Continuous):
    def direction(self, roles: Roles, x: Tensor, z: Tensor, sigma: Tensor, label: Tensor | None) -> Tensor:
        return z
