"""How training draws noise levels: on a grid of sigmas or on the whole interval, uniformly or not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from cmray.core.registry import ComponentConfig, Registry, component

time_samplers: Registry[Any] = Registry("time sampler", ["cmray.core.times"])
TimesField = component(time_samplers, "how training draws noise levels")


@dataclass(frozen=True)
class KarrasCurve:
    """tau(u) = (sigma_min^(1/rho) + u (sigma_max^(1/rho) - sigma_min^(1/rho)))^rho, u in [0, 1]: an endless grid."""

    sigma_min: float
    sigma_max: float
    rho: float

    def sigma(self, u: Tensor) -> Tensor:
        """tau(u), the shape of u."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return ((low + u * (high - low)) ** self.rho).clamp(self.sigma_min, self.sigma_max)

    def slope(self, sigma: Tensor) -> Tensor:
        """tau'(u) = 1 / (tau^{-1})'(sigma) at sigma = tau(u), > 0."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return self.rho * (high - low) * sigma ** (1 - 1 / self.rho)


@dataclass(frozen=True)
class Draw:
    """What was drawn for a batch.

    Attributes:
        value: int64 [B], indices 0..N-2 of grid intervals, or float32 [B], noise levels.
        bin: int64 [B], where `observe` files the losses; None for samplers that do not learn.
        importance: float32 [B], factors that keep the mean loss unbiased; None means 1.
    """

    value: Tensor
    bin: Tensor | None = None
    importance: Tensor | None = None


class TimeSampler:
    """Draws for one run. Stateless unless `learns`."""

    learns: ClassVar[bool] = False

    def index(self, batch: int, sigmas: Tensor, generator: torch.Generator) -> Draw:
        """The lower ends n in 0..N-2 of intervals of an ascending grid [N]."""
        raise TypeError(f"{type(self).__name__} does not define index")

    def sigma(self, batch: int, curve: KarrasCurve, generator: torch.Generator) -> Draw:
        """Noise levels of the whole interval."""
        raise TypeError(f"{type(self).__name__} does not define sigma")

    def observe(self, bin: Tensor, loss: Tensor) -> None:
        """Learns from the losses of a whole batch, both [B], in the same order on every rank."""

    def state(self) -> dict[str, Tensor]:
        """What it has learned, for a checkpoint."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Takes back what `state` gave."""


class TimesConfig(ComponentConfig):
    """Options of one way to draw."""

    def build(self, device: torch.device, bins: int) -> TimeSampler:
        """A sampler for one run; `bins` is how many a learning one keeps when it draws from the whole interval."""
        raise TypeError(f"{type(self).__name__} does not define build")


def uniform_index(batch: int, num_sigmas: int, generator: torch.Generator) -> Tensor:
    """n ~ U{0, ..., N-2}: the lower ends of the N-1 intervals of a grid of N points. int64 [B]."""
    return torch.randint(num_sigmas - 1, (batch,), generator=generator, device=generator.device)


def lognormal_sigma(batch: int, P_mean: float, P_std: float, generator: torch.Generator) -> Tensor:
    """ln sigma ~ N(P_mean, P_std^2)   (EDM, Table 1). float32 [B]."""
    return (torch.randn(batch, generator=generator, device=generator.device) * P_std + P_mean).exp()


def lognormal_probabilities(sigmas: Tensor, P_mean: float, P_std: float) -> Tensor:
    """p_i ~ erf((ln sigma_{i+1} - P_mean)/(sqrt(2) P_std)) - erf((ln sigma_i - P_mean)/(sqrt(2) P_std)); iCT, Sec. 3.5.

    sigmas ascending [N] -> float64 [N-1], summing to 1.
    """
    cdf = torch.erf((sigmas.double().log() - P_mean) / (math.sqrt(2) * P_std))
    mass = cdf.diff().clamp(min=0)
    return mass / mass.sum()


@time_samplers.register("uniform")
class Uniform(TimesConfig):
    """Every interval of the grid alike; on the whole interval, sigma = tau(u) with u ~ U[0, 1]."""

    def build(self, device: torch.device, bins: int) -> TimeSampler:
        return UniformTimes()


class UniformTimes(TimeSampler):
    def index(self, batch: int, sigmas: Tensor, generator: torch.Generator) -> Draw:
        return Draw(uniform_index(batch, len(sigmas), generator))

    def sigma(self, batch: int, curve: KarrasCurve, generator: torch.Generator) -> Draw:
        return Draw(curve.sigma(torch.rand(batch, generator=generator, device=generator.device)))


