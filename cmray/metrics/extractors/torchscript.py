"""Features of any network that is stored as a program, with its input described by options."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from cmray.core.errors import DataError
from cmray.metrics.extractors.base import Extractor, Outputs, extractors, size_text
from cmray.metrics.extractors.published import FileConfig, images_at_a_time, load_program
from cmray.metrics.resize import RESIZERS, as_rgb

Numbers = tuple[float, ...]


class ProgramExtractor(Extractor):
    """Features [B, D] of the network in a file. D is found by one call."""

    name: ClassVar[str] = "torchscript"

    def __init__(self, config: TorchScript, network: Callable[[Tensor], Any], sha256: str, device: torch.device):
        super().__init__(device)
        self.config, self.network, self.sha256 = config, network, sha256
        self.resizer, self.replicates = config.resizer, config.channels == 3
        self.part = images_at_a_time(device)
        low, high = config.range
        self._low, self._scale = low, (high - low) / 255
        self._mean, self._std = (torch.tensor(v, device=device).view(1, -1, 1, 1) for v in (config.mean, config.std))
        blank = torch.zeros((1, config.channels, config.size, config.size), dtype=torch.uint8, device=device)
        with torch.no_grad():
            self.dim = self._features(blank).shape[1]

    def check(self, shape: Sequence[int]) -> None:
        config = self.config
        if config.channels == 3:
            self.check_rgb(shape)
        elif int(shape[0]) != config.channels:
            raise DataError(f"extractor 'torchscript' has channels: 1; these images are {size_text(shape)} (C x H x W)")
        if config.resizer == "none" and tuple(shape[1:]) != (config.size, config.size):
            raise DataError(
                f"extractor 'torchscript' has resizer: none and size: {config.size}; these images are "
                f"{size_text(shape)} (C x H x W)"
            )

    def describe(self, images: Tensor, wanted: frozenset[str]) -> Outputs:
        return Outputs(self._features(images))

    def _features(self, images: Tensor) -> Tensor:
        x = RESIZERS[self.config.resizer](images, self.config.size)
        if self.config.channels == 3:
            x = as_rgb(x)
        x = (self._low + x * self._scale - self._mean) / self._std
        where = f"extractor 'torchscript': {self.config.path}"
        try:
            out = self.network(x)
        except (RuntimeError, TypeError) as error:
            reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
            raise DataError(f"{where} does not run on images of {list(x.shape)}: {reason[0]}") from None
        out = self._chosen(out, where)
        if not isinstance(out, Tensor) or len(out) != len(images) or not out.is_floating_point():
            found = f"{out.dtype} {list(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
            raise DataError(f"{where} gives {found} for {len(images)} images, where floats [B, ...] are needed")
        return out.flatten(1).float()

    def _chosen(self, out: Any, where: str) -> Any:
        key = self.config.key
        keys = list(out) if isinstance(out, dict) else list(range(len(out))) if isinstance(out, list | tuple) else []
        if key is None:
            if keys:
                raise DataError(f"{where} gives several outputs; choose one with key, of: {keys}")
            return out
        chosen = [k for k in keys if str(k) == key]
        if not chosen:
            raise DataError(f"{where}: key is {key}; the outputs are {keys or 'one tensor, without keys'}")
        return out[chosen[0]]


@extractors.register("torchscript")
class TorchScript(FileConfig):
    """A network in a file of torch.jit.save or torch.export.save, float [B, channels, size, size] -> [B, ...].

    A pixel p of 0 to 255 reaches it as (low + p (high - low)/255 - mean) / std.
    """

    made_by: ClassVar[str] = "a file of torch.jit.save or torch.export.save"

    size: int = Field(224, ge=1, le=4096, description="side of the images the network takes")
    channels: Literal[1, 3] = Field(3, description="channels it takes; grayscale is replicated to 3")
    resizer: Literal["clean", "bilinear", "tensorflow", "pillow", "none"] = Field(
        "clean", description="how images become that size; none takes images of that size only"
    )
    range: tuple[float, float] = Field((0.0, 1.0), description="what 0 and 255 become before mean and std")
    mean: Numbers = Field((0.0,), description="subtracted after that, one number or one per channel")
    std: Numbers = Field((1.0,), description="divided by after that, one number or one per channel")
    key: str | None = Field(None, min_length=1, description="which output, where it gives a dict or a list")

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int | float) else value

    @field_validator("mean", "std")
    @classmethod
    def _per_channel(cls, value: Numbers, info: Any) -> Numbers:
        channels = info.data.get("channels", 3)
        if len(value) not in (1, channels):
            raise ValueError(f"one number, or one for each of {channels} channels; found {len(value)}")
        if info.field_name == "std" and min(value) <= 0:
            raise ValueError(f"must be above 0, found {list(value)}")
        return value

    @field_validator("range")
    @classmethod
    def _ascending(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] >= value[1]:
            raise ValueError(f"[low, high] with low < high, found {list(value)}")
        return value

    def build(self, device: torch.device) -> ProgramExtractor:
        path, content = self.found()
        network = load_program(path, "extractor 'torchscript'", device)
        options = self.model_dump(mode="json", exclude={"path", "path_sha256"})
        told = json.dumps({"file": content, **options}, sort_keys=True)
        return ProgramExtractor(self, network, hashlib.sha256(told.encode()).hexdigest(), device)
