"""What network a state dict of NVlabs/edm belongs to: DDPM++ and NCSN++ (SongUNet) or ADM (DhariwalUNet)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmray.core.errors import CheckpointError
from cmray.nn.adm import ADMConfig
from cmray.nn.base import Shape
from cmray.nn.song_state import AUGMENT, FILTER

#: our leaf -> that of a block of DhariwalUNet
BLOCK = {
    "norm1": "norm0",
    "conv1": "conv0",
    "modulation": "affine",
    "norm2": "norm1",
    "conv2": "conv1",
    "skip": "skip",
}
ATTENTION = {"norm": "norm2", "qkv": "qkv", "out": "proj"}
ENDS = {
    "embedding.mlp.0": "map_layer0",
    "embedding.mlp.2": "map_layer1",
    "norm_out": "out_norm",
    "conv_out": "out_conv",
}


def levels_of(state: Mapping[str, Tensor], shown: Path) -> tuple[list[int], dict[str, Any], Shape]:
    """(height of each level, fields that both kinds of network share, image shape). Raises CheckpointError."""
    heights = sorted({int(key.split(".")[1].split("x")[0]) for key in state if key.startswith("enc.")}, reverse=True)
    if not heights or f"enc.{heights[0]}x{heights[0]}_conv.weight" not in state:
        raise CheckpointError(f"{shown} does not hold a network of NVlabs/edm: it has no encoder 'enc.'")
    inp = state[f"enc.{heights[0]}x{heights[0]}_conv.weight"]
    firsts = [f"enc.{h}x{h}_block0" for h in heights]
    try:
        widths = [state[f"{first}.conv0.weight"].shape[0] for first in firsts]
        channels = state["map_layer0.weight"].shape[0] // 4
    except KeyError as error:
        raise CheckpointError(f"{shown} does not hold a network of NVlabs/edm: {error} is missing") from None
    blocks = sum(1 for key in state if key.startswith(f"enc.{heights[0]}x") and key.endswith("conv0.weight"))
    if not channels or any(width % channels for width in widths):
        raise CheckpointError(f"{shown}: the widths of its levels {widths} are no multiples of its {channels} channels")
    fields: dict[str, Any] = {
        "channels": channels,
        "multipliers": tuple(width // channels for width in widths),
        "blocks": blocks,
        "attention_resolutions": tuple(
            h for h, first in zip(heights, firsts, strict=True) if f"{first}.qkv.weight" in state
        ),
        "class_conditional": "map_label.weight" in state,
    }
    return heights, fields, (inp.shape[1], heights[0], heights[0])


def song_fields(state: Mapping[str, Tensor], shared: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a `ddpmpp` or `ncsnpp` network."""
    filters = [tensor for key, tensor in state.items() if key.endswith(FILTER)]
    taps = _taps(filters[0]) if filters else (1.0, 1.0)
    residual = any(key.endswith("aux_residual.weight") for key in state)
    return {
        **shared,
        "name": "ncsnpp" if residual else "ddpmpp",
        "embedding": "fourier" if "map_noise.freqs" in state else "positional",
        "noise_multiplier": state["map_layer0.weight"].shape[1] // shared["channels"],
        "encoder": "residual" if residual else "standard",
        "resample_filter": taps,
    }


def adm_fields(state: Mapping[str, Tensor], shared: Mapping[str, Any], heights: list[int]) -> dict[str, Any]:
    """Fields of an `adm` network. Heads have 64 channels in every network of NVlabs/edm."""
    first = f"enc.{heights[0]}x{heights[0]}_block0"
    return {
        **shared,
        "name": "adm",
        "head_width": 64,
        "scale_shift_norm": state[f"{first}.affine.weight"].shape[0] == 2 * state[f"{first}.conv0.weight"].shape[0],
        "resblock_updown": True,
        "noise_scale": 1.0,
    }


