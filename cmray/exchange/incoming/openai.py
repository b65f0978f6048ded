"""Checkpoints of openai/consistency_models: a state dict in a .pt file."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import Field

from cmray.core.errors import CheckpointError
from cmray.exchange.adm_keys import QkvOrder, recognised, with_thirds
from cmray.exchange.base import Foreign, Source, as_float32, compare, file_of, meta_net, sources
from cmray.exchange.published import PUBLISHED
from cmray.nn.adm import ADMConfig
from cmray.nn.adm_state import from_openai, to_openai

#: the noise levels that every published network of this repository was trained for
NOISE = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0, "sigma_data": 0.5}
HEADS = "attention has heads of 64 channels, as in the published networks; else --net '{head_width: N}'"


@sources.register("openai")
class OpenAI(Source):
    """Published networks are recognised by keys and shapes. Nothing but tensors is unpickled."""

    qkv_order: QkvOrder | None = Field(
        default=None,
        description="rows of qkv: thirds (q k v, head, d) as in consistency_models, or heads (head, q k v, d) as in "
        "guided-diffusion; recognised by the rank of its weights where not given",
    )

    def read(self, path: Path) -> Foreign:
        state = as_float32(_loaded(file_of(path, "a checkpoint of openai/consistency_models")), path)
        fields, shape, classes, order = recognised(state, self.image_size, path)
        config = self.config(fields, path)
        if not isinstance(config, ADMConfig):
            raise CheckpointError(f"{path}: --net names {config.name}, but these files hold adm networks")
        state = with_thirds(state, self.qkv_order or order, config.head_width, config.heads)
        net = meta_net(config, shape, classes, path)
        compare(state, to_openai(net.state_dict(), config), path)
        known = PUBLISHED.get(path.name)
        objective = known.objective if known else None
        assumed = "" if known or {"head_width", "heads"} & set(self.net) else HEADS
        ours = from_openai(state, config)
        return Foreign(config, ours, shape, classes, path, NOISE, objective, assumed=assumed)


def _loaded(path: Path) -> Mapping[str, object]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        told = str(error).strip().splitlines()
        named = next((line.strip() for line in told if "GLOBAL" in line), told[0] if told else "")
        raise CheckpointError(f"{path} holds more than tensors, and nothing of it was run: {named}") from None
    except OSError:
        raise
    except Exception as error:  # what is no such file may end in any error of the reader
        text = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path} is not a file of torch.save: {text}") from None
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path} holds a {type(state).__name__}; a state dict is a mapping of names to tensors")
    return state
