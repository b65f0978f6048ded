"""A vision transformer that CLIP and DINOv2 are both made of (Dosovitskiy et al., 2021; pre-norm)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """What a published transformer is.

    Args:
        width, depth, heads: of the blocks; the hidden layer is 4 width.
        patch: pixels a side of a patch.
        grid: patches a side for which positions were learned.
        eps: of the layer norms.
        act: the activation of the hidden layer.
        scaled: whether each branch is multiplied by a learned vector (LayerScale).
        first_norm: whether tokens are normalised before the first block.
        project: length of a linear projection of the result, 0 for none.
    """

    width: int
    depth: int
    heads: int
    patch: int
    grid: int
    eps: float
    act: Callable[[Tensor], Tensor]
    scaled: bool
    first_norm: bool
    project: int = 0


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x)."""
    return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """x + g1 attention(norm x), then x + g2 mlp(norm x). x [B, T, width]."""

    def __init__(self, shape: Shape):
        super().__init__()
        width = shape.width
        self.heads, self.act = shape.heads, shape.act
        self.norm1, self.norm2 = nn.LayerNorm(width, shape.eps), nn.LayerNorm(width, shape.eps)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale1 = nn.Parameter(torch.ones(width)) if shape.scaled else None
        self.scale2 = nn.Parameter(torch.ones(width)) if shape.scaled else None

    def forward(self, x: Tensor) -> Tensor:
        b, t, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, width))
        x = x + (attended if self.scale1 is None else attended * self.scale1)
        hidden = self.fc2(self.act(self.fc1(self.norm2(x))))
        return x + (hidden if self.scale2 is None else hidden * self.scale2)


class VisionTransformer(nn.Module):
    """Images float32 [B, 3, S, S], S a multiple of `patch` -> the class token after the last norm [B, width]."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        self.patches = nn.Conv2d(3, shape.width, shape.patch, stride=shape.patch, bias=not shape.first_norm)
        self.token = nn.Parameter(torch.zeros(shape.width))
        self.positions = nn.Parameter(torch.zeros(1 + shape.grid**2, shape.width))
        self.before = nn.LayerNorm(shape.width, shape.eps) if shape.first_norm else nn.Identity()
        self.blocks = nn.ModuleList([Block(shape) for _ in range(shape.depth)])
        self.after = nn.LayerNorm(shape.width, shape.eps)
        self.projection = nn.Parameter(torch.zeros(shape.width, shape.project)) if shape.project else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        places = self._places(x.shape[-1])
        x = torch.cat([self.token.expand(len(x), 1, -1), x.flatten(2).transpose(1, 2)], dim=1) + places
        x = self.before(x)
        for block in self.blocks:
            x = block(x)
        x = self.after(x[:, 0])
        return x if self.projection is None else x @ self.projection

    def _places(self, side: int) -> Tensor:
        """The learned positions [1 + side^2, width], enlarged or shrunk as DINOv2 does it.

        There the factor is of side + 0.1, and the interpolation uses the factor, not the sizes.
        """
        grid = self.shape.grid
        if side == grid:
            return self.positions
        learned = self.positions[1:].view(1, grid, grid, -1).permute(0, 3, 1, 2)
        factor = (side + 0.1) / grid
        moved = F.interpolate(learned, scale_factor=(factor, factor), mode="bicubic")
        return torch.cat([self.positions[:1], moved.permute(0, 2, 3, 1).reshape(side * side, -1)])
