"""Gaussian mixtures in one dimension: exact denoiser, exact consistency function, exact integrals over the data."""

from __future__ import annotations

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from cmray.core.precond import expand
from cmray.theory.config import MixtureConfig


class Mixture:
    """x0 ~ sum_j p_j N(m_j, s_j^2), as "images" float64 [B,1,1,1]."""

    def __init__(self, config: MixtureConfig):
        self.means = torch.tensor(config.means, dtype=torch.float64)
        self.stds = torch.tensor(config.stds, dtype=torch.float64)
        shares = torch.tensor(config.shares, dtype=torch.float64)
        self.shares = shares / shares.sum()

    @property
    def std(self) -> float:
        """Standard deviation of the data."""
        mean = (self.shares * self.means).sum()
        return float(((self.shares * (self.stds**2 + self.means**2)).sum() - mean**2).sqrt())

    def denoise(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """E[x0 | x, sigma] = sum_j w_j(x) (s_j^2 x + sigma^2 m_j)/(s_j^2 + sigma^2), w_j the posterior shares."""
        v = expand(sigma, x)[..., None] ** 2
        y = x[..., None]
        total = self.stds**2 + v
        logs = self.shares.log() - total.log() / 2 - (y - self.means) ** 2 / (2 * total)
        return (logs.softmax(-1) * (self.stds**2 * y + v * self.means) / total).sum(-1)

    def flow(self, x: Tensor, sigma_from: float, sigma_to: float) -> Tensor:
        """The solution of dx/dsigma = (x - D)/sigma from sigma_from to sigma_to, to about 1e-11 (DOP853)."""
        begin = x.reshape(-1).numpy()

        def slope(log_sigma: float, y: np.ndarray) -> np.ndarray:
            z = torch.from_numpy(y).reshape(-1, 1, 1, 1)
            sigma = torch.full((len(y),), float(np.exp(log_sigma)), dtype=torch.float64)
            return (z - self.denoise(z, sigma)).reshape(-1).numpy()  # dx/dln(sigma)

        ends = (float(np.log(sigma_from)), float(np.log(sigma_to)))
        out = solve_ivp(slope, ends, begin, method="DOP853", rtol=1e-12, atol=1e-13)
        return torch.from_numpy(np.ascontiguousarray(out.y[:, -1])).reshape(x.shape)

    def nodes(self, count: int) -> tuple[Tensor, Tensor]:
        """Points x0 [M,1,1,1] and weights [M] that integrate functions of the data: Gauss-Hermite per component."""
        points, weights = gauss_hermite(count)
        x0 = self.means[:, None] + self.stds[:, None] * points
        return x0.reshape(-1, 1, 1, 1), (self.shares[:, None] * weights).reshape(-1)


def gauss_hermite(count: int) -> tuple[Tensor, Tensor]:
    """Points and weights, float64 [count], with sum_i w_i g(z_i) = E g(z), z ~ N(0, 1)."""
    points, weights = np.polynomial.hermite_e.hermegauss(count)
    return torch.from_numpy(points), torch.from_numpy(weights / weights.sum())
