"""A folder that diffusers' ConsistencyModelPipeline loads. diffusers itself is not needed to write it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from safetensors.torch import save_file

from cmray.core.errors import CheckpointError
from cmray.exchange.base import Exported, Target, targets
from cmray.exchange.card import model_card
from cmray.exchange.scheduler import scheduler_config
from cmray.exchange.unet2d import to_unet2d, unet_config
from cmray.nn.adm import ADMConfig


@targets.register("diffusers")
class Diffusers(Target):
    """model_index.json, unet/, scheduler/ and a model card. For consistency models with an `adm` network."""

    def check(self, exported: Exported) -> None:
        _unet(exported)

    def write(self, exported: Exported, folder: Path) -> str:
        config = cast(ADMConfig, exported.run.net)
        height = exported.model.shape[1]
        index = {
            "_class_name": "ConsistencyModelPipeline",
            "scheduler": ["diffusers", "CMStochasticIterativeScheduler"],
            "unet": ["diffusers", "UNet2DModel"],
        }
        _write(folder / "model_index.json", index)
        _write(folder / "unet" / "config.json", _unet(exported))
        _write(folder / "scheduler" / "scheduler_config.json", scheduler_config(exported.run))
        state = {key: tensor.cpu() for key, tensor in exported.model.net.state_dict().items()}
        weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
        save_file(to_unet2d(state, config, height), weights, metadata={"format": "pt"})
        labels = ", class_labels=0" if exported.model.num_classes else ""
        use = (
            "from diffusers import ConsistencyModelPipeline\n\n"
            'pipe = ConsistencyModelPipeline.from_pretrained("FOLDER")\n'
            f"image = pipe(num_inference_steps=1{labels}).images[0]"
        )
        (folder / "README.md").write_text(model_card(exported, use, library="diffusers"))
        return _next(labels)


def _next(labels: str) -> str:
    call = f"num_inference_steps=1{labels}"
    return (
        "python -c 'from diffusers import ConsistencyModelPipeline as P; "
        f'P.from_pretrained("{{out}}")({call}).images[0].save("sample.png")\''
    )


def _unet(exported: Exported) -> dict[str, Any]:
    """Raises CheckpointError for what the pipeline cannot express."""
    run = exported.run
    if not isinstance(run.net, ADMConfig):
        raise CheckpointError(
            f"{exported.name} has a network of kind {run.net.name}, which none of diffusers' networks computes; adm is "
            f"the kind that can be a UNet2DModel, and safetensors and onnx take any"
        )
    if run.objective.kind != "consistency":
        raise CheckpointError(
            f"{exported.name} is a {run.objective.kind} model; ConsistencyModelPipeline is for consistency models"
        )
    if run.objective.precond != "boundary":
        raise CheckpointError(
            f"{exported.name} (objective.name {run.objective.name}) has EDM's preconditioning; that of diffusers' "
            f"scheduler has its boundary at sigma_min"
        )
    try:
        return unet_config(run.net, exported.model.shape, exported.model.num_classes)
    except CheckpointError as error:
        raise CheckpointError(f"{exported.name} cannot be a pipeline of diffusers: {error}") from None


def _write(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n")
