"""What a sampler is. The base owns the loop over noise levels and the seeds; a variant writes one step."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import Field, field_validator
from torch import Tensor

from cmray.core.precond import Denoise
from cmray.core.registry import ComponentConfig, Registry
from cmray.core.rng import SampleNoise
from cmray.solvers import SolverConfig
from cmray.solvers.euler import Euler

samplers: Registry[Any] = Registry("sampler", ["cmray.samplers"])


class Moment(NamedTuple):
    """Where a batch of samples is when the network is asked for the first time in a step.

    Args:
        sigma: the noise level it is asked at.
        noisy: x there, [B,C,H,W], images plus sigma times unit noise.
        said: what it answers, [B,C,H,W], about [-1, 1].
    """

    sigma: float
    noisy: Tensor
    said: Tensor


class Sampler(ComponentConfig):
    """Walks a list of noise levels from the highest to the lowest. Tests measure `nfe`, `order`, `is_deterministic`.

    Args:
        sigmas: ascending noise levels, all positive; sampling starts from sigmas[-1] * z.
        clip_denoised: clips every answer of the network to [-1, 1], as the reference code does when it samples.
    """

    #: of the error against the probability-flow ODE, started at high noise; None where it solves none
    order: ClassVar[int | None] = None
    #: whether it asks a consistency function f rather than a denoiser D
    of_consistency: ClassVar[bool] = False

    sigmas: tuple[float, ...] = Field(min_length=1, description="noise levels, positive and ascending")
    clip_denoised: bool = Field(False, description="clip what the network says to [-1, 1], as the reference code does")

    @field_validator("sigmas")
    @classmethod
    def _ascending(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if value[0] <= 0 or any(a >= b for a, b in itertools.pairwise(value)):
            raise ValueError(f"sigmas must be positive and ascending, found {list(value)}")
        return value

    @property
    def is_deterministic(self) -> bool:
        """Whether sigmas[-1] z is the only noise in a sample; else `order` is that without the noise added later."""
        return self.order is not None

    @property
    def nfe_step(self) -> int:
        """Network evaluations of a step between two levels."""
        return 1

    @property
    def nfe_last(self) -> int:
        """Network evaluations from the lowest level to the clean image."""
        return 1

    @property
    def nfe(self) -> int:
        """Network evaluations per sample."""
        return self.nfe_step * (len(self.sigmas) - 1) + self.nfe_last

    def num_levels(self, nfe: int) -> int | None:
        """How many noise levels take `nfe` network evaluations with these options; None where no number does."""
        steps, rest = divmod(nfe - self.nfe_last, self.nfe_step)
        return steps + 1 if rest == 0 and steps >= 0 and nfe > 0 else None

    @property
    def times(self) -> list[float]:
        """The noise levels in the order in which they are visited: descending."""
        return list(reversed(self.sigmas))

    @property
    def title(self) -> str:
        """Name and options that are not the default, "edm-heun S_churn=40.0": what tells records apart."""
        options = self.model_dump(exclude_defaults=True, exclude={"name", "sigmas"})
        return " ".join([self.name, *(f"{key}={value}" for key, value in options.items())])

    def step(
        self, denoise: Denoise, x: Tensor, i: int, noise: SampleNoise, label: Tensor | None, past: list[Tensor]
    ) -> Tensor:
        """From x at sigmas[i] to x at sigmas[i-1], or to the clean image when i is 0.

        Args:
            past: this run's, empty at first; multistep methods keep here, newest last, what they evaluated earlier.
        """
        raise TypeError(f"{type(self).__name__} does not define step")

    @torch.no_grad()
    def sample(
        self,
        denoise: Denoise,
        noise: SampleNoise,
        label: Tensor | None = None,
        watch: Callable[[Moment], None] | None = None,
        around: Tensor | None = None,
    ) -> Tensor:
        """Clean images, float32 [B,C,H,W], about [-1, 1]. The result depends on weights, sampler and seeds only.

        Args:
            watch: told of every step in which the network is asked.
            around: images [B,C,H,W] that the first noise, sigmas[-1] z, is added to; by default it is alone.
        """
        ask = (lambda *args: denoise(*args).clamp(-1, 1)) if self.clip_denoised else denoise
        x = self.sigmas[-1] * noise.draw()
        x = x if around is None else around + x
        past: list[Tensor] = []
        for i in reversed(range(len(self.sigmas))):
            x = self.step(ask if watch is None else _watched(ask, watch), x, i, noise, label, past)
        return x

    def level(self, i: int, x: Tensor) -> Tensor:
        """sigmas[i] as a batch [B] (0 for i = -1)."""
        return batch_of(self.sigmas[i] if i >= 0 else 0.0, x)


class SolverSampler(Sampler):
    """Steps of an ODE solver down the grid and a last Euler step to 0, which is D(x, sigmas[0])."""

    solver: ClassVar[SolverConfig]

    @property
    def nfe_step(self) -> int:
        return self.solver.nfe

    def step(
        self, denoise: Denoise, x: Tensor, i: int, noise: SampleNoise, label: Tensor | None, past: list[Tensor]
    ) -> Tensor:
        solver = self.solver if i > 0 else Euler()
        return solver.step(denoise, x, self.level(i, x), self.level(i - 1, x), label)


def _watched(ask: Denoise, watch: Callable[[Moment], None]) -> Denoise:
    """Tells of the first answer."""
    told = False

    def asked(x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        nonlocal told
        said = ask(x, sigma, label)
        if not told:
            told = True
            watch(Moment(float(sigma[0]), x, said))
        return said

    return asked


def batch_of(sigma: float, x: Tensor) -> Tensor:
    """One noise level for all of x [B,C,H,W], as [B]."""
    return torch.full((x.shape[0],), sigma, dtype=x.dtype, device=x.device)
