"""A small U-Net for any image size and channel count."""

from __future__ import annotations

from typing import cast

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from cmray.nn.base import NetConfig, Shape, nets
from cmray.nn.layers import GroupNorm32, NoiseEmbedding, attend, num_groups, zero_init


@nets.register("unet")
class UNetConfig(NetConfig):
    """Residual blocks with a noise shift, self-attention at chosen levels, nearest-neighbour up- and downsampling."""

    channels: int = Field(32, ge=4, description="feature maps at full resolution, before the multipliers")
    multipliers: tuple[int, ...] = Field((1, 2), min_length=1, description="channels of each level, highest first")
    blocks: int = Field(1, ge=1, description="residual blocks per level")
    attention_levels: tuple[int, ...] = Field((), description="levels with self-attention; 0 is full resolution")
    head_width: int = Field(32, ge=4, description="channels per attention head")

    @field_validator("multipliers")
    @classmethod
    def _positive(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(m < 1 for m in value):
            raise ValueError(f"every multiplier must be at least 1, found {list(value)}")
        return value

    @model_validator(mode="after")
    def _levels(self) -> UNetConfig:
        for level in self.attention_levels:
            if not 0 <= level < len(self.multipliers):
                raise ValueError(
                    f"attention_levels holds {level}, but multipliers makes levels 0 to {len(self.multipliers) - 1}"
                )
        return self

    def check(self, shape: Shape) -> None:
        smallest = 2 ** (len(self.multipliers) - 1)
        if min(shape[1:]) < smallest:
            raise ValueError(
                f"images of {shape[1]}x{shape[2]} are too small for the {len(self.multipliers)} levels of multipliers; "
                f"they need at least {smallest} pixels a side"
            )

    def build(self, shape: Shape, num_classes: int) -> nn.Module:
        self.check(shape)
        return UNet(shape[0], self, num_classes)


def group_norm(channels: int) -> GroupNorm32:
    """GroupNorm with up to 32 groups of at least 4 channels, fewer where the channels do not divide."""
    return GroupNorm32(num_groups(channels), channels)


class ResBlock(nn.Module):
    """skip(h) + conv2(silu(norm2(conv1(silu(norm1(h))) + W emb))), conv2 = 0 at the start."""

    def __init__(self, inp: int, out: int, emb_width: int, head_width: int | None):
        super().__init__()
        self.norm1 = group_norm(inp)
        self.conv1 = nn.Conv2d(inp, out, 3, padding=1)
        self.shift = nn.Linear(emb_width, out)
        self.norm2 = group_norm(out)
        self.conv2 = zero_init(nn.Conv2d(out, out, 3, padding=1))
        self.skip = nn.Conv2d(inp, out, 1) if inp != out else nn.Identity()
        self.attention = Attention(out, head_width) if head_width else None

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        r = self.conv1(F.silu(self.norm1(h))) + self.shift(emb)[:, :, None, None]
        h = self.skip(h) + self.conv2(F.silu(self.norm2(r)))
        return h if self.attention is None else self.attention(h)


class Attention(nn.Module):
    """Multi-head self-attention over the pixels, as a residual branch that starts as nothing."""

    def __init__(self, channels: int, head_width: int):
        super().__init__()
        self.heads = max(1, channels // head_width)
        while channels % self.heads:
            self.heads -= 1
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zero_init(nn.Conv2d(channels, channels, 1))

    def forward(self, h: Tensor) -> Tensor:
        return h + self.out(attend(self.qkv(self.norm(h)), self.heads))


class UNet(nn.Module):
    """F(x, c_noise, label). Odd sizes work: each upsampling goes to the size of the skip it meets."""

    def __init__(self, image_channels: int, config: UNetConfig, num_classes: int):
        super().__init__()
        widths = [config.channels * m for m in config.multipliers]
        emb_width = config.channels * 4
        self.embedding = NoiseEmbedding(emb_width, num_classes)
        self.inp = nn.Conv2d(image_channels, widths[0], 3, padding=1)

        def heads(level: int) -> int | None:
            return config.head_width if level in config.attention_levels else None

        self.down = nn.ModuleList()
        skips, width = [widths[0]], widths[0]
        for level, out in enumerate(widths):
            stage = nn.ModuleList()
            for _ in range(config.blocks):
                stage.append(ResBlock(width, out, emb_width, heads(level)))
                width = out
                skips.append(width)
            self.down.append(stage)
        last = len(widths) - 1
        self.middle = ResBlock(width, width, emb_width, heads(last))
        self.up = nn.ModuleList()
        for level, out in reversed(list(enumerate(widths))):
            stage = nn.ModuleList()
            for _ in range(config.blocks + (level == 0)):
                stage.append(ResBlock(width + skips.pop(), out, emb_width, heads(level)))
                width = out
            self.up.append(stage)
        self.norm = group_norm(width)
        self.out = zero_init(nn.Conv2d(width, image_channels, 3, padding=1))

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None) -> Tensor:
        emb = self.embedding(c_noise, label)
        h = self.inp(x)
        skips = [h]
        for level, stage in enumerate(self.down):
            if level:
                h = F.avg_pool2d(h, 2, ceil_mode=True)
            for block in cast(nn.ModuleList, stage):
                h = block(h, emb)
                skips.append(h)
        h = self.middle(h, emb)
        for stage in self.up:
            for block in cast(nn.ModuleList, stage):
                skip = skips.pop()
                if h.shape[-2:] != skip.shape[-2:]:
                    h = F.interpolate(h, size=skip.shape[-2:], mode="nearest")
                h = block(torch.cat([h, skip], dim=1), emb)
        return self.out(F.silu(self.norm(h)))
