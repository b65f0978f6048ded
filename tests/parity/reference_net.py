"""The reference's networks in ours: their weights follow a rule of their names (../shared/golden/README.md)."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import nn

from cmray.nn.adm import ADMConfig
from cmray.nn.adm_state import from_openai


def weights(shapes, seed=1):
    """Tensors by the reference's own names."""
    out = {}
    for name, shape in shapes.items():
        rng = np.random.RandomState(zlib.crc32(f"param:{name}#{seed}".encode()) ^ 20230303)
        values = rng.standard_normal(shape)
        if len(shape) >= 2:
            values = values / np.sqrt(np.prod(shape[1:]))
        else:
            values = 0.05 * values if name.endswith("bias") else 1 + 0.1 * values
        out[name] = torch.from_numpy(values.astype(np.float32))
    return out


def network(golden, case, seed=1) -> tuple[nn.Module, ADMConfig]:
    """The network of one case of d_unet_meta.json, and its config. Seeds: 1 student, 2 target, 3 teacher."""
    meta = golden("d_unet_meta.json")[case]
    args, size = meta["kwargs"], meta["kwargs"]["image_size"]
    config = ADMConfig(
        channels=args["model_channels"],
        multipliers=args["channel_mult"],
        blocks=args["num_res_blocks"],
        attention_resolutions=[size // factor for factor in args["attention_resolutions"]],
        head_width=args["num_head_channels"],
        scale_shift_norm=args["use_scale_shift_norm"],
        resblock_updown=args["resblock_updown"],
        dropout=args["dropout"],
        class_conditional=args["num_classes"] is not None,
    )
    net = config.build((args["in_channels"], size, size), args["num_classes"] or 0)
    net.load_state_dict(from_openai(weights(meta["state_dict"], seed), config))
    assert sum(p.numel() for p in net.parameters()) == meta["n_params"]
    return net, config
