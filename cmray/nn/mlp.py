"""A residual MLP for tiny images: the quickstart's network, fast on a CPU."""

from __future__ import annotations

import math

from pydantic import Field
from torch import Tensor, nn

from cmray.nn.base import NetConfig, Shape, nets
from cmray.nn.layers import NoiseEmbedding, zero_init


@nets.register("mlp")
class MLPConfig(NetConfig):
    """Pre-norm residual blocks on the flattened image. Cost grows with (C H W) x width: for images to about 16 px."""

    width: int = Field(192, ge=8, description="units of each layer")
    depth: int = Field(6, ge=1, description="residual blocks of two layers")

    def build(self, shape: Shape, num_classes: int) -> nn.Module:
        return MLP(shape, self.width, self.depth, num_classes)


class Block(nn.Module):
    """h + W2 silu(W1 norm(h) + W_t emb), W2 = 0 at the start."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.lin1 = nn.Linear(width, width)
        self.shift = nn.Linear(width, width)
        self.lin2 = zero_init(nn.Linear(width, width))

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        return h + self.lin2(nn.functional.silu(self.lin1(self.norm(h)) + self.shift(emb)))


class MLP(nn.Module):
    """F(x, c_noise, label) on flattened images."""

    def __init__(self, shape: Shape, width: int, depth: int, num_classes: int):
        super().__init__()
        values = math.prod(shape)
        self.embedding = NoiseEmbedding(width, num_classes)
        self.inp = nn.Linear(values, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.out = zero_init(nn.Linear(width, values))

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None) -> Tensor:
        emb = self.embedding(c_noise, label)
        h = self.inp(x.flatten(1))
        for block in self.blocks:
            h = block(h, emb)
        return self.out(self.norm(h)).reshape(x.shape)