@time_samplers.register("lognormal")
class Lognormal(TimesConfig):
    """ln sigma ~ N(P_mean, P_std^2); on a grid, its mass between neighbours   (EDM, Table 1; iCT, Sec. 3.5)."""

    P_mean: float = Field(-1.1, description="mean of ln sigma")
    P_std: float = Field(2.0, gt=0, description="standard deviation of ln sigma")

    def build(self, device: torch.device, bins: int) -> TimeSampler:
        return LognormalTimes(self)


class LognormalTimes(TimeSampler):
    def __init__(self, config: Lognormal):
        self.config = config

    def index(self, batch: int, sigmas: Tensor, generator: torch.Generator) -> Draw:
        p = lognormal_probabilities(sigmas, self.config.P_mean, self.config.P_std)
        return Draw(torch.multinomial(p, batch, replacement=True, generator=generator))

    def sigma(self, batch: int, curve: KarrasCurve, generator: torch.Generator) -> Draw:
        return Draw(lognormal_sigma(batch, self.config.P_mean, self.config.P_std, generator))


@time_samplers.register("loss-second-moment")
class LossSecondMoment(TimesConfig):
    """Draws in proportion to sqrt(E[loss^2]) of the last losses, reweighted without bias   (Improved DDPM, Eq. 18).

    Uniform until every bin has `history` losses; a share `uniform_share` stays uniform.
    """

    history: int = Field(10, ge=1, description="losses kept per bin")
    uniform_share: float = Field(0.001, gt=0, le=1, description="share of the probability that stays uniform")

    def build(self, device: torch.device, bins: int) -> TimeSampler:
        return LossSecondMomentTimes(self, device, bins)


class LossSecondMomentTimes(TimeSampler):
    """Keeps everything on the device and never asks it for a number."""

    learns: ClassVar[bool] = True

    def __init__(self, config: LossSecondMoment, device: torch.device, bins: int):
        self.config = config
        self.bins = bins
        # one more place takes what is not to be kept
        self._losses = torch.zeros(bins * config.history + 1, dtype=torch.float64, device=device)
        self._counts = torch.zeros(bins, dtype=torch.int64, device=device)

    def probabilities(self) -> Tensor:
        """float64 [bins], summing to 1."""
        history, share = self.config.history, self.config.uniform_share
        moments = self._losses[:-1].reshape(self.bins, history).square().mean(1).sqrt()
        learned = (1 - share) * moments / moments.sum().clamp(min=1e-300) + share / self.bins
        ready = (self._counts >= history).all() & (moments.sum() > 0)
        return torch.where(ready, learned, torch.full_like(learned, 1 / self.bins))

    def index(self, batch: int, sigmas: Tensor, generator: torch.Generator) -> Draw:
        if len(sigmas) - 1 != self.bins:
            raise ValueError(f"a grid of {len(sigmas)} points has {len(sigmas) - 1} intervals, not {self.bins} bins")
        p = self.probabilities()
        index = torch.multinomial(p, batch, replacement=True, generator=generator)
        return Draw(index, index, (1 / (self.bins * p[index])).float())

    def sigma(self, batch: int, curve: KarrasCurve, generator: torch.Generator) -> Draw:
        p = self.probabilities()
        index = torch.multinomial(p, batch, replacement=True, generator=generator)
        inside = torch.rand(batch, generator=generator, device=generator.device)
        return Draw(curve.sigma((index + inside) / self.bins), index, (1 / (self.bins * p[index])).float())

    def observe(self, bin: Tensor, loss: Tensor) -> None:
        history = self.config.history
        same = torch.nn.functional.one_hot(bin, self.bins)  # [B, bins]
        before = (same.cumsum(0) - same).gather(1, bin[:, None])[:, 0]  # earlier ones of the same bin
        total = same.sum(0)
        place = bin * history + (self._counts[bin] + before) % history
        kept = before >= total[bin] - history  # when one batch has more than fit, the last ones
        place = torch.where(kept, place, torch.full_like(place, self.bins * history))
        self._losses[place] = loss.double().nan_to_num(0, 0, 0)  # a loss that is not finite is for the log to report
        self._counts += total

    def state(self) -> dict[str, Tensor]:
        return {"losses": self._losses, "counts": self._counts}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._losses.copy_(state["losses"])
        self._counts.copy_(state["counts"])
