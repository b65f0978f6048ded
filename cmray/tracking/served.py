"""A sampler as MLflow serves it: its files (safetensors and JSON, no pickled code), what loads and what asks them.

<folder>/meta.json              the checkpoint's manifest, of these weights alone
<folder>/ema-RATE.safetensors   the weights
<folder>/sampler.json           network evaluations and noise levels of a request that gives no times
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import shutil
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmray.core.errors import CheckpointError, CmrayError
from cmray.core.files import sha256_of

if TYPE_CHECKING:
    import numpy as np
    from pandas import DataFrame
    from torch import Tensor

    from cmray.config.checkpoint_facts import CheckpointFacts

SAMPLER = "sampler.json"
#: images of one call of predict, so that a request cannot fill the server's memory
MAX_IMAGES = 4096
#: of the layout above and of what predict takes and returns; another one is another version of the model
_LAYOUT = 1
_REQUIRED = ("cmray", "mlflow", "torch", "torchvision", "numpy", "pandas", "pydantic", "pyyaml", "safetensors")


@dataclass(frozen=True)
class ServedModel:
    """A sampler that goes into the registry of models.

    Args:
        name: in the registry.
        checkpoint: folder of the weights; its first EMA is served.
        nfe: network evaluations of an image by default.
        times: noise levels by default, descending; None for models whose levels follow from nfe.
        description: in Markdown.
        metrics: the values that made it the best, as (name, value, seconds since the epoch, step).
    """

    name: str
    checkpoint: Path
    nfe: int
    times: tuple[float, ...] | None
    description: str = ""
    metrics: Sequence[tuple[str, float, float, int]] = ()
    tags: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def facts(self) -> CheckpointFacts:
        """The checkpoint's manifest. Raises CheckpointError."""
        from cmray.config.checkpoint_facts import read_checkpoint_facts

        return read_checkpoint_facts(self.checkpoint)

    @property
    def trial(self) -> str:
        """The name of the trial that the checkpoint is of."""
        return self.checkpoint.parent.parent.name

    @property
    def content(self) -> str:
        """A hash of all that decides its images. Raises CheckpointError."""
        from cmray.config.identity import content_hash

        facts = self.facts
        what = {"layout": _LAYOUT, "weights": facts.weights_sha256, "nfe": self.nfe, "times": self.times}
        return content_hash({**what, "noise": facts.run_config.get("noise"), "net": facts.run_config.get("net")})[:32]

    def write(self, folder: Path) -> None:
        """Writes the files into a new folder. Raises CheckpointError for a checkpoint that is damaged."""
        from cmray.config.checkpoint_facts import META

        facts = self.facts
        weights = self.checkpoint / facts.weights_file
        if sha256_of(weights) != facts.weights_sha256:
            raise CheckpointError(f"{weights} changed after it was written: its SHA-256 is not the manifest's")
        folder.mkdir(parents=True)
        shutil.copyfile(weights, folder / weights.name)
        alone = facts.model_copy(update={"files": {facts.weights_file: facts.weights_sha256}})
        (folder / META).write_text(alone.model_dump_json(indent=1))
        (folder / SAMPLER).write_text(json.dumps({"nfe": self.nfe, "times": self.times}, indent=1))

    @property
    def example(self) -> dict[str, Any]:
        """A request."""
        facts = self.facts
        request: dict[str, Any] = {"seed": 0, "count": 4}
        if facts.num_classes:
            request["labels"] = [0, 1]
        return {**request, "times": list(self.times)} if self.times else request


class ServedSampler:
    """Asks the files that `ServedModel.write` made, with the same images as `cmray sample` for the same seeds."""

    def __init__(self, folder: Path):
        from cmray.engine.model import load_model
        from cmray.engine.session import default_device

        self._model = load_model(folder, default_device())
        default = json.loads((folder / SAMPLER).read_text())
        self._nfe, self._times = default["nfe"], default["times"]

    def predict(self, requests: DataFrame) -> np.ndarray:
        """Images of all requests, one request a row, one after the other: uint8 [N,H,W,C].

        Args:
            requests: columns `seed` (image i of a request has seed + i), and optionally `count` (1), `labels` (of
                class-conditional models, repeated in turn; by default each seed draws its own) and `times` (noise
                levels of a consistency model, descending; by default those the model was registered with).

        Raises:
            CmrayError: with one line, for a value that is out of range.
        """
        import numpy as np

        asked = [_Request.of(row) for row in requests.to_dict("records")]
        total = sum(request.count for request in asked)
        if not 1 <= total <= MAX_IMAGES:
            raise CmrayError(f"{total} images are asked for; one call makes 1 to {MAX_IMAGES}")
        return np.concatenate([self._images(request) for request in asked])

    def _images(self, request: _Request) -> np.ndarray:
        from cmray.core.precond import to_pixels

        times = request.times or self._times
        sampler = self._model.sampler(len(times) if times else self._nfe, times)
        seeds = range(request.seed, request.seed + request.count)
        images = self._model.images(sampler, seeds, self._labels(request))
        return to_pixels(images).numpy().transpose(0, 2, 3, 1)

    def _labels(self, request: _Request) -> Tensor | None:
        import torch

        classes = self._model.num_classes
        if request.labels is None:
            return None
        if not classes:
            raise CmrayError("labels are given, but the model is not class-conditional; leave them out")
        if not all(0 <= label < classes for label in request.labels):
            raise CmrayError(f"labels are 0 to {classes - 1}, found {request.labels}")
        return torch.tensor([request.labels[i % len(request.labels)] for i in range(request.count)])


@dataclass(frozen=True)
class _Request:
    """One row, checked as far as that needs no model."""

    seed: int
    count: int = 1
    labels: list[int] | None = None
    times: list[float] | None = None

    @classmethod
    def of(cls, row: Mapping[Any, Any]) -> _Request:
        given = {name: row[name] for name in ("seed", "count", "labels", "times") if not _is_missing(row.get(name))}
        if "seed" not in given:
            raise CmrayError("seed is missing; give a whole number from 0 on")
        seed, count = _whole("seed", given["seed"]), _whole("count", given.get("count", 1))
        if seed < 0:
            raise CmrayError(f"seed is {seed}; give a whole number from 0 on")
        if not 1 <= count <= MAX_IMAGES:
            raise CmrayError(f"count is {count}; one call makes 1 to {MAX_IMAGES} images")
        if seed + count > 2**63:
            raise CmrayError(f"seed is {seed}; with {count} images it goes beyond 2**63 - 1")
        labels = [_whole("labels", label) for label in given["labels"]] if "labels" in given else None
        times = [float(time) for time in given["times"]] if "times" in given else None
        if times is not None and not all(math.isfinite(time) for time in times):
            raise CmrayError(f"times must be finite, found {times}")
        return cls(seed, count, labels, times)


def _is_missing(value: Any) -> bool:
    """What a row holds of a column that was left out: nothing, NaN, or an empty list."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return True
    return isinstance(value, Sized) and not isinstance(value, str) and len(value) == 0


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or int(value) != value:
        raise CmrayError(f"{name} must be whole numbers, found {value!r}")
    return int(value)


def requirements() -> list[str]:
    """cmray and what it samples with, in the versions that are here; nothing is resolved or downloaded."""
    pinned = []
    for name in _REQUIRED:
        try:
            pinned.append(f"{name}=={importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return pinned
