"""The predictor-corrector sampler of score-based SDEs."""

from __future__ import annotations

import math

from pydantic import Field
from torch import Tensor

from cmray.core.precond import Denoise, expand
from cmray.core.rng import SampleNoise
from cmray.samplers.base import Sampler, samplers


def score(denoise: Denoise, x: Tensor, sigma: Tensor, label: Tensor | None) -> Tensor:
    """grad log p(x; sigma) = (D(x, sigma) - x) / sigma^2   (EDM, Eq. 3)."""
    return (denoise(x, sigma, label) - x) / expand(sigma, x) ** 2


def norm(x: Tensor) -> Tensor:
    """Euclidean norm of each sample of x [B,C,H,W], as [B,1,1,1]; in float64, so that it is the same in any batch."""
    return expand(x.double().flatten(1).square().sum(1).sqrt(), x).to(x.dtype)


@samplers.register("predictor-corrector")
class PredictorCorrector(Sampler):
    """At each level Langevin steps, then a reverse-diffusion step of the VE SDE to the level below   (Score SDE,
    Alg. 2; correctors come first in a level, as in the released code). With s the score at sigma_i:

    corrector: e = 2 (snr |z| / |s|)^2,  x <- x + e s + sqrt(2 e) z          (Alg. 4)
    predictor: g^2 = sigma_i^2 - sigma_{i-1}^2,  x <- x + g^2 s + g z        (Alg. 2; the last one, to 0, without z)

    The released code averages |z| and |s| over the batch; here they are each sample's own, so that a sample does not
    depend on its batch. The corrector's step does not shrink as levels are added: it leaves a variance
    1 / (1 - snr^2) times that of the data.
    """

    snr: float = Field(
        0.16, gt=0, lt=1, description="r, signal to noise of a corrector's step; the paper's for CIFAR-10"
    )
    corrector_steps: int = Field(1, ge=0, description="M, Langevin steps at each level; 0 leaves the predictor")

    @property
    def nfe_step(self) -> int:
        return 1 + self.corrector_steps

    @property
    def nfe_last(self) -> int:
        return self.nfe_step

    def step(
        self, denoise: Denoise, x: Tensor, i: int, noise: SampleNoise, label: Tensor | None, past: list[Tensor]
    ) -> Tensor:
        level = self.level(i, x)
        for _ in range(self.corrector_steps):
            z, s = noise.draw(), score(denoise, x, level, label)
            e = 2 * (self.snr * norm(z) / norm(s)) ** 2
            x = x + e * s + (2 * e).sqrt() * z
        if i == 0:
            return denoise(x, level, label)
        g2 = self.sigmas[i] ** 2 - self.sigmas[i - 1] ** 2
        return x + g2 * score(denoise, x, level, label) + math.sqrt(g2) * noise.draw()
