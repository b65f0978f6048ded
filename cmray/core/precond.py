"""Preconditioning: how a raw network F becomes a denoiser D or a consistency function f."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

#: D or f (x, sigma, label): x float32 [B,C,H,W], sigma float32 [B], label int64 [B] or None -> [B,C,H,W].
Denoise = Callable[[Tensor, Tensor, Tensor | None], Tensor]
#: F(x, c_noise, label): a raw network, the shapes of `Denoise`.
RawNet = Callable[[Tensor, Tensor, Tensor | None], Tensor]
PrecondName = Literal["edm", "boundary"]


def expand(sigma: Tensor, x: Tensor) -> Tensor:
    """sigma [B] -> [B,1,1,1], to broadcast over x [B,C,H,W]."""
    return sigma.reshape(-1, *([1] * (x.ndim - 1)))


def c_in(sigma: Tensor, sigma_data: float) -> Tensor:
    """1 / sqrt(sigma^2 + sigma_data^2)   (EDM, Table 1)."""
    return (sigma**2 + sigma_data**2).rsqrt()


def c_noise(sigma: Tensor) -> Tensor:
    """ln(sigma) / 4   (EDM, Table 1)."""
    return sigma.log() / 4


@dataclass(frozen=True)
class EDMPrecond:
    """D(x, sigma) = c_skip x + c_out F(c_in x, c_noise)   (EDM, Table 1)."""

    sigma_data: float

    def c_skip(self, sigma: Tensor) -> Tensor:
        return self.sigma_data**2 / (sigma**2 + self.sigma_data**2)

    def c_out(self, sigma: Tensor) -> Tensor:
        return sigma * self.sigma_data * c_in(sigma, self.sigma_data)


@dataclass(frozen=True)
class BoundaryPrecond:
    """f(x, sigma) = c_skip x + c_out F(c_in x, c_noise) with f(x, sigma_min) = x   (Consistency Models, App. C).

    c_skip = sigma_data^2 / ((sigma - sigma_min)^2 + sigma_data^2),
    c_out = sigma_data (sigma - sigma_min) / sqrt(sigma_data^2 + sigma^2).
    """

    sigma_data: float
    sigma_min: float

    def c_skip(self, sigma: Tensor) -> Tensor:
        # divided by sigma_data^2, so that it is exactly 1 at sigma_min whatever sigma_data rounds to
        return 1 / (1 + ((sigma - self.sigma_min) / self.sigma_data) ** 2)

    def c_out(self, sigma: Tensor) -> Tensor:
        return self.sigma_data * (sigma - self.sigma_min) * c_in(sigma, self.sigma_data)


Precond = EDMPrecond | BoundaryPrecond


def make_precond(name: PrecondName, sigma_data: float, sigma_min: float) -> Precond:
    return EDMPrecond(sigma_data) if name == "edm" else BoundaryPrecond(sigma_data, sigma_min)


class Denoiser:
    """A raw network with its preconditioning, as a `Denoise` callable.

    Args:
        net: F(x, c_noise, label) -> [B,C,H,W].
        precond: the scalings, computed in float32 whatever the network's precision.
    """

    def __init__(self, net: RawNet, precond: Precond):
        self.net = net
        self.precond = precond

    def __call__(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        scaled = expand(c_in(sigma, self.precond.sigma_data), x) * x
        raw = self.net(scaled, c_noise(sigma), label).float()
        return expand(self.precond.c_skip(sigma), x) * x + expand(self.precond.c_out(sigma), x) * raw


def to_pixels(x: Tensor) -> Tensor:
    """Images in [-1, 1] -> uint8 in [0, 255], rounded to the nearest level and clipped."""
    return ((x.float() + 1) * 127.5).round_().clamp_(0, 255).to(torch.uint8)


def from_pixels(pixels: Tensor) -> Tensor:
    """uint8 in [0, 255] -> float32 in [-1, 1]."""
    return pixels.to(torch.float32, copy=True).div_(127.5).sub_(1)
