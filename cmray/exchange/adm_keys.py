"""What ADM network a state dict of openai/consistency_models or openai/guided-diffusion belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from cmray.core.errors import CheckpointError
from cmray.nn.base import Shape

#: rows of qkv: (q k v, head, d) in consistency_models, (head, q k v, d) in guided-diffusion
QkvOrder = Literal["thirds", "heads"]

#: pixels a side of the published networks, by channels, width of each level and blocks
PUBLISHED_SIZES = {(192, (1, 2, 3, 4), 3): 64, (256, (1, 1, 2, 2, 4, 4), 2): 256}


def recognised(
    state: Mapping[str, Tensor], image_size: int | None, shown: Path
) -> tuple[dict[str, Any], Shape, int, QkvOrder]:
    """(fields of ADMConfig, image shape, classes, order of qkv) by keys and shapes.

    How attention is split into heads leaves no trace; the published networks have heads of 64 channels.

    Raises:
        CheckpointError: another kind of network, or images whose size the keys do not tell and nobody says.
    """
    needed = ("time_embed.0.weight", "input_blocks.0.0.weight", "input_blocks.1.0.in_layers.2.weight", "out.2.weight")
    for key in needed:
        if key not in state:
            raise CheckpointError(
                f"{shown} does not hold an ADM U-Net of openai/consistency_models: '{key}' is missing"
            )
    channels, image = state[needed[0]].shape[1], state[needed[1]].shape[1]
    if state[needed[3]].shape[0] != image:
        raise CheckpointError(
            f"{shown} predicts {state[needed[3]].shape[0]} channels for images of {image}: a network that also "
            f"predicts a variance is a discrete diffusion model, which cmray does not sample"
        )
    cells = _cells(state, "output_blocks")
    ups = [_up(state, i) for i in range(cells)]
    levels = 1 + sum(up is not None for up in ups)
    if cells % levels or cells // levels < 2:
        raise CheckpointError(f"{shown} has {cells} cells on the way up for {levels} levels, as no ADM U-Net has")
    blocks = cells // levels - 1
    firsts = [1 + level * (blocks + 1) for level in range(levels)]  # cells of the way down; one resamples between
    try:
        widths = [state[f"input_blocks.{i}.0.in_layers.2.weight"].shape[0] for i in firsts]
        modulation = state["input_blocks.1.0.emb_layers.1.weight"].shape[0]
    except KeyError as error:
        raise CheckpointError(f"{shown} does not hold an ADM U-Net: {error} is missing") from None
    if any(width % channels for width in widths):
        raise CheckpointError(f"{shown}: the widths of its levels {widths} are no multiples of its {channels} channels")
    multipliers = tuple(width // channels for width in widths)
    size = image_size or PUBLISHED_SIZES.get((channels, multipliers, blocks))
    if size is None:
        raise CheckpointError(
            f"{shown} holds {levels} levels of {', '.join(map(str, widths))} channels, which is no published network, "
            f"and its keys do not tell the size of its images; give --image-size"
        )
    attended = [level for level, i in enumerate(firsts) if f"input_blocks.{i}.1.qkv.weight" in state]
    fields: dict[str, Any] = {
        "name": "adm",
        "channels": channels,
        "multipliers": multipliers,
        "blocks": blocks,
        "attention_resolutions": tuple(size >> level for level in attended),
        "head_width": 64,
        "scale_shift_norm": modulation == 2 * widths[0],
        "resblock_updown": "conv" not in ups,
        "class_conditional": "label_emb.weight" in state,
    }
    classes = state["label_emb.weight"].shape[0] if "label_emb.weight" in state else 0
    qkv = state.get("middle_block.1.qkv.weight")
    order: QkvOrder = "heads" if qkv is not None and qkv.ndim == 3 else "thirds"
    return fields, (image, size, size), classes, order


def with_thirds(state: Mapping[str, Tensor], order: QkvOrder, head_width: int | None, heads: int | None) -> dict:
    """The state dict with attention as consistency_models has it: 2-D convolutions, rows of qkv (q k v, head, d)."""
    out = dict(state)
    for key, tensor in state.items():
        if ".qkv." in key and order == "heads":
            width = tensor.shape[0] // 3
            split = heads or width // (head_width or width)
            out[key] = tensor.unflatten(0, (split, 3, -1)).transpose(0, 1).flatten(0, 2).contiguous()
        if key.endswith((".qkv.weight", ".proj_out.weight")) and tensor.ndim == 3:  # of a 1-D convolution
            out[key] = out[key].unsqueeze(-1)
    return out


def _cells(state: Mapping[str, Tensor], part: str) -> int:
    return len({key.split(".")[1] for key in state if key.startswith(f"{part}.")})


def _up(state: Mapping[str, Tensor], cell: int) -> Literal["block", "conv"] | None:
    """How a cell of the way up doubles the sides in its end; None where it does not."""
    for i in (1, 2):
        if f"output_blocks.{cell}.{i}.in_layers.0.weight" in state:
            return "block"
        if f"output_blocks.{cell}.{i}.conv.weight" in state:
            return "conv"
    return None
