"""A folder of plain files: the weights by our names, all that is needed to build the network, and a model card."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file

from cmray.core.version import __version__
from cmray.exchange.base import Exported, Target, targets
from cmray.exchange.card import model_card

WEIGHTS, CONFIG = "model.safetensors", "config.json"


@targets.register("safetensors")
class Safetensors(Target):
    """model.safetensors, config.json and README.md. `cmray import safetensors` reads it back."""

    def write(self, exported: Exported, folder: Path) -> str:
        model = exported.model
        state = {key: tensor.cpu().contiguous() for key, tensor in model.net.state_dict().items()}
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
        config = {
            "cmray": __version__,
            "shape": model.shape,
            "num_classes": model.num_classes,
            "weights": model.weights,
            "step": exported.facts.step,
            "nimg": exported.facts.nimg,
            "run": exported.run.model_dump(mode="json"),
            "origin": exported.facts.origin.model_dump() if exported.facts.origin else None,
        }
        (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n")
        use = (
            "# cmray import safetensors FOLDER --out checkpoint, then\n"
            "# cmray sample checkpoint --out samples.png; or the tensors alone:\n"
            "from safetensors.torch import load_file\n\n"
            'weights = load_file("FOLDER/model.safetensors")'
        )
        (folder / "README.md").write_text(model_card(exported, use, library="cmray"))
        return "cmray import safetensors {out} --out CHECKPOINT"
