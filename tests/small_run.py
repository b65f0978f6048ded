"""A run on the real digits that trains in a fraction of a second, for tests of several rooms."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch

from cmray.config.load import merged, set_dotted
from cmray.config.run import RunConfig
from cmray.datasets import ImageDataset, datasets
from cmray.datasets.whole import load_whole
from cmray.engine.loop import TrainOutcome, train
from cmray.engine.session import PlainSession

#: which bits come out must not depend on how many cores the test machine has; it is also faster for so small a net
torch.set_num_threads(1)
CPU = torch.device("cpu")

SMALL: dict[str, Any] = {
    "data": {"name": "digits"},
    "net": {"name": "mlp", "width": 16, "depth": 1},
    "noise": {"sigma_data": 0.75},
    "objective": {"name": "ct", "num_sigmas": 9, "mu": 0.9},
    "train": {"steps": 6, "batch_size": 8, "optimizer": {"lr": 0.01}},
}


def small_values(changes: dict[str, Any] | None = None, **sections: Any) -> dict[str, Any]:
    """The small run as a mapping; `sections` are merged, `changes` are dotted fields."""
    values = merged(SMALL, sections)
    for key, value in (changes or {}).items():
        set_dotted(values, key, value)
    return values


def small(changes: dict[str, Any] | None = None, **sections: Any) -> RunConfig:
    return RunConfig.model_validate(small_values(changes, **sections))


@functools.cache
def digits() -> ImageDataset:
    return load_whole(datasets.parse("digits"))


def go(run: RunConfig, folder: Path, teacher: Path | None = None, **more: Any) -> TrainOutcome:
    """Trains in this process, alone."""
    return train(run, more.pop("data", digits()), folder, teacher, more.pop("session", PlainSession(CPU)), **more)


def checkpoint(folder: Path) -> Path:
    """The newest checkpoint of a trial's folder."""
    return sorted((folder / "checkpoints").glob("step-*"))[-1]


def teacher_checkpoint(folder: Path, changes: dict[str, Any] | None = None, data: ImageDataset | None = None) -> Path:
    """A real checkpoint of a small EDM teacher."""
    run = small({"objective": {"name": "edm"}, **(changes or {})})
    go(run, folder, data=data or digits())
    return checkpoint(folder)
