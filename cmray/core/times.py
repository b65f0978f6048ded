"""How training draws noise levels."""

from __future__ import annotations

import torch
from torch import Tensor


def uniform_index(batch: int, num_sigmas: int, generator: torch.Generator) -> Tensor:
    """n ~ U{0, ..., N-2}: the lower ends of the N-1 intervals of a grid of N points. int64 [B]."""
    return torch.randint(num_sigmas - 1, (batch,), generator=generator, device=generator.device)


def lognormal_sigma(batch: int, P_mean: float, P_std: float, generator: torch.Generator) -> Tensor:
    """ln sigma ~ N(P_mean, P_std^2)   (EDM, Table 1). float32 [B]."""
    return (torch.randn(batch, generator=generator, device=generator.device) * P_std + P_mean).exp()
