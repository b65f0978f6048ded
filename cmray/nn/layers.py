"""Layers that several networks share."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def zero_init(module: nn.Module) -> nn.Module:
    """The same module with all its parameters zero, so that a residual branch starts as nothing."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class FourierFeatures(nn.Module):
    """c_noise [B] -> [B, dim]: cosines and sines at geometric frequencies from 0.5 to 16 rad per unit of ln(sigma)/4.

    The range is low on purpose: a consistency function is smooth in time, and high frequencies let it be rough.
    """

    frequencies: Tensor

    def __init__(self, dim: int):
        super().__init__()
        frequencies = torch.logspace(math.log10(0.5), math.log10(16), dim // 2)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, c_noise: Tensor) -> Tensor:
        angles = c_noise[:, None] * self.frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class NoiseEmbedding(nn.Module):
    """(c_noise [B], label [B] | None) -> [B, width]: a two-layer MLP of Fourier features, plus a class embedding."""

    def __init__(self, width: int, num_classes: int, features: int = 32):
        super().__init__()
        self.fourier = FourierFeatures(features)
        self.mlp = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))
        self.classes = nn.Embedding(num_classes, width) if num_classes else None

    def forward(self, c_noise: Tensor, label: Tensor | None) -> Tensor:
        emb = self.mlp(self.fourier(c_noise))
        if self.classes is not None:
            if label is None:
                raise ValueError("this network is class-conditional and needs labels")
            emb = emb + self.classes(label)
        return nn.functional.silu(emb)
