"""Weights of openai/consistency_models' U-Net to and from `cmray.nn.adm`.

The two trees have the same shape and the same tensors; only names differ, so the conversions share memory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from cmray.nn.adm import ADMConfig

#: the reference's names -> ours, for one or two whole segments of a dotted key
NAMES = {
    "time_embed": "embedding.mlp",
    "label_emb": "embedding.classes",
    "input_blocks": "down",
    "middle_block": "middle",
    "output_blocks": "up",
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "modulation",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "skip",
    "proj_out": "out",
    "op": "strided",
    "out.0": "norm_out",
    "out.2": "conv_out",
}


def from_openai(state: Mapping[str, Tensor], config: ADMConfig) -> dict[str, Tensor]:
    """The state dict of an `adm` network from that of a checkpoint of openai/consistency_models, tensors unchanged.

    Raises ValueError when the checkpoint is of another network than `config` makes.
    """
    _check(state, config)
    return _renamed(state, NAMES)


def to_openai(state: Mapping[str, Tensor], config: ADMConfig) -> dict[str, Tensor]:
    """The inverse of `from_openai`, exactly."""
    renamed = _renamed(state, {ours: theirs for theirs, ours in NAMES.items()})
    _check(renamed, config)
    return renamed


def _renamed(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    segments = re.compile(rf"(?<![^.])({'|'.join(map(re.escape, names))})(?![^.])")
    return {segments.sub(lambda m: names[m[0]], key): tensor for key, tensor in state.items()}


def _check(state: Mapping[str, Tensor], config: ADMConfig) -> None:
    """Raises ValueError when `state`, in the reference's names, contradicts a field of `config`."""
    needed = ["time_embed.0.weight", "input_blocks.1.0.in_layers.2.weight", "input_blocks.1.0.emb_layers.1.weight"]
    for key in needed:
        if key not in state:
            raise ValueError(f"these are not the weights of an ADM U-Net: '{key}' is missing")
    embed, conv, modulation = (state[key].shape for key in needed)
    cells = {key.split(".")[1] for key in state if key.startswith("output_blocks.")}
    strided = any(key.endswith(".op.weight") for key in state)
    found = {
        "channels": (embed[1], config.channels),
        "multipliers[0] x channels": (conv[0], config.widths()[0]),
        "multipliers x (blocks + 1)": (len(cells), len(config.multipliers) * (config.blocks + 1)),
        "scale_shift_norm": (modulation[0] == 2 * conv[0], config.scale_shift_norm),
        "resblock_updown": (not strided, config.resblock_updown or len(config.multipliers) == 1),
    }
    for field, (theirs, ours) in found.items():
        if theirs != ours:
            raise ValueError(f"the weights have {field} {theirs}, but the config has {ours}")
