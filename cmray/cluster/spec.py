"""What a worker is told of its trial."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cmray.config.run import RunConfig
from cmray.engine.remote_store import Store


@dataclass(frozen=True)
class TrialSpec:
    """What crosses to a worker: plain values and paths. The dataset, or how to get at it, is in the object store."""

    name: str
    run: dict[str, Any]
    folder: str
    teacher: str | None  # checkpoint folder
    store: Store | None = None  # whose working copy the paths are of, where the storage is in an object store

    @property
    def config(self) -> RunConfig:
        return RunConfig.model_validate(self.run)
