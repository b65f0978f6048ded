"""Layers that several networks share."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from cmray.nn.base import Shape


def zero_init(module: nn.Module) -> nn.Module:
    """The same module with all its parameters zero, so that a residual branch starts as nothing."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def required(label: Tensor | None) -> Tensor:
    """The label of a class-conditional network. Raises ValueError where there is none."""
    if label is None:
        raise ValueError("this network is class-conditional and needs labels")
    return label


def at_least_float32(x: Tensor) -> Tensor:
    """float16 and bfloat16 become float32; float64, as in derivative checks, stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """Context in which the operations on x's device ignore autocast; "meta" and its like have none."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def check_sides(shape: Shape, levels: int) -> None:
    """Raises ValueError when a side of `shape` cannot be halved `levels` - 1 times."""
    factor = 2 ** (levels - 1)
    height, width = shape[1:]
    if height % factor or width % factor:
        fits = "x".join(str(factor * max(1, math.ceil(side / factor))) for side in (height, width))
        raise ValueError(
            f"images of {height}x{width} do not fit the {levels} levels of multipliers, which halve the sides "
            f"{levels - 1} times: both sides must be multiples of {factor}, as in {fits}"
        )


def checkpointed(on: bool, block: Callable[..., Tensor], *args: Tensor) -> Tensor:
    """block(*args); when `on`, its activations are computed again for the gradient (Chen et al. 2016), bit for bit."""
    if on and torch.is_grad_enabled():
        return checkpoint(block, *args, use_reentrant=False, preserve_rng_state=True)
    return block(*args)


def num_groups(channels: int) -> int:
    """Up to 32 groups of at least 4 channels, fewer where the channels do not divide."""
    return max(g for g in range(1, 33) if channels % g == 0 and (g == 1 or channels // g >= 4))


class GroupNorm32(nn.GroupNorm):
    """GroupNorm in at least float32, whatever the precision of its input, which its output has."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(at_least_float32(input)).to(input.dtype)


def attend(qkv: Tensor, heads: int) -> Tensor:
    """softmax(q^T k / sqrt(d)) v over the pixels, per head.

    PyTorch's fused kernels want d contiguous, which a qkv in channels_last gives. They have no forward-mode derivative:
    around torch.func.jvp, use torch.nn.attention.sdpa_kernel(SDPBackend.MATH).

    Args:
        qkv: [B, 3 C, H, W]; the channels are ordered (q k v, head, d) with d = C / heads.

    Returns:
        [B, C, H, W], channels ordered (head, d).
    """
    b, c, height, width = qkv.shape[0], qkv.shape[1] // 3, *qkv.shape[2:]
    parts = qkv.reshape(b, 3, heads, c // heads, height * width)
    q, k, v = (t.transpose(-1, -2) for t in parts.unbind(1))
    return F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(b, c, height, width)


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


class Sinusoids(nn.Module):
    """c_noise [B] -> [B, dim]: cos(scale c_noise w_i), then sin, with w_i = 10000^(-i/n) for i < dim // 2.

    n is dim // 2, or one less with `endpoint`, so that the last w_i is 1/10000; an odd dim ends in a zero.
    At least float32 whatever the network's precision: scale c_noise reaches 1500 rad, where one ulp is 1e-4 rad.
    """

    frequencies: Tensor

    def __init__(self, dim: int, scale: float = 1.0, endpoint: bool = False):
        super().__init__()
        self.scale = scale
        self.odd = dim % 2
        half = dim // 2
        exponents = -math.log(10000) * torch.arange(half, dtype=torch.float32) / (half - endpoint)
        self.register_buffer("frequencies", exponents.exp(), persistent=False)

    def forward(self, c_noise: Tensor) -> Tensor:
        angles = (self.scale * at_least_float32(c_noise))[:, None] * self.frequencies
        return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, self.odd))


class RandomFourier(nn.Module):
    """c_noise [B] -> [B, dim]: cos(2 pi f_i c_noise), then sin, with fixed random f_i ~ N(0, scale^2).

    The frequencies are drawn once and belong to the weights, so they are a persistent buffer.
    """

    frequencies: Tensor

    def __init__(self, dim: int, scale: float):
        super().__init__()
        self.register_buffer("frequencies", scale * torch.randn(dim // 2))

    def forward(self, c_noise: Tensor) -> Tensor:
        angles = at_least_float32(c_noise)[:, None] * (2 * math.pi * self.frequencies)
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class NoiseEmbedding(nn.Module):
    """(c_noise [B], label [B] | None) -> [B, width]: silu of a two-layer MLP of features + a class embedding."""

    def __init__(self, width: int, num_classes: int, features: int = 32, encoding: nn.Module | None = None):
        """`encoding` (c_noise [B] -> [B, features]) takes the place of the Fourier features."""
        super().__init__()
        self.fourier = FourierFeatures(features) if encoding is None else encoding
        self.mlp = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))
        self.classes = nn.Embedding(num_classes, width) if num_classes else None

    def forward(self, c_noise: Tensor, label: Tensor | None) -> Tensor:
        emb = self.mlp(self.fourier(c_noise))
        if self.classes is not None:
            emb = emb + self.classes(required(label))
        return nn.functional.silu(emb)
