"""Folders that `cmray export --format safetensors` made."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file

from cmray.config.checkpoint_facts import Origin
from cmray.config.run import RunConfig
from cmray.core.errors import CheckpointError
from cmray.exchange.base import Foreign, Source, as_float32, compare, meta_net, sources
from cmray.exchange.card import card_fields
from cmray.exchange.files import read_json

WEIGHTS, CONFIG = "model.safetensors", "config.json"
HINT = "`cmray export --format safetensors` makes such a folder"


@sources.register("safetensors")
class Safetensors(Source):
    """Everything is told by its config.json: nothing is guessed, and nothing can be overridden."""

    def read(self, path: Path) -> Foreign:
        if self.net or self.image_size is not None:
            raise CheckpointError(f"{path} tells its network by itself; leave --net and --image-size out")
        told = read_json(path / CONFIG, HINT)
        try:
            run = RunConfig.model_validate(told["run"])
            shape = tuple(int(side) for side in told["shape"])
            classes = int(told["num_classes"])
            step, nimg = int(told.get("step", 0)), int(told.get("nimg", 0))
            origin = Origin.model_validate(told["origin"]) if told.get("origin") else None
            assert len(shape) == 3
        except (KeyError, TypeError, ValueError, AssertionError, ValidationError) as error:
            text = (str(error).splitlines() or [""])[-1].strip()
            raise CheckpointError(f"{path / CONFIG} is not what cmray exports: {type(error).__name__} {text}") from None
        try:
            state = load_file(path / WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path / WEIGHTS} cannot be read: {error}") from None
        net = meta_net(run.net, shape, classes, path)
        state = as_float32(state, path / WEIGHTS)
        compare(state, net.state_dict(), path / WEIGHTS)
        told_licence = card_fields(path / "README.md").get("license")
        licence = told_licence if isinstance(told_licence, str) else None
        return Foreign(
            run.net, state, shape, classes, path / WEIGHTS,
            run=run, licence=licence, origin=origin, step=step, nimg=nimg,
        )  # fmt: skip
