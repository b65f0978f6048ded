"""Checkpoints of openai/consistency_models: a state dict in a .pt file."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from cmray.core.errors import CheckpointError
from cmray.exchange.adm_keys import QkvOrder, recognised, with_thirds
from cmray.exchange.base import Foreign, Source, as_float32, compare, file_of, meta_net, sources
from cmray.exchange.files import read_state
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
        state = as_float32(read_state(file_of(path, "a checkpoint of openai/consistency_models")), path)
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
