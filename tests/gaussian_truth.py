"""Gaussian data, for which the denoiser, the ODE's flow and the consistency function are known in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import forward_ad

from cmray.core.precond import expand


@dataclass(frozen=True)
class Gaussian:
    """x0 ~ N(mean, std^2) in every value, independently."""

    mean: float = 0.3
    std: float = 0.5

    def denoise(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """E[x0 | x, sigma] = (std^2 x + sigma^2 mean) / (std^2 + sigma^2)."""
        variance = expand(sigma, x) ** 2
        return (self.std**2 * x + variance * self.mean) / (self.std**2 + variance)

    def flow(self, x: Tensor, sigma_from: Tensor | float, sigma_to: Tensor | float) -> Tensor:
        """The exact solution of dx/dsigma = (x - D)/sigma: x - mean grows like sqrt(std^2 + sigma^2)."""
        begin, end = (expand(torch.as_tensor(s, dtype=x.dtype), x) for s in (sigma_from, sigma_to))
        return self.mean + (x - self.mean) * ((self.std**2 + end**2) / (self.std**2 + begin**2)).sqrt()

    def consistency(self, sigma_min: float):
        """f(x, sigma), the flow to sigma_min."""
        return lambda x, sigma, label=None: self.flow(x, sigma, sigma_min)

    def draw(self, *shape: int, seed: int = 0) -> Tensor:
        return self.mean + self.std * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Calls:
    """A denoiser that keeps what it was asked: x, sigma and label of every call.

    `frozen_forwards` counts the calls made without gradients, those that also carry a forward derivative twice, as
    that is about what they cost.
    """

    def __init__(self, denoise):
        self.denoise = denoise
        self.seen: list[tuple[Tensor, Tensor, Tensor | None]] = []
        self.frozen_forwards = 0

    def __call__(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        if not torch.is_grad_enabled():
            self.frozen_forwards += 1 if forward_ad.unpack_dual(x).tangent is None else 2
        self.seen.append((x.detach().clone(), sigma.clone(), label))
        return self.denoise(x, sigma, label)

    def __len__(self) -> int:
        return len(self.seen)


def measured_order(errors: list[float]) -> float:
    """The slope between the last two errors, the number of intervals doubling from one to the next."""
    return float(torch.log2(torch.tensor(errors[-2] / errors[-1])))
