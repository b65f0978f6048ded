"""The manifest of a checkpoint: what may be known of it without loading a weight."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cmray.config.run import RunConfig
from cmray.core.errors import CheckpointError
from cmray.core.plugins import VARIABLE, PluginError, announced

META = "meta.json"
FORMAT_VERSION = 1


class Origin(BaseModel):
    """Where the weights of a checkpoint come from that was imported."""

    model_config = ConfigDict(frozen=True)
    format: str = Field(description="as in cmray import")
    file: str = Field(description="name of the file, or of the folder")
    sha256: str = Field(description="of the file of weights")
    licence: str | None = Field(description="of the weights; null where nobody said")
    note: str = Field(default="", description="a line of whoever imported it")
    data_known: bool = Field(default=True, description="whether anybody said what they learned from")

    @property
    def trained_here(self) -> bool:
        """Whether cmray trained them, and exported them since."""
        return self.format == "safetensors"


class CheckpointFacts(BaseModel):
    """What stands in a checkpoint's meta.json; `files` maps every part to its SHA-256."""

    model_config = ConfigDict(frozen=True)
    format_version: int = FORMAT_VERSION
    step: int
    nimg: int
    seconds: float
    gpu_seconds: float | None = None  # as in cmray.engine.spent.Cost; older checkpoints did not count
    cpu_seconds: float | None = None
    energy_joules: float | None = None
    shape: tuple[int, int, int]
    num_classes: int
    run_config: dict[str, Any]
    files: dict[str, str]
    scalars: dict[str, float]
    plugins: tuple[str, ...] = ()  # "PACKAGE VERSION" of those whose components the run has
    origin: Origin | None = None  # of imported weights

    @property
    def run(self) -> RunConfig:
        return RunConfig.model_validate(self.run_config)

    @property
    def weights_file(self) -> str:
        """The part that is sampled from: the first EMA."""
        return ema_file(self.run.train.ema[0])

    @property
    def weights_sha256(self) -> str:
        return self.files[self.weights_file]


def _check_plugins(path: Path, facts: CheckpointFacts) -> None:
    """Raises PluginError where the run cannot be understood without plug-ins that are not here."""
    if not facts.plugins:
        return
    try:
        facts.run  # noqa: B018
    except ValidationError as error:
        here = {plugin.title for plugin in announced()}
        gone = [title for title in facts.plugins if title not in here] or list(facts.plugins)
        raise PluginError(
            f"{path} was made with {' and '.join(gone)}, which is not here: {error.errors()[0]['msg']}; "
            f"install it, or name its file in {VARIABLE}"
        ) from None


def ema_file(rate: float) -> str:
    return f"ema-{rate}.safetensors"


def read_checkpoint_facts(folder: Path) -> CheckpointFacts:
    """Reads the manifest only. Raises CheckpointError when it is missing or not one."""
    path = folder / META
    try:
        if not folder.is_dir():
            raise CheckpointError(f"checkpoint folder {folder} does not exist")
        if not path.is_file():
            raise CheckpointError(f"{folder} is not a checkpoint of cmray: it has no {META}")
        raw = json.loads(path.read_text())
        version = raw.get("format_version") if isinstance(raw, dict) else None
        if version != FORMAT_VERSION:
            raise CheckpointError(f"{path} has format_version {version!r}; this cmray reads version {FORMAT_VERSION}")
        facts = CheckpointFacts.model_validate(raw)
        _check_plugins(path, facts)
        assert facts.weights_file in facts.files
        return facts
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError, AssertionError) as error:
        raise CheckpointError(
            f"{path} is damaged: {str(error).splitlines()[0] if str(error) else 'no weights'}"
        ) from None
