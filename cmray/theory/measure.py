"""Theorems 1 to 6, measured with the objectives that train: errors against the number of intervals N - 1.

Every expectation is an integral by Gauss-Hermite nodes in float64, so that nothing here is random.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmray.core.grids import karras_sigmas
from cmray.core.precond import BoundaryPrecond, expand
from cmray.objectives import ObjectiveContext, Roles, objectives
from cmray.objectives.pairs import Pair
from cmray.theory.config import TheoryConfig
from cmray.theory.truth import Mixture, gauss_hermite

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Curve:
    """One measured convergence.

    Attributes:
        theorem: "Theorem 1".
        quantity: what the errors are of, in a few words.
        label: which solver, distance or direction.
        data: name of the mixture.
        intervals, errors: N - 1 and the error there.
        expected: the order that the theory gives; None when it only says that the error vanishes faster than 1/(N-1).
    """

    theorem: str
    quantity: str
    label: str
    data: str
    intervals: tuple[int, ...]
    errors: tuple[float, ...]
    expected: float

    @property
    def order(self) -> float:
        """Slope of -ln(error) over ln(N - 1) between the last two points."""
        (n0, n1), (e0, e1) = self.intervals[-2:], self.errors[-2:]
        return math.log(e0 / e1) / math.log(n1 / n0)

    @property
    def holds(self) -> bool:
        """Whether the measured order is the expected one to 0.15."""
        return abs(self.order - self.expected) < 0.15


def measure(config: TheoryConfig, progress: Callable[[str], None] = lambda _: None) -> list[Curve]:
    """Every curve of the file. Takes seconds to minutes; `progress` is told what comes next."""
    curves: list[Curve] = []
    for name, mixture in config.data.items():
        case = _Case(name, Mixture(mixture), config)
        for part in (case.theorem_1, case.theorem_2, case.theorems_3_and_4, case.theorems_5_and_6):
            progress(f"{name}: {part.__name__.replace('_', ' ')}")
            curves += part()
    return curves


class WrongStudent:
    """A smooth f with f(x, sigma_min) = x that is consistent with nothing, with two parameters to differentiate by."""

    def __init__(self, precond: BoundaryPrecond):
        self.precond = precond
        self.theta = torch.tensor([0.8, 0.5], dtype=torch.float64, requires_grad=True)

    def __call__(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        c_skip, c_out = (expand(c(sigma), x) for c in (self.precond.c_skip, self.precond.c_out))
        y = x / (1 + expand(sigma, x))
        return c_skip * x + c_out * (self.theta[0] * torch.tanh(y) + self.theta[1] * torch.cos(2 * y))


class _Case:
    """One mixture under one file's settings."""

    def __init__(self, name: str, data: Mixture, config: TheoryConfig):
        self.name, self.data, self.config = name, data, config
        noise = config.noise
        self.context = ObjectiveContext(noise.sigma_min, noise.sigma_max, noise.rho, data.std, 1, CPU)
        self.precond = BoundaryPrecond(data.std, noise.sigma_min)

    def grid(self, intervals: int) -> Tensor:
        noise = self.config.noise
        return torch.from_numpy(karras_sigmas(intervals + 1, noise.sigma_min, noise.sigma_max, noise.rho))

    def objective(self, **values: Any) -> Any:
        return objectives.parse(values).build(self.context)

    def curve(self, theorem: str, quantity: str, label: str, errors: list[float], expected: float) -> Curve:
        return Curve(theorem, quantity, label, self.name, self.config.intervals, tuple(errors), expected)

    # ------------------------------------------------------------ Theorem 1

    def theorem_1(self) -> list[Curve]:
        """sup |f_theta(x, sigma_max) - f(x, sigma_max)| where the CD loss with the exact score is zero.

        That loss is zero only where f_theta(x_hi, sigma_hi) = f_theta(x_lo, sigma_lo) along the solver's steps, so the
        minimiser is their composition; that its loss is zero is checked, not assumed.
        """
        noise = self.config.noise
        reach = 3 * math.hypot(noise.sigma_max, self.data.std)
        x = torch.linspace(-reach, reach, 201, dtype=torch.float64).reshape(-1, 1, 1, 1)
        exact = self.data.flow(x, noise.sigma_max, noise.sigma_min)
        curves = []
        for solver in self.config.solvers:
            errors = []
            for intervals in self.config.intervals:
                objective = self.objective(name="cd", solver=solver, num_sigmas=intervals + 1, mu=0)
                minimiser = _Minimiser(objective, self.grid(intervals), self.data)
                if intervals == self.config.intervals[0]:
                    self.check_minimiser(objective, minimiser, intervals)
                sigma = torch.full((len(x),), noise.sigma_max, dtype=torch.float64)
                errors.append(float((minimiser(x, sigma) - exact).abs().max()))
            order = float(solver.order)
            curves.append(self.curve("Theorem 1", "sup |f_CD - f|", solver.name, errors, order))
        return curves

    def check_minimiser(self, objective: Any, minimiser: _Minimiser, intervals: int) -> None:
        """Raises AssertionError unless the loss of the composed steps is zero."""
        loss = float(self.discrete_loss(objective, minimiser, intervals))
        if loss > 1e-18:
            raise AssertionError(f"composed solver steps have the CD loss {loss}, not 0")

    # ------------------------------------------------------------ losses as integrals

    def pairs(self, intervals: int) -> Iterator[tuple[Tensor, Pair]]:
        """(integration weights [B], pairs [B]), one interval of the grid at a time."""
        sigmas = self.grid(intervals)
        x0, z, weights = self.points()
        for n in range(intervals):
            lo, hi = (sigmas[i].expand(len(x0)) for i in (n, n + 1))
            yield weights, Pair(x0, z, x0 + expand(hi, x0) * z, hi, lo, hi - lo)

    def points(self) -> tuple[Tensor, Tensor, Tensor]:
        """x0, z [B,1,1,1] and integration weights [B]: every data node with every noise node."""
        x0, of_x0 = self.data.nodes(self.config.nodes)
        z, of_z = gauss_hermite(self.config.nodes)
        return (
            x0.repeat_interleave(len(z), 0),
            z.repeat(len(x0)).reshape(-1, 1, 1, 1),
            of_x0.repeat_interleave(len(z)) * of_z.repeat(len(x0)),
        )

    def discrete_loss(self, objective: Any, student: Any, intervals: int) -> Tensor:
        """E over x0, z and the interval of the objective's loss, theta_minus = stopgrad(theta)."""
        roles = Roles(student, None, self.data.denoise)
        parts = [(weights * objective.pair_loss(roles, pair, None)).sum() for weights, pair in self.pairs(intervals)]
        return torch.stack(parts).mean()

    def continuous_loss(self, objective: Any, student: Any) -> Tensor:
        """E over x0, z and u of the objective's loss, u by Gauss-Legendre nodes."""
        roles = Roles(student, None, self.data.denoise)
        u, of_u = np.polynomial.legendre.leggauss(64)
        x0, z, weights = self.points()
        total = torch.zeros((), dtype=torch.float64)
        for level, share in zip(objective.curve.sigma(torch.from_numpy((u + 1) / 2)), of_u / 2, strict=True):
            total = total + share * (weights * objective.point_loss(roles, x0, z, level.repeat(len(x0)), None)).sum()
        return total

    # ------------------------------------------------------------ Theorem 2

    def theorem_2(self) -> list[Curve]:
        """|L_CT - L_CD| with the exact score and Euler: o(dt), in fact of order 2 for a smooth f."""
        student = WrongStudent(self.precond)
        errors = []
        for intervals in self.config.intervals:
            common = {"num_sigmas": intervals + 1, "mu": 0}
            with torch.no_grad():
                cd, ct = (
                    self.discrete_loss(self.objective(**values, **common), student, intervals)
                    for values in ({"name": "cd", "solver": "euler"}, {"name": "ct"})
                )
            errors.append(float((ct - cd).abs()))
        return [self.curve("Theorem 2", "|L_CT - L_CD|", "l2", errors, 2.0)]

    # ------------------------------------------------------------ Theorems 3 to 6

    def theorems_3_and_4(self) -> list[Curve]:
        """The loss with theta_minus = theta against its limit: (N-1)^2 L for l2, (N-1) L for l1."""
        student = WrongStudent(self.precond)
        curves = []
        for theorem, distance, power in (("Theorem 3", "l2", 2), ("Theorem 4", "l1", 1)):
            values = {"name": "cd-continuous", "distance": distance, "theta_minus": "student"}
            limit = float(self.continuous_loss(self.objective(**values), student).detach())
            errors = []
            for intervals in self.config.intervals:
                objective = self.objective(name="cd", solver="euler", distance=distance, num_sigmas=intervals + 1, mu=0)
                with torch.no_grad():
                    loss = float(self.discrete_loss(objective, student, intervals))
                errors.append(abs(intervals**power * loss - limit) / abs(limit))
            quantity = f"|(N-1){'²' if power == 2 else ''} L_N - L_∞| / L_∞"
            curves.append(self.curve(theorem, quantity, f"cd {distance}", errors, 1.0))
        return curves

    def theorems_5_and_6(self) -> list[Curve]:
        """The gradient with theta_minus = stopgrad(theta) against its limit, (N-1) grad L."""
        curves = []
        for theorem, name in (("Theorem 5", "cd"), ("Theorem 6", "ct")):
            student = WrongStudent(self.precond)
            limit = self.continuous_loss(self.objective(name=f"{name}-continuous"), student)
            (goal,) = torch.autograd.grad(limit, student.theta)
            errors = []
            for intervals in self.config.intervals:
                solver = {"solver": "euler"} if name == "cd" else {}
                objective = self.objective(name=name, num_sigmas=intervals + 1, mu=0, **solver)
                loss = intervals * self.discrete_loss(objective, student, intervals)
                (gradient,) = torch.autograd.grad(loss, student.theta)
                errors.append(float((gradient - goal).norm() / goal.norm()))
            curves.append(self.curve(theorem, "|(N-1) ∇L_N - ∇L_∞| / |∇L_∞|", f"{name} l2", errors, 1.0))
        return curves


class _Minimiser:
    """f(x, t_n): the objective's own steps from t_n down to sigma_min, with the exact score."""

    def __init__(self, objective: Any, sigmas: Tensor, data: Mixture):
        self.objective, self.sigmas = objective, sigmas
        self.roles = Roles(data.denoise, None, data.denoise)

    def __call__(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        n = int(torch.searchsorted(self.sigmas, sigma[0] * (1 - 1e-9)))
        for i in range(n, 0, -1):
            hi, lo = (self.sigmas[j].expand(len(x)) for j in (i, i - 1))
            x = self.objective.earlier(self.roles, Pair(x, x, x, hi, lo, hi - lo), None)
        return x
