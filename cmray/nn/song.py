"""The CIFAR-10 networks of EDM, after Song et al. 2021: DDPM++ and NCSN++ (Karras et al. 2022, Table 7)."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from cmray.nn.base import AttentionResolutions, AttentionUNetConfig, Blocks, Dropout, Multipliers, Shape, nets
from cmray.nn.layers import check_sides, checkpointed, full_precision, zero_init
from cmray.nn.song_layers import SQRT_HALF, Block, FusedDownConv, SongEmbedding, norm, xavier


class SongConfig(AttentionUNetConfig):
    """Residual U-Net blocks scaled by sqrt(1/2), with one-head attention at chosen sizes.

    The defaults are EDM's CIFAR-10 settings. Weights of NVlabs/edm come and go through `cmray.nn.song_state`.
    """

    channels: int = Field(
        128, ge=8, multiple_of=4, description="feature maps at full resolution, before the multipliers"
    )
    multipliers: Multipliers = (2, 2, 2)
    blocks: Blocks = 4
    attention_resolutions: AttentionResolutions = (16,)
    dropout: Dropout = 0.13
    embedding: Literal["positional", "fourier"] = Field("positional", description="of the noise level")
    fourier_scale: float | None = Field(
        None, gt=0, description="deviation of the fourier frequencies, 16 where not given; iCT uses 0.02"
    )
    noise_multiplier: int = Field(1, ge=1, description="width of the noise embedding in channels")
    encoder: Literal["standard", "residual"] = Field("standard", description="residual: the image enters every level")
    resample_filter: tuple[float, ...] = Field((1, 1), description="taps of the filter that halves and doubles")

    @model_validator(mode="before")
    @classmethod
    def _usual_scale(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("embedding", cls.model_fields["embedding"].default) == "fourier":
            return {"fourier_scale": 16.0, **data}
        return data

    @field_validator("resample_filter")
    @classmethod
    def _halves(cls, taps: tuple[float, ...]) -> tuple[float, ...]:
        if len(taps) < 2 or len(taps) % 2 or sum(taps) <= 0:
            raise ValueError(f"a filter that halves has an even number of taps with a positive sum, found {list(taps)}")
        return taps

    @model_validator(mode="after")
    def _scale_of_fourier(self) -> SongConfig:
        if (self.embedding == "fourier") != (self.fourier_scale is not None):
            raise ValueError(
                f"fourier_scale belongs to the fourier embedding alone, found embedding '{self.embedding}' "
                f"and fourier_scale {self.fourier_scale}"
            )
        return self

    def check(self, shape: Shape) -> None:
        check_sides(shape, len(self.multipliers))
        self.check_attention(shape)

    def build(self, shape: Shape, num_classes: int) -> nn.Module:
        self.check(shape)
        return SongUNet(shape, self, num_classes)


@nets.register("ddpmpp")
class DDPMppConfig(SongConfig):
    """DDPM++ as in EDM: positional embedding, box filter."""


@nets.register("ncsnpp")
class NCSNppConfig(SongConfig):
    """NCSN++ as in EDM: random Fourier embedding, residual encoder, binomial filter."""

    embedding: Literal["positional", "fourier"] = Field("fourier", description="of the noise level")
    noise_multiplier: int = Field(2, ge=1, description="width of the noise embedding in channels")
    encoder: Literal["standard", "residual"] = Field("residual", description="residual: the image enters every level")
    resample_filter: tuple[float, ...] = Field((1, 3, 3, 1), description="taps of the filter that halves and doubles")


class Stage(nn.Module):
    """One level of one side of the U-Net: what enters it from the level before, and its blocks."""

    def __init__(self, enter: Block | None = None, residual: FusedDownConv | None = None):
        super().__init__()
        self.enter = enter
        self.residual = residual
        self.blocks = nn.ModuleList()


class SongUNet(nn.Module):
    """F(x [B,C,H,W], c_noise [B], label [B] | None) -> [B,C,H,W], with c_noise = ln(sigma)/4.

    `down` and `up` are indexed by level, 0 at full resolution. The output is zero at the start, as this platform's
    contract has it; EDM begins with 1e-5 times the usual weights.
    """

    def __init__(self, shape: Shape, config: SongConfig, num_classes: int):
        super().__init__()
        self.checkpointing = config.activation_checkpointing
        widths, taps = config.widths(), config.resample_filter
        attended = config.attention_levels(shape[1])
        emb_width = 4 * config.channels
        self.embedding = SongEmbedding(
            config.noise_multiplier * config.channels, emb_width, num_classes, config.fourier_scale
        )

        def block(inp: int, out: int, attention: bool = False, resample: Literal["up", "down"] | None = None) -> Block:
            return Block(inp, out, emb_width, config.dropout, attention, resample, taps)

        width, image = config.channels, shape[0]
        self.inp = xavier(nn.Conv2d(image, width, 3, padding=1))
        self.down = nn.ModuleList()
        skips = [width]
        for level, out in enumerate(widths):
            stage = Stage()
            if level:
                residual = FusedDownConv(image, width, 3, taps) if config.encoder == "residual" else None
                stage, image = Stage(block(width, width, resample="down"), residual), width
                skips.append(width)
            for _ in range(config.blocks):
                stage.blocks.append(block(width, out, level in attended))
                width = out
                skips.append(width)
            self.down.append(stage)
        self.middle = nn.ModuleList([block(width, width, attention=True), block(width, width)])
        up: list[Stage] = []
        for level, out in reversed(list(enumerate(widths))):
            stage = Stage(block(width, width, resample="up") if level < len(widths) - 1 else None)
            for i in range(config.blocks + 1):
                stage.blocks.append(block(width + skips.pop(), out, level in attended and i == config.blocks))
                width = out
            up.insert(0, stage)
        self.up = nn.ModuleList(up)
        self.norm_out = norm(width)
        self.conv_out = zero_init(nn.Conv2d(width, shape[0], 3, padding=1))

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None) -> Tensor:
        with full_precision(x):
            emb = self.embedding(c_noise, label)
        h = self.inp(x)
        image, skips = x, [h]
        for stage in cast(list[Stage], self.down):
            if stage.enter is not None:
                h = self._run(stage.enter, h, emb)
                if stage.residual is not None:
                    h = image = (h + stage.residual(image)) * SQRT_HALF
                skips.append(h)
            for block in stage.blocks:
                h = self._run(block, h, emb)
                skips.append(h)
        for block in self.middle:
            h = self._run(block, h, emb)
        for stage in reversed(cast(list[Stage], self.up)):
            if stage.enter is not None:
                h = self._run(stage.enter, h, emb)
            for block in stage.blocks:
                h = self._run(block, torch.cat([h, skips.pop()], dim=1), emb)
        return self.conv_out(F.silu(self.norm_out(h)))

    def _run(self, block: nn.Module, h: Tensor, emb: Tensor) -> Tensor:
        return checkpointed(self.checkpointing, block, h, emb)
