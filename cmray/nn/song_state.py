"""Weights of NVlabs/edm's DDPM++ and NCSN++ to and from `cmray.nn.song`.

EDM names levels by their height, keeps its resampling filters in the state dict, and orders the rows of qkv by
(channel, q k v) where ours are ordered (q k v, channel).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cmray.nn.song import SongConfig

#: where EDMPrecond keeps the network
PREFIX = "model."
LEAVES = {
    "norm1": "norm0",
    "conv1": "conv0",
    "shift": "affine",
    "norm2": "norm1",
    "conv2": "conv1",
    "skip": "skip",
    "attention.norm": "norm2",
    "attention.qkv": "qkv",
    "attention.out": "proj",
}
EMBEDDING = {
    "embedding.encoding.frequencies": "map_noise.freqs",
    "embedding.classes": "map_label",
    "embedding.lin0": "map_layer0",
    "embedding.lin1": "map_layer1",
}
FILTER = "resample_filter"
AUGMENT = "map_augment.weight"


def from_edm(state: Mapping[str, Tensor], config: SongConfig) -> dict[str, Tensor]:
    """The state dict of a `ddpmpp` or `ncsnpp` network from EDM's, with or without the prefix "model.".

    The weights of map_augment are dropped: the layer has no bias, and augmentation labels are zero in sampling, so it
    adds nothing there. The filters are dropped after a comparison with `config.resample_filter`.

    Raises:
        ValueError: a key that `config` has no place for, or another filter.
    """
    state = {key.removeprefix(PREFIX): tensor for key, tensor in state.items()}
    heights = [int(key.split(".")[1].split("x")[0]) for key in state if key.startswith("enc.")]
    if not heights:
        raise ValueError("these are not the weights of EDM's DDPM++ or NCSN++: no key begins with 'enc.'")
    names = {theirs: ours for ours, theirs in _names(config, max(heights)).items()}
    out = {}
    for key, tensor in state.items():
        if key.endswith(FILTER):
            expected = _filter(config).to(tensor)
            if tensor.shape != expected.shape or not torch.allclose(tensor, expected, atol=1e-3):
                raise ValueError(f"'{key}' of the weights is not the resample_filter {list(config.resample_filter)}")
        elif key != AUGMENT:
            ours, kind = _renamed(key, names)
            out[ours + kind] = _turned(tensor, first=-1, second=3) if ours.endswith("qkv") else tensor
    return out


def to_edm(state: Mapping[str, Tensor], config: SongConfig, height: int = 32) -> dict[str, Tensor]:
    """The inverse of `from_edm`, with EDM's filters and the prefix "model.", for a network without map_augment.

    Args:
        height: of the images that the network was built for, in pixels; EDM's names hold it.

    Raises:
        ValueError: a key that `config` has no place for.
    """
    names, out = _names(config, height), {}
    for key, tensor in state.items():
        theirs, kind = _renamed(key, names)
        out[PREFIX + theirs + kind] = _turned(tensor, first=3, second=-1) if theirs.endswith("qkv") else tensor
        module = key.rpartition(".")[0]
        if kind == ".weight" and module.endswith(("enter.conv1", "enter.skip", "residual")):
            out[f"{PREFIX}{theirs}.{FILTER}"] = _filter(config)
    return out


def _names(config: SongConfig, height: int) -> dict[str, str]:
    """Our module -> EDM's, for every module that a network of `config` may have."""
    sizes = [f"{height >> level}x{height >> level}" for level in range(len(config.multipliers))]
    blocks = {f"middle.{i}": f"dec.{sizes[-1]}_in{i}" for i in (0, 1)}
    names = {**EMBEDDING, "inp": f"enc.{sizes[0]}_conv"}
    names |= {"norm_out": f"dec.{sizes[0]}_aux_norm", "conv_out": f"dec.{sizes[0]}_aux_conv"}
    for level, size in enumerate(sizes):
        blocks |= {f"down.{level}.enter": f"enc.{size}_down", f"up.{level}.enter": f"dec.{size}_up"}
        blocks |= {f"down.{level}.blocks.{i}": f"enc.{size}_block{i}" for i in range(config.blocks)}
        blocks |= {f"up.{level}.blocks.{i}": f"dec.{size}_block{i}" for i in range(config.blocks + 1)}
        names[f"down.{level}.residual"] = f"enc.{size}_aux_residual"
    for ours, theirs in blocks.items():
        names |= {f"{ours}.{leaf}": f"{theirs}.{LEAVES[leaf]}" for leaf in LEAVES}
    return names


def _renamed(key: str, names: Mapping[str, str]) -> tuple[str, str]:
    """The other name of a module, or of a buffer; and ".weight", ".bias" or nothing."""
    if key in names:
        return names[key], ""
    module, dot, kind = key.rpartition(".")
    if module not in names:
        raise ValueError(f"a network of this config has no place for '{key}'")
    return names[module], dot + kind


def _turned(rows: Tensor, first: int, second: int) -> Tensor:
    """Rows ordered (first, second) -> rows ordered (second, first), for weights [3 C, ...] and biases [3 C]."""
    return rows.unflatten(0, (first, second)).transpose(0, 1).flatten(0, 1)


def _filter(config: SongConfig) -> Tensor:
    """The separable filter of `config` as EDM keeps it: [1, 1, taps, taps] with sum 1."""
    row = torch.tensor(config.resample_filter, dtype=torch.float32)
    return torch.outer(row, row)[None, None] / row.sum() ** 2
