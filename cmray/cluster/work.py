"""What one trial does, wherever Ray has put it: in a Tune actor, or as a DDP worker of Ray Train."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cmray.config.run import RunConfig
from cmray.core.errors import CmrayError
from cmray.core.files import write_atomic
from cmray.datasets.mapped import MappedDataset
from cmray.engine.batches import TrainingData
from cmray.engine.loop import TrainOutcome, train
from cmray.engine.session import Session, prepare_process


@dataclass(frozen=True)
class TrialSpec:
    """What crosses to a worker: plain values and paths. The dataset, or how to get at it, is in the object store."""

    name: str
    run: dict[str, Any]
    folder: str
    teacher: str | None  # checkpoint folder

    @property
    def config(self) -> RunConfig:
        return RunConfig.model_validate(self.run)


class TuneSession:
    """A one-worker trial inside a Tune actor. Tune stops it by ending the process, so nothing is asked of it."""

    def __init__(self, device: torch.device):
        self.rank, self.world_size, self.device = 0, 1, device

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        from ray import tune

        tune.report({**metrics, "step": step})

    def should_stop(self) -> bool:
        return False


class TrainSession:
    """One DDP worker under Ray Train."""

    def __init__(self) -> None:
        import ray.train
        import ray.train.torch

        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        """Nothing: the driver follows the trial's events, and a report would be a barrier for all workers."""

    def should_stop(self) -> bool:
        return False


def run_trial(spec: TrialSpec, data: TrainingData | MappedDataset, session: Session) -> TrainOutcome:
    """Trains in this process. Warnings go to the trial's log.txt."""
    if isinstance(data, MappedDataset):
        data = data.open()
    folder = Path(spec.folder)
    run = spec.config
    prepare_process(int(run.resources.cpus_per_worker))

    def warn(text: str) -> None:
        with (folder / "log.txt").open("a") as file:
            file.write(f"{text} ({time.strftime('%Y-%m-%d %H:%M:%SZ', time.gmtime())})\n")

    return train(run, data, folder, Path(spec.teacher) if spec.teacher else None, session, warn)


def note_failure(spec: TrialSpec, error: BaseException) -> str:
    """Writes error.txt, the reason first and the traceback below; returns the reason in one line."""
    reason = str(error).strip() or type(error).__name__
    reason = (
        reason.splitlines()[0] if isinstance(error, CmrayError) else f"{type(error).__name__}: {reason.splitlines()[0]}"
    )
    trace = "".join(traceback.format_exception(error))
    write_atomic(Path(spec.folder) / "error.txt", f"{reason}\n\n{trace}")
    return reason
