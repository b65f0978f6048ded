"""Exponential moving averages of a flat parameter vector, at several rates at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class EMA:
    """theta_ema <- rate theta_ema + (1 - rate) theta, one fused operation per rate.

    Args:
        params: flat float32 [P], the parameters to average; its current value is the start.
        rates: each in [0, 1).
    """

    def __init__(self, params: Tensor, rates: Sequence[float]):
        self.rates = tuple(rates)
        self.averages = {rate: params.detach().clone() for rate in self.rates}

    @torch.no_grad()
    def update(self, params: Tensor) -> None:
        for rate, average in self.averages.items():
            average.lerp_(params.detach(), 1 - rate)
