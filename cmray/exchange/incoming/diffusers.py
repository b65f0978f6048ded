"""Folders of diffusers' ConsistencyModelPipeline. diffusers itself is not needed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cmray.core.errors import CheckpointError
from cmray.exchange.base import Foreign, Source, as_float32, compare, meta_net, sources
from cmray.exchange.card import card_fields
from cmray.exchange.files import read_json, read_state
from cmray.exchange.scheduler import noise_fields
from cmray.exchange.unet2d import adm_fields, from_unet2d, to_unet2d
from cmray.nn.adm import ADMConfig

SCHEDULER, UNET = "scheduler/scheduler_config.json", "unet/config.json"
#: the first that is there is read; the .bin files are read with weights_only
WEIGHTS = ("unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.bin")

HINT = f"a pipeline of diffusers is a folder with model_index.json, {UNET} and {SCHEDULER}"


@sources.register("diffusers")
class Diffusers(Source):
    """model_index.json, unet/ and scheduler/. A UNet2DModel of the shape of ADM is our `adm`."""

    def read(self, path: Path) -> Foreign:
        index = read_json(path / "model_index.json", HINT)
        if index.get("_class_name") != "ConsistencyModelPipeline":
            raise CheckpointError(
                f"{path} is a {index.get('_class_name')!r} of diffusers; cmray reads ConsistencyModelPipeline"
            )
        noise, num_sigmas = noise_fields(read_json(path / SCHEDULER, HINT), path / SCHEDULER)
        fields, shape, classes = adm_fields(read_json(path / UNET, HINT), path / UNET)
        if self.image_size is not None:
            raise CheckpointError(f"{path} tells the size of its images by itself; leave --image-size out")
        config = self.config(fields, path)
        if not isinstance(config, ADMConfig):
            raise CheckpointError(f"{path}: --net names {config.name}, but UNet2DModel is an adm network")
        weights = _weights(path)
        state = as_float32(_loaded(weights), weights)
        net = meta_net(config, shape, classes, path)
        compare(state, to_unet2d(net.state_dict(), config, shape[1]), weights)
        card = card_fields(path / "README.md")  # of our own exports; others do not tell the objective
        licence = card.get("license") if isinstance(card.get("license"), str) else None
        objective = card.get("cmray_objective") if isinstance(card.get("cmray_objective"), dict) else None
        ours = from_unet2d(state, config, shape[1])
        return Foreign(config, ours, shape, classes, weights, noise, objective, num_sigmas, licence=licence)


def _weights(path: Path) -> Path:
    for name in WEIGHTS:
        if (path / name).is_file():
            return path / name
    raise CheckpointError(f"{path} has no weights: looked for {' and '.join(WEIGHTS)}")


def _loaded(path: Path) -> Mapping[str, Tensor]:
    if path.suffix != ".safetensors":
        return read_state(path)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
