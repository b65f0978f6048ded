"""Our `adm` network as diffusers' UNet2DModel, both ways: its config, and the names of its weights.

The two compute the same: ours embeds 1000 c_noise, which is the timestep that diffusers' scheduler for consistency
models hands to the network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmray.core.errors import CheckpointError
from cmray.nn.adm import GROUPS, ADMConfig
from cmray.nn.base import Shape

CLASS, MODEL = "_class_name", "UNet2DModel"
#: block of a level -> whether it has attention, and how it resamples where its name tells
DOWN: dict[str, tuple[bool, str | None]] = {
    "DownBlock2D": (False, "conv"),
    "ResnetDownsampleBlock2D": (False, "resnet"),
    "AttnDownBlock2D": (True, None),
}
UP: dict[str, tuple[bool, str | None]] = {
    "UpBlock2D": (False, "conv"),
    "ResnetUpsampleBlock2D": (False, "resnet"),
    "AttnUpBlock2D": (True, None),
}
#: what a UNet2DModel has to be for an `adm` network to be the same, with diffusers' defaults
FIXED: dict[str, Any] = {
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2D",
    "downsample_padding": 1,
    "act_fn": "silu",
    "norm_num_groups": GROUPS,
    "norm_eps": 1e-5,
    "add_attention": True,
    "class_embed_type": None,
    "time_embedding_dim": None,
}
RESNET = {
    "norm1": "norm1",
    "conv1": "conv1",
    "modulation": "time_emb_proj",
    "norm2": "norm2",
    "conv2": "conv2",
    "skip": "conv_shortcut",
}
ATTENTION = {"norm": "group_norm", "qkv": "to_qkv", "out": "to_out.0"}  # to_qkv stands for to_q, to_k and to_v
ENDS = {
    "embedding.mlp.0": "time_embedding.linear_1",
    "embedding.mlp.2": "time_embedding.linear_2",
    "embedding.classes": "class_embedding",
    "down.0.0": "conv_in",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
}
QKV = ("to_q", "to_k", "to_v")


def unet_config(config: ADMConfig, shape: Shape, num_classes: int) -> dict[str, Any]:
    """The config.json of the UNet2DModel that computes what the network does.

    Raises:
        CheckpointError: there is none, with the reason.
    """
    attended, widths = config.attention_levels(shape[1]), config.widths()
    if shape[1] != shape[2]:
        raise CheckpointError(f"diffusers' pipeline makes square images, and these are {shape[1]}x{shape[2]}")
    if config.multipliers[0] != 1:
        raise CheckpointError(
            f"UNet2DModel embeds the noise level in as many channels as its first level has, but net.multipliers "
            f"begins with {config.multipliers[0]}"
        )
    if config.noise_scale != 1000:
        raise CheckpointError(f"diffusers' scheduler embeds 1000 c_noise, but net.noise_scale is {config.noise_scale}")
    head_width = config.head_width
    if head_width is None:
        split = {widths[level] // (config.heads or 1) for level in (*attended, len(widths) - 1)}
        if len(split) > 1:
            raise CheckpointError(
                f"UNet2DModel has heads of one width, but net.heads {config.heads} makes heads of "
                f"{' and '.join(map(str, sorted(split)))} channels"
            )
        head_width = split.pop()
    how = "resnet" if config.resblock_updown else "conv"
    plain = {
        "conv": ("DownBlock2D", "UpBlock2D"),
        "resnet": ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"),
    }[how]
    kinds = [("AttnDownBlock2D", "AttnUpBlock2D") if level in attended else plain for level in range(len(widths))]
    return {
        CLASS: MODEL,
        **FIXED,
        "sample_size": shape[1],
        "in_channels": shape[0],
        "out_channels": shape[0],
        "down_block_types": [down for down, _ in kinds],
        "up_block_types": [up for _, up in reversed(kinds)],
        "block_out_channels": widths,
        "layers_per_block": config.blocks,
        "downsample_type": how,
        "upsample_type": how,
        "dropout": config.dropout,
        "attention_head_dim": head_width,
        "attn_norm_num_groups": GROUPS,
        "resnet_time_scale_shift": "scale_shift" if config.scale_shift_norm else "default",
        "num_class_embeds": num_classes or None,
        "num_train_timesteps": None,
    }


def adm_fields(unet: Mapping[str, Any], shown: Path) -> tuple[dict[str, Any], Shape, int]:
    """(fields of ADMConfig, image shape, classes) of a UNet2DModel's config.

    Raises:
        CheckpointError: it is another network than an `adm` can be, with the field that says so.
    """

    def refuse(field: str, allowed: str) -> CheckpointError:
        return CheckpointError(f"{shown}: {field} is {unet.get(field)!r}; cmray's adm network has {allowed}")

    if unet.get(CLASS) != MODEL:
        raise refuse(CLASS, MODEL)
    for field, value in FIXED.items():
        if unet.get(field, value) != value:
            raise refuse(field, repr(value))
    downs, ups = list(unet.get("down_block_types") or ()), list(unet.get("up_block_types") or ())
    for field, kinds, known in (("down_block_types", downs, DOWN), ("up_block_types", ups, UP)):
        if not kinds or not set(kinds) <= set(known):
            raise refuse(field, f"blocks of {', '.join(known)}")
    attended = [level for level, kind in enumerate(downs) if DOWN[kind][0]]
    if [UP[kind][0] for kind in reversed(ups)] != [DOWN[kind][0] for kind in downs]:
        raise refuse("up_block_types", "attention at the same levels on both ways")
    told = {how for kind in downs[:-1] for how in [DOWN[kind][1] or unet.get("downsample_type", "conv")]}
    told |= {how for kind in ups[:-1] for how in [UP[kind][1] or unet.get("upsample_type", "conv")]}
    if len(told) > 1:
        raise refuse("downsample_type", "one way to resample on every level")
    widths, size, image = unet.get("block_out_channels"), unet.get("sample_size"), unet.get("in_channels", 3)
    if not isinstance(widths, list) or len(widths) != len(downs) or any(w % widths[0] for w in widths):
        raise refuse("block_out_channels", "multiples of the first, one for each level")
    if not isinstance(size, int):
        raise refuse("sample_size", "one number of pixels a side")
    if unet.get("out_channels", 3) != image:
        raise refuse("out_channels", f"as many as in_channels, {image}")
    scale_shift = unet.get("resnet_time_scale_shift", "default")
    if scale_shift not in ("default", "scale_shift"):
        raise refuse("resnet_time_scale_shift", "default or scale_shift")
    classes = unet.get("num_class_embeds") or 0
    fields = {
        "name": "adm",
        "channels": widths[0],
        "multipliers": tuple(w // widths[0] for w in widths),
        "blocks": unet.get("layers_per_block", 2),
        "attention_resolutions": tuple(size >> level for level in attended),
        "head_width": unet.get("attention_head_dim", 8),
        "scale_shift_norm": scale_shift == "scale_shift",
        "resblock_updown": told == {"resnet"} or (not told and unet.get("downsample_type") == "resnet"),
        "dropout": unet.get("dropout", 0.0),
        "class_conditional": bool(classes),
    }
    return fields, (image, size, size), classes


def to_unet2d(state: Mapping[str, Tensor], config: ADMConfig, height: int) -> dict[str, Tensor]:
    """The state dict of the UNet2DModel with an `adm` network's weights; the same numbers."""
    names, out = dict(_names(config, height)), {}
    for key, tensor in state.items():
        module, _, kind = key.rpartition(".")
        theirs = names[module]
        flat = tensor.flatten(1) if kind == "weight" and module.endswith((".qkv", ".1.out")) else tensor
        if theirs.endswith("to_qkv"):
            for part, third in zip(QKV, flat.chunk(3), strict=True):
                out[f"{theirs.removesuffix('to_qkv')}{part}.{kind}"] = third.contiguous()
        else:
            out[f"{theirs}.{kind}"] = flat.contiguous()
    return out


