"""DEIS with third-degree extrapolation (tAB3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from cmray.core.precond import Denoise
from cmray.core.rng import SampleNoise
from cmray.samplers.base import Sampler, samplers
from cmray.solvers.base import slope

DEGREE = 3


def ab_weights(points: Sequence[float], start: float, end: float) -> list[float]:
    """C_j = integral from start to end of prod_{k != j} (tau - t_k) / (t_j - t_k) d tau   (DEIS, tAB).

    At most 4 points: two Gauss points are exact for the degree of 3 at most.
    """
    middle, half = (start + end) / 2, (end - start) / 2
    nodes = (middle - half / math.sqrt(3), middle + half / math.sqrt(3))

    def basis(j: int, tau: float) -> float:
        return math.prod((tau - t) / (points[j] - t) for k, t in enumerate(points) if k != j)

    return [half * sum(basis(j, tau) for tau in nodes) for j in range(len(points))]


@samplers.register("deis-3")
class DEIS3(Sampler):
    """x <- x + sum_j C_j eps_j: the polynomial through eps at this level and up to three earlier ones, integrated
    exactly   (DEIS, tAB3).

    In the variance-exploding form dx = eps d sigma, the exponential factor is 1, and DEIS's t and rho are both sigma.
    The first steps have fewer points; the last one, to 0, is an Euler step. A step with four points is of order 4. Low
    orders at the start cost nothing visible at sigma_max of 80, where trajectories are straight; started at noise that
    is not far above the data's deviation, they make the whole of order 2.
    """

    order: ClassVar[int | None] = 4

    def step(
        self, denoise: Denoise, x: Tensor, i: int, noise: SampleNoise, label: Tensor | None, past: list[Tensor]
    ) -> Tensor:
        if i == 0:
            return denoise(x, self.level(0, x), label)
        past.append(slope(denoise, x, self.level(i, x), label))
        del past[: -(DEGREE + 1)]
        points = self.sigmas[i : i + len(past)]
        weights = ab_weights(points, self.sigmas[i], self.sigmas[i - 1])
        for weight, eps in zip(weights, reversed(past), strict=True):
            x = x + weight * eps
        return x
