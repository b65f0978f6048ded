"""The U-Net of guided diffusion (ADM), as the Consistency Models paper uses it on ImageNet-64 and LSUN-256."""

from __future__ import annotations

from typing import Any, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from cmray.nn.base import AttentionResolutions, AttentionUNetConfig, Blocks, Dropout, Multipliers, Shape, nets
from cmray.nn.layers import (
    GroupNorm32,
    NoiseEmbedding,
    Sinusoids,
    attend,
    check_sides,
    checkpointed,
    full_precision,
    zero_init,
)

#: Every norm has this many groups.
GROUPS = 32


@nets.register("adm")
class ADMConfig(AttentionUNetConfig):
    """Residual blocks modulated by the noise level, self-attention at chosen sizes (Dhariwal & Nichol 2021, App. A).

    The defaults are the paper's ImageNet-64 network: 296 M parameters with its 1000 classes. Weights of
    openai/consistency_models come and go through `cmray.nn.adm_state`.
    """

    channels: int = Field(192, ge=1, description="feature maps at full resolution, before the multipliers")
    multipliers: Multipliers = (1, 2, 3, 4)
    blocks: Blocks = 3
    attention_resolutions: AttentionResolutions = (32, 16, 8)
    dropout: Dropout = 0.0
    head_width: int | None = Field(None, ge=1, description="channels per attention head; 64 where heads is not given")
    heads: int | None = Field(None, ge=1, description="attention heads, in place of head_width")
    scale_shift_norm: bool = Field(True, description="the noise level scales and shifts; otherwise it only shifts")
    resblock_updown: bool = Field(True, description="resample in residual blocks; otherwise in convolutions")
    noise_scale: float = Field(1000, gt=0, description="the network embeds noise_scale c_noise; NVlabs/edm's has 1")

    @model_validator(mode="before")
    @classmethod
    def _usual_head_width(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("heads") is None and "head_width" not in data:
            return {**data, "head_width": 64}
        return data

    @model_validator(mode="after")
    def _fits(self) -> ADMConfig:
        if (self.head_width is None) == (self.heads is None):
            found = f"head_width {self.head_width} and heads {self.heads}"
            raise ValueError(f"exactly one of head_width and heads says how attention is split, found {found}")
        for width in self.widths():
            if width % GROUPS:
                raise ValueError(
                    f"channels {self.channels} and multipliers {list(self.multipliers)} give a level of {width} "
                    f"channels, but the norms need multiples of {GROUPS}"
                )
        self._check_heads(self.widths()[-1])  # of the middle, which has attention at any image size
        return self

    def _check_heads(self, width: int) -> None:
        split, field = (self.heads, "heads") if self.head_width is None else (self.head_width, "head_width")
        if width % cast(int, split):
            raise ValueError(
                f"{field} {split} does not divide the {width} channels of a level with attention, which channels "
                f"{self.channels} and multipliers {list(self.multipliers)} give"
            )

    def check(self, shape: Shape) -> None:
        check_sides(shape, len(self.multipliers))
        self.check_attention(shape)
        for level in self.attention_levels(shape[1]):
            self._check_heads(self.widths()[level])

    def build(self, shape: Shape, num_classes: int) -> nn.Module:
        self.check(shape)
        return ADM(shape, self, num_classes)


class ResBlock(nn.Module):
    """skip(R h) + conv2(dropout(silu(m))), conv2 = 0 at the start, R a resampling or nothing.

    r = conv1(R silu(norm1(h))); m = norm2(r) (1 + scale) + shift or norm2(r + shift), from one linear map of emb.
    """

    def __init__(self, inp: int, out: int, config: ADMConfig, resample: nn.Module | None = None):
        super().__init__()
        self.scale_shift = config.scale_shift_norm
        self.resample = nn.Identity() if resample is None else resample
        self.norm1 = GroupNorm32(GROUPS, inp)
        self.conv1 = nn.Conv2d(inp, out, 3, padding=1)
        self.modulation = nn.Linear(4 * config.channels, 2 * out if self.scale_shift else out)
        self.norm2 = GroupNorm32(GROUPS, out)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = zero_init(nn.Conv2d(out, out, 3, padding=1))
        self.skip = nn.Conv2d(inp, out, 1) if inp != out else nn.Identity()

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        r = self.conv1(self.resample(F.silu(self.norm1(h))))
        modulation = self.modulation(emb).to(r.dtype)[:, :, None, None]
        if self.scale_shift:
            scale, shift = modulation.chunk(2, dim=1)
            r = self.norm2(r) * (1 + scale) + shift
        else:
            r = self.norm2(r + modulation)
        return self.skip(self.resample(h)) + self.conv2(self.dropout(F.silu(r)))


class Attention(nn.Module):
    """h + out(attention(qkv(norm(h)))), out = 0 at the start."""

    def __init__(self, channels: int, config: ADMConfig):
        super().__init__()
        self.heads = config.heads if config.head_width is None else channels // config.head_width
        self.norm = GroupNorm32(GROUPS, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zero_init(nn.Conv2d(channels, channels, 1))

    def forward(self, h: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(h)).contiguous(memory_format=torch.channels_last)
        return h + self.out(attend(qkv, cast(int, self.heads)))


class Down(nn.Module):
    """[B,C,H,W] -> [B,C,H/2,W/2] by a convolution of stride 2."""

    def __init__(self, channels: int):
        super().__init__()
        self.strided = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        return self.strided(h)


class Up(nn.Module):
    """[B,C,H,W] -> [B,C,2H,2W] by the nearest neighbour and a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        return self.conv(F.interpolate(h, scale_factor=2, mode="nearest"))


class ADM(nn.Module):
    """F(x [B,C,H,W], c_noise [B], label [B] | None) -> [B,C,H,W], zero at the start.

    c_noise is ln(sigma)/4; the network embeds noise_scale times it. Each cell of `down` leaves a skip for one of `up`.
    """

    def __init__(self, shape: Shape, config: ADMConfig, num_classes: int):
        super().__init__()
        self.checkpointing = config.activation_checkpointing
        widths, attended = config.widths(), config.attention_levels(shape[1])
        encoding = Sinusoids(config.channels, scale=config.noise_scale)
        self.embedding = NoiseEmbedding(4 * config.channels, num_classes, config.channels, encoding)

        def cell(inp: int, level: int) -> nn.ModuleList:
            layers: list[nn.Module] = [ResBlock(inp, widths[level], config)]
            if level in attended:
                layers.append(Attention(widths[level], config))
            return nn.ModuleList(layers)

        def down(width: int) -> nn.Module:
            return ResBlock(width, width, config, nn.AvgPool2d(2)) if config.resblock_updown else Down(width)

        def up(width: int) -> nn.Module:
            double = nn.Upsample(scale_factor=2, mode="nearest")
            return ResBlock(width, width, config, double) if config.resblock_updown else Up(width)

        width, skips = widths[0], [widths[0]]
        self.down = nn.ModuleList([nn.ModuleList([nn.Conv2d(shape[0], width, 3, padding=1)])])
        for level in range(len(widths)):
            if level:
                self.down.append(nn.ModuleList([down(width)]))
                skips.append(width)
            for _ in range(config.blocks):
                self.down.append(cell(width, level))
                width = widths[level]
                skips.append(width)
        self.middle = nn.ModuleList(
            [ResBlock(width, width, config), Attention(width, config), ResBlock(width, width, config)]
        )
        self.up = nn.ModuleList()
        for level in reversed(range(len(widths))):
            for _ in range(config.blocks + 1):
                self.up.append(cell(width + skips.pop(), level))
                width = widths[level]
            if level:
                cast(nn.ModuleList, self.up[-1]).append(up(width))
        self.norm_out = GroupNorm32(GROUPS, width)
        self.conv_out = zero_init(nn.Conv2d(width, shape[0], 3, padding=1))

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None) -> Tensor:
        with full_precision(x):
            emb = self.embedding(c_noise, label)
        h, skips = x, []
        for cell in self.down:
            h = self._run(cell, h, emb)
            skips.append(h)
        h = self._run(self.middle, h, emb)
        for cell in self.up:
            h = self._run(cell, torch.cat([h, skips.pop()], dim=1), emb)
        with full_precision(x):
            return self.conv_out(F.silu(self.norm_out(h.to(self.norm_out.weight.dtype))))

    def _run(self, cell: nn.Module, h: Tensor, emb: Tensor) -> Tensor:
        for layer in cast(nn.ModuleList, cell):
            args = (h, emb) if isinstance(layer, ResBlock) else (h,)
            h = checkpointed(self.checkpointing, layer, *args)
        return h
