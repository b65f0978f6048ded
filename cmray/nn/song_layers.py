"""The parts of EDM's DDPM++ and NCSN++: resampling convolutions, noise embedding, residual block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmray.nn.layers import GroupNorm32, RandomFourier, Sinusoids, attend, num_groups, required

SQRT_HALF = math.sqrt(0.5)

M = TypeVar("M", nn.Linear, nn.Conv2d)


def xavier(module: M, gain: float = 1.0) -> M:
    """The same module with U(-a, a) weights, a = gain sqrt(6 / (fan_in + fan_out)), and zero bias."""
    nn.init.xavier_uniform_(module.weight, gain)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module


def norm(channels: int) -> GroupNorm32:
    """At most 32 groups of at least 4 channels; epsilon 1e-6."""
    return GroupNorm32(num_groups(channels), channels, eps=1e-6)


class ResamplingConv(nn.Conv2d):
    """A convolution beside a separable low-pass filter of an even number of taps, normalised to sum 1."""

    taps: Tensor

    def __init__(self, inp: int, out: int, kernel: int, taps: Sequence[float]):
        super().__init__(inp, out, kernel, padding=kernel // 2)
        row = torch.as_tensor(taps, dtype=torch.float32)
        self.register_buffer("taps", torch.outer(row, row)[None, None] / row.sum() ** 2, persistent=False)
        self.margin = (len(taps) - 1) // 2
        xavier(self)

    def halved(self, x: Tensor, padding: int) -> Tensor:
        """[B,C,H,W] -> [B,C,H/2,W/2]: the filter of each channel at every second pixel."""
        return F.conv2d(x, self.taps.expand(x.shape[1], 1, -1, -1), stride=2, padding=padding, groups=x.shape[1])

    def doubled(self, x: Tensor) -> Tensor:
        """[B,C,H,W] -> [B,C,2H,2W]: the transpose of `halved`, times 4 to keep the mean."""
        taps = 4 * self.taps.expand(x.shape[1], 1, -1, -1)
        return F.conv_transpose2d(x, taps, stride=2, padding=self.margin, groups=x.shape[1])


class DownConv(ResamplingConv):
    """[B,C,H,W] -> [B,C',H/2,W/2]: filter, then convolution."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(self.halved(input, self.margin))


class UpConv(ResamplingConv):
    """[B,C,H,W] -> [B,C',2H,2W]: filter, then convolution."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(self.doubled(input))


class FusedDownConv(ResamplingConv):
    """[B,C,H,W] -> [B,C',H/2,W/2]: convolution, then filter, and all the zero padding before both."""

    def forward(self, input: Tensor) -> Tensor:
        h = F.conv2d(input, self.weight, padding=self.kernel_size[0] // 2 + self.margin)
        h = self.halved(h, padding=0)
        return h if self.bias is None else h + self.bias[:, None, None]


class SongEmbedding(nn.Module):
    """(c_noise [B], label [B] | None) -> [B, out]: silu(W1 silu(W0 (e + W_c one_hot(label) sqrt(num_classes)))).

    e is sines, then cosines: positional, or random Fourier features where `fourier_scale` is given.
    """

    def __init__(self, width: int, out: int, num_classes: int, fourier_scale: float | None):
        super().__init__()
        self.num_classes = num_classes
        positional = fourier_scale is None
        self.encoding = Sinusoids(width, endpoint=True) if positional else RandomFourier(width, fourier_scale)
        self.classes = xavier(nn.Linear(num_classes, width)) if num_classes else None
        self.lin0 = xavier(nn.Linear(width, out))
        self.lin1 = xavier(nn.Linear(out, out))

    def forward(self, c_noise: Tensor, label: Tensor | None) -> Tensor:
        cos, sin = self.encoding(c_noise).chunk(2, dim=1)
        emb = torch.cat([sin, cos], dim=1)
        if self.classes is not None:
            one_hot = F.one_hot(required(label), self.num_classes).to(emb.dtype)
            emb = emb + self.classes(one_hot * math.sqrt(self.num_classes))
        return F.silu(self.lin1(F.silu(self.lin0(emb))))


class Attention(nn.Module):
    """sqrt(1/2) (h + out(attention(qkv(norm(h))))), one head, out near 0 at the start."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = norm(channels)
        self.qkv = xavier(nn.Conv2d(channels, 3 * channels, 1), gain=math.sqrt(0.2))
        self.out = xavier(nn.Conv2d(channels, channels, 1), gain=1e-5)

    def forward(self, h: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(h)).contiguous(memory_format=torch.channels_last)
        return (h + self.out(attend(qkv, heads=1))) * SQRT_HALF


class Block(nn.Module):
    """sqrt(1/2) (skip(h) + conv2(dropout(silu(norm2(conv1(silu(norm1(h))) + W emb))))), then attention if any.

    conv1 and skip resample; conv2 is near 0 at the start (EDM: 1e-5 times the usual weights).
    """

    def __init__(
        self,
        inp: int,
        out: int,
        emb_width: int,
        dropout: float,
        attention: bool,
        resample: Literal["up", "down"] | None,
        taps: Sequence[float],
    ):
        super().__init__()

        def conv(kernel: int) -> nn.Conv2d:
            if resample is None:
                return xavier(nn.Conv2d(inp, out, kernel, padding=kernel // 2))
            return (UpConv if resample == "up" else DownConv)(inp, out, kernel, taps)

        self.norm1 = norm(inp)
        self.conv1 = conv(3)
        self.shift = xavier(nn.Linear(emb_width, out))
        self.norm2 = norm(out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = xavier(nn.Conv2d(out, out, 3, padding=1), gain=1e-5)
        self.skip = conv(1) if inp != out or resample else nn.Identity()
        self.attention = Attention(out) if attention else nn.Identity()

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        r = self.conv1(F.silu(self.norm1(h)))
        r = r + self.shift(emb).to(r.dtype)[:, :, None, None]
        r = self.conv2(self.dropout(F.silu(self.norm2(r))))
        return self.attention((self.skip(h) + r) * SQRT_HALF)