def adm_names(config: ADMConfig, heights: list[int], classes: bool) -> dict[str, str]:
    """Our module -> DhariwalUNet's, for every module with weights that the network may have."""
    sizes = [f"{h}x{h}" for h in heights]
    names = {**ENDS, "down.0.0": f"enc.{sizes[0]}_conv"}
    if classes:
        names["embedding.classes"] = "map_label"

    def cell(ours: str, theirs: str) -> None:
        names.update({f"{ours}.0.{leaf}": f"{theirs}.{other}" for leaf, other in BLOCK.items()})
        names.update({f"{ours}.1.{leaf}": f"{theirs}.{other}" for leaf, other in ATTENTION.items()})

    at = 1
    for level, size in enumerate(sizes):
        if level:
            cell(f"down.{at}", f"enc.{size}_down")
            at += 1
        for i in range(config.blocks):
            cell(f"down.{at}", f"enc.{size}_block{i}")
            at += 1
    for i, ours in enumerate(("middle.0", "middle.2")):
        names.update({f"{ours}.{leaf}": f"dec.{sizes[-1]}_in{i}.{other}" for leaf, other in BLOCK.items()})
    names.update({f"middle.1.{leaf}": f"dec.{sizes[-1]}_in0.{other}" for leaf, other in ATTENTION.items()})
    at = 0
    for level in reversed(range(len(sizes))):
        for i in range(config.blocks + 1):
            cell(f"up.{at}", f"dec.{sizes[level]}_block{i}")
            if level and i == config.blocks:  # their way up begins with what our cell ends with
                place = 2 if level in config.attention_levels(heights[0]) else 1
                theirs = f"dec.{sizes[level - 1]}_up"
                names.update({f"up.{at}.{place}.{leaf}": f"{theirs}.{other}" for leaf, other in BLOCK.items()})
            at += 1
    return names


def adm_to_edm(state: Mapping[str, Tensor], config: ADMConfig, heights: list[int]) -> dict[str, Tensor]:
    """The state dict of DhariwalUNet, without filters, that holds the weights of an `adm` network."""
    names = adm_names(config, heights, "embedding.classes.weight" in state)
    out = {}
    for key, tensor in state.items():
        module, _, kind = key.rpartition(".")
        theirs = f"{names[module]}.{kind}"
        if module.endswith("qkv"):
            tensor = tensor.unflatten(0, (3, -1)).transpose(0, 1).flatten(0, 1)
        out[theirs] = tensor.T if module == "embedding.classes" else tensor
    return out


def adm_from_edm(state: Mapping[str, Tensor], config: ADMConfig, heights: list[int]) -> dict[str, Tensor]:
    """The inverse of `adm_to_edm`, for the same keys. Raises KeyError for others."""
    names = adm_names(config, heights, "map_label.weight" in state)
    ours = {theirs: name for name, theirs in names.items()}
    out = {}
    for key, tensor in state.items():
        module, _, kind = key.rpartition(".")
        if module.endswith("qkv"):  # rows (head, d, q k v) there
            tensor = tensor.unflatten(0, (-1, 3)).transpose(0, 1).flatten(0, 1)
        out[f"{ours[module]}.{kind}"] = (tensor.T if module == "map_label" else tensor).contiguous()
    return out


def without_extras(state: Mapping[str, Tensor], filters: bool) -> dict[str, Tensor]:
    """Without what adds nothing to a sample: the layer of augmentation labels, and the box filters of an ADM."""
    kept = {key: tensor for key, tensor in state.items() if key != AUGMENT}
    return kept if filters else {key: tensor for key, tensor in kept.items() if not key.endswith(FILTER)}


def _taps(kernel: Tensor) -> tuple[float, ...]:
    """The taps whose outer product is a filter [1, 1, taps, taps] of sum 1, the first of them 1."""
    row = kernel.double()[0, 0].sum(0)
    return tuple(round(value, 4) for value in (row / row[0]).tolist()) if torch.all(row != 0) else (1.0, 1.0)