def from_unet2d(state: Mapping[str, Tensor], config: ADMConfig, height: int) -> dict[str, Tensor]:
    """The inverse of `to_unet2d`. Raises KeyError for keys that it would not make."""
    ours, out = {theirs: name for name, theirs in _names(config, height)}, {}
    for key, tensor in state.items():
        module, _, kind = key.rpartition(".")
        stem, _, leaf = module.rpartition(".")
        if leaf == QKV[0]:
            name, tensor = ours[f"{stem}.to_qkv"], torch.cat([state[f"{stem}.{part}.{kind}"] for part in QKV])
        elif leaf in QKV:
            continue
        else:
            name = ours[module]
        square = kind == "weight" and name.endswith((".qkv", ".1.out"))
        out[f"{name}.{kind}"] = tensor[:, :, None, None].contiguous() if square else tensor
    return out


def _names(config: ADMConfig, height: int) -> Iterator[tuple[str, str]]:
    """(our module, diffusers' module) for every module with weights that the network may have."""

    def block(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
        yield from ((f"{ours}.{leaf}", f"{theirs}.{other}") for leaf, other in RESNET.items())

    def attention(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
        yield from ((f"{ours}.{leaf}", f"{theirs}.{other}") for leaf, other in ATTENTION.items())

    yield from ENDS.items()
    levels, attended = len(config.multipliers), config.attention_levels(height)
    at = 1
    for level in range(levels):
        if level:
            theirs = f"down_blocks.{level - 1}.downsamplers.0"
            yield from block(f"down.{at}.0", theirs)
            yield f"down.{at}.0.strided", f"{theirs}.conv"
            at += 1
        for i in range(config.blocks):
            yield from block(f"down.{at}.0", f"down_blocks.{level}.resnets.{i}")
            yield from attention(f"down.{at}.1", f"down_blocks.{level}.attentions.{i}")
            at += 1
    yield from block("middle.0", "mid_block.resnets.0")
    yield from attention("middle.1", "mid_block.attentions.0")
    yield from block("middle.2", "mid_block.resnets.1")
    at = 0
    for theirs_at, level in enumerate(reversed(range(levels))):
        for i in range(config.blocks + 1):
            yield from block(f"up.{at}.0", f"up_blocks.{theirs_at}.resnets.{i}")
            if level in attended:
                yield from attention(f"up.{at}.1", f"up_blocks.{theirs_at}.attentions.{i}")
            if level and i == config.blocks:
                place = f"up.{at}.{2 if level in attended else 1}"
                yield from block(place, f"up_blocks.{theirs_at}.upsamplers.0")
                yield f"{place}.conv", f"up_blocks.{theirs_at}.upsamplers.0.conv"
            at += 1
